"""The `ventoux` command. Every command imports what it needs when it runs, so that --help answers at once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from ventoux import __version__
from ventoux.cli.compat import join_speculative
from ventoux.cli.flags import normalise, with_config_file
from ventoux.errors import ConfigError, UserError, VentouxError

# Each module has add_arguments(parser) and run(args) -> exit status.
COMMANDS = {
    "serve": "answer OpenAI clients over HTTP",
    "chat": "talk to a model in the terminal",
    "generate": "answer one prompt or a file of prompts",
    "bench": "measure speed and memory",
    "inspect": "say what a checkpoint is and what it needs",
    "convert": "write a checkpoint in the other layout",
    "quantize": "write a checkpoint with FP8 or NVFP4 weights",
    "train": "train the bundled model",
    "eval": "measure what the bundled model can do",
    "doctor": "look at this machine and test the engine on it",
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The whole parser; only the chosen command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="ventoux",
        description="Inference engine and OpenAI-compatible server for Mistral Small 4.",
        epilog="ventoux COMMAND --help tells more. Without a model, commands use the one that ships in the package.",
    )
    parser.add_argument("--version", action="version", version=f"ventoux {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, described in COMMANDS.items():
        # No abbreviations: a flag that is mistyped must be an error, not another flag.
        command = commands.add_parser(name, help=described, description=described, allow_abbrev=False)
        if name == chosen:
            import_module(f"ventoux.cli.{name}").add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 2 for what the user can mend, 1 for what failed here, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        if chosen == "serve":
            words = join_speculative(with_config_file(normalise(words)))
        parser = build_parser(chosen)
        args, unknown = parser.parse_known_args(normalise(words))
        if unknown:
            raise ConfigError(_unknown(args.command, unknown[0]))
        status = import_module(f"ventoux.cli.{args.command}").run(args)
        sys.stdout.flush()  # here, where a reader that has gone is no surprise
        return status
    except UserError as error:
        print(f"ventoux: {error}", file=sys.stderr)
        return 2
    except VentouxError as error:
        print(f"ventoux: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): what is still buffered has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _unknown(command: str, word: str) -> str:
    """What to say about a word that the command's parser did not take."""
    if not word.startswith("-"):
        return f"{command}: {word!r} is one argument too many; `ventoux {command} --help` shows what it takes."
    flag = word.partition("=")[0]
    parser = argparse.ArgumentParser(add_help=False)
    import_module(f"ventoux.cli.{command}").add_arguments(parser)
    known = set(re.findall(r"--[a-z][a-z0-9-]*", parser.format_help()))
    near = get_close_matches(flag, known, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"{command} has no flag {flag}.{meant} `ventoux {command} --help` lists them all."
