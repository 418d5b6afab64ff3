"""Writes docs/reference/cli.md from the command-line parsers, and docs/bad-inputs.md from the server's answers.

After changing a flag or an error: `python docs/generate.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ventoux.cli import COMMANDS

DOCS = Path(__file__).parent

HEAD = """\
# Command line

This page is written by `docs/generate.py` from the parsers themselves; a test compares the two.

Flags may be spelled with dashes or underscores (`--max-num-seqs`, `--max_num_seqs`). They cannot be abbreviated. Whole
numbers of engine, server and sampling flags take units: `16384`, `256k` (262144), `4GiB`, `20MiB`; `4GB` is decimal.

Exit status: 0 for success, 2 for what you can mend (a flag, a file, a request), 1 for what failed here, 130 when
interrupted, 141 when the reader of the output went away.
"""

# Taken out of the arguments before the parser sees them (see cli/compat.py).
SPECULATIVE = """\
`serve` also takes the dotted form of `--speculative-config`: `--speculative-config.method ngram`
([speculation](../guides/speculation.md)).
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(_command(name) for name in COMMANDS)])


def _command(name: str) -> str:
    parser = argparse.ArgumentParser(prog=f"ventoux {name}", description=COMMANDS[name])
    import_module(f"ventoux.cli.{name}").add_arguments(parser)
    parts = list(_section(parser, 2))
    if name == "serve":
        parts.append(SPECULATIVE)
    return "\n".join(parts)


def _section(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """A heading, the arguments group by group, then the subcommands one level deeper."""
    described = parser.description or ""
    yield f"{'#' * level} {parser.prog}\n\n{described[:1].upper()}{described[1:]}.\n"
    # argparse keeps its structure in attributes with an underscore, unchanged since Python 2.7.
    for group in parser._action_groups:
        rows = [
            row
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
            for row in _row(action)
        ]
        if rows:
            title = "argument" if group.title == "positional arguments" else group.title
            yield f"| {title} | |\n|---|---|\n" + "\n".join(rows) + "\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _section(child, level + 1)


def _row(action: argparse.Action) -> Iterator[str]:
    value = _value(action)
    names = [name + value for name in action.option_strings] or [value.strip()]
    described = (action.help or "") % {"default": action.default}
    yield f"| {', '.join(f'`{name}`' for name in names)} | {_cell(described)} |"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None and action.metavar is None:
        return " " + "\\|".join(map(str, action.choices))
    name = action.metavar or action.dest.upper()
    return f" {name} [{name} ...]" if action.nargs == "+" else f" {name}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def bad_inputs() -> str:
    """The page of bad inputs: every row of the table is asked here."""
    from tests.server import bad_inputs
    from ventoux.text.tekken import write_tekken
    from ventoux.text.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_file(write_tekken(Path(folder), num_ranks=2048))
    return bad_inputs.page(asyncio.run(bad_inputs.ask_all(tokenizer)))


if __name__ == "__main__":
    # Where `tests` lies.
    sys.path.insert(0, str(DOCS.parent))
    (DOCS / "reference" / "cli.md").write_text(page(), encoding="utf-8")
    (DOCS / "bad-inputs.md").write_text(bad_inputs(), encoding="utf-8")
