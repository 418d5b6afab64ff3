"""`ventoux generate`: one prompt, its answer streamed as text; or a JSONL file of requests, answered in one batch."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ventoux.cli.flags import add_flags
from ventoux.cli.offline import MODEL_HELP, add_sampling_flags, open_llm, sampling_fields
from ventoux.cli.progress import loading_bar
from ventoux.config import EngineConfig
from ventoux.errors import ConfigError, VentouxError

if TYPE_CHECKING:
    from ventoux.llm import LLM, RequestOutput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", metavar="TEXT", help="print the answer to this text (-: standard input)")
    source.add_argument(
        "--input",
        metavar="FILE",
        help='JSON lines {"prompt": text or ids} or {"messages": [...], "tools", "reasoning_effort"}, each with an'
        ' optional "id" and any sampling fields (-: standard input)',
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the answers to --input go (default: stdout)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="the text is a user's message (the default)")
    form.add_argument("--raw", action="store_true", help="the text is continued as it stands, without a chat format")
    add_sampling_flags(parser)
    parser.add_argument("--reasoning-effort", choices=("none", "high"), help="think before answering (default: none)")
    # --seed is the request's here.
    add_flags(parser, EngineConfig, "engine", without=("seed",))


def run(args: argparse.Namespace) -> int:
    if args.prompt is None:
        return _answer_file(args)
    if args.output is not None:
        raise ConfigError("--output belongs to --input; the answer to -p goes to standard output.")
    if args.raw and args.reasoning_effort is not None:
        raise ConfigError("--reasoning-effort needs the chat form; leave --raw out.")
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    with open_llm(args) as llm:
        _answer_one(llm, args, text)
    return 0


def _answer_one(llm: LLM, args: argparse.Namespace, text: str) -> None:
    from ventoux.engine.request import SamplingParams
    from ventoux.text.stream_parser import Content

    prompt = text if args.raw else [{"role": "user", "content": text}]
    options = {} if args.raw else {"reasoning_effort": args.reasoning_effort}
    for event in llm.stream(prompt, SamplingParams(**sampling_fields(args)), **options):
        if isinstance(event, Content):
            print(event.text, end="", flush=True)
    print()


def _answer_file(args: argparse.Namespace) -> int:
    """All lines at once; exit status 1 if any of them got an error in place of an answer.

    An interrupted run leaves the results that it had.
    """
    from ventoux.cli.lines import ResultWriter, read_lines

    if args.chat or args.raw:
        raise ConfigError('--chat and --raw belong to -p; lines say it themselves, by "messages" or "prompt".')
    defaults = sampling_fields(args)
    if args.reasoning_effort is not None:
        defaults["reasoning_effort"] = args.reasoning_effort
    lines = read_lines(_lines(args.input), defaults)
    # Opened before the work is done: a folder that cannot be written to is better known now.
    with _target(args.output) as target:
        writer = ResultWriter(target, lines)
        with open_llm(args) as llm, loading_bar("generating", unit="requests") as progress:
            started = time.monotonic()

            def put(position: int, result: RequestOutput | VentouxError) -> None:
                writer.put(position, result)
                progress(writer.num_done, len(lines))

            try:
                llm.batch([line.item for line in lines if line.item is not None], put)
            finally:
                writer.rescue()
            seconds = time.monotonic() - started
    rate = writer.num_tokens / seconds if seconds else 0.0
    failed = f"; {writer.num_failed} failed, see their errors" if writer.num_failed else ""
    print(
        f"{len(lines)} requests in {seconds:.1f} s, {writer.num_tokens} new tokens ({rate:.1f} per second){failed}",
        file=sys.stderr,
    )
    return 1 if writer.num_failed else 0


def _lines(name: str) -> list[bytes]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"--input {name}: {error.strerror}.") from error
    return content.split(b"\n")


@contextlib.contextmanager
def _target(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}.") from error
    with file:
        yield file
