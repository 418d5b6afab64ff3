"""`ventoux chat`: talk to a model in the terminal, in this process or on a server."""

from __future__ import annotations

import argparse
import base64
import contextlib
import mimetypes
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.cli.flags import add_flags
from ventoux.cli.offline import MODEL_HELP, add_sampling_flags, open_llm, sampling_fields
from ventoux.config import EngineConfig, ServerConfig
from ventoux.errors import ConfigError, UserError, VentouxError

if TYPE_CHECKING:
    from rich.console import Console

    from ventoux.cli.conversation import Conversation, Model

HELP = """\
/image PATH     show the model an image, with your next message
/think on|off   reason before answering
/tools on|off   offer the model a calculator
/system TEXT    set the system prompt (nothing: remove it)
/reset          forget the conversation
/help           this list
/quit           leave (so does Ctrl-D); Ctrl-C stops an answer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    remote = parser.add_argument_group("server")
    remote.add_argument("--url", help="talk to this OpenAI-compatible server instead of loading a model")
    remote.add_argument("--api-key", help="key that the server wants")
    remote.add_argument(
        "--model", dest="model_name", metavar="NAME", help="model to ask the server for (default: its first)"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument("--think", action="store_true", help="reason before answering")
    parser.add_argument("--tools", action="store_true", help="offer the model a calculator")
    add_sampling_flags(parser)
    # --seed is the request's here.
    add_flags(parser, EngineConfig, "engine (without --url)", without=("seed",))


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ventoux.cli.calculator import TOOL, call
    from ventoux.cli.conversation import Conversation

    with _opened(args) as model:
        conversation = Conversation(model, call, system=args.system, think=args.think)
        if args.tools:
            conversation.tools = [TOOL]
        return Talk(conversation, Console(highlight=False)).run()


@contextlib.contextmanager
def _opened(args: argparse.Namespace) -> Iterator[Model]:
    if args.url is None:
        if args.api_key or args.model_name:
            raise ConfigError("--api-key and --model belong to --url; a local model is named without a flag.")
        from ventoux.cli.local import LocalModel

        with open_llm(args) as llm:
            yield LocalModel(llm, sampling_fields(args))
        return
    if args.model is not None:
        raise ConfigError(
            f"--url and a local model ({args.model}) exclude each other; use --model to name a remote one."
        )
    from ventoux.cli.remote import RemoteModel

    remote = RemoteModel(args.url, name=args.model_name, api_key=args.api_key, fields=sampling_fields(args))
    with contextlib.closing(remote):
        yield remote


class Talk:
    """Reads lines, obeys commands, prints answers. Without a terminal it reads standard input line by line."""

    def __init__(self, conversation: Conversation, console: Console):
        self.conversation = conversation
        self.console = console
        self.failed = False

    def run(self) -> int:
        """Until /quit or the end of input. 1 if input came from a file or pipe and something failed."""
        interactive = sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (gives input() its editing keys and history)
            self._note("/help lists the commands.")
        while True:
            try:
                line = input("> ") if interactive else _line()
            except EOFError:
                break
            except KeyboardInterrupt:
                self._note("\nCtrl-D or /quit leaves.")
                continue
            if line.strip() == "/quit":
                break
            if line.strip():
                self._obey(line.strip())
        return 1 if self.failed and not interactive else 0

    def _obey(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            else:
                self._ask(line)
        except KeyboardInterrupt:
            self._note("[stopped]")
        except VentouxError as error:
            self.failed = True
            self.console.out(f"error: {printable(str(error))}", style="red", highlight=False)

    def _command(self, name: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/think": self._think,
            "/tools": self._tools,
            "/system": self._system,
            "/reset": self._reset,
            "/help": lambda _: self.console.out(HELP, highlight=False),
        }
        if name not in commands:
            raise UserError(f"there is no command {name}; /help lists them.")
        commands[name](rest.strip())

    def _image(self, path: str) -> None:
        if not path:
            raise UserError("/image needs the path of a PNG, JPEG, WebP or GIF file.")
        part, size = image_part(Path(path).expanduser())
        self.conversation.images.append(part)
        self._note(f"{size[0]} x {size[1]} pixels, shown with your next message")

    def _think(self, choice: str) -> None:
        self.conversation.think = _on_or_off("/think", choice)
        self._note(f"reasoning is {choice}")

    def _tools(self, choice: str) -> None:
        from ventoux.cli.calculator import TOOL

        self.conversation.tools = [TOOL] if _on_or_off("/tools", choice) else []
        self._note(f"the calculator is {choice}")

    def _system(self, text: str) -> None:
        self.conversation.system = text
        self._note("system prompt set" if text else "system prompt removed")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._note("the conversation is forgotten")

    def _note(self, text: str) -> None:
        self.console.out(text, style="dim", highlight=False)

    def _ask(self, text: str) -> None:
        # Closed at once when Ctrl-C lands here: the request ends with it.
        with contextlib.closing(self.conversation.ask(text)) as events:
            AnswerPrinter(self.console).print(events)


class AnswerPrinter:
    """Writes events as they come: reasoning dim, tool calls on lines of their own, the answer plain."""

    def __init__(self, console: Console):
        self._console = console
        self._last: type | None = None
        self._line_is_open = False

    def print(self, events: Iterable[Any]) -> None:
        try:
            self._print(events)
        finally:
            # Also when it was stopped: whatever comes next begins on a line of its own.
            if self._line_is_open:
                self._write("\n")

    def _print(self, events: Iterable[Any]) -> None:
        from ventoux.cli.conversation import Cut, ToolResult
        from ventoux.text.stream_parser import Content, Reasoning, ToolCallArguments, ToolCallStart

        for event in events:
            match event:
                case Reasoning(text):
                    self._begin(Reasoning)
                    self._write(text, "dim italic")
                case Content(text):
                    self._begin(Content)
                    self._write(text)
                case ToolCallStart(_, name):
                    self._begin(ToolCallStart, always=True)
                    self._write(f"-> {name} ", "cyan")
                case ToolCallArguments(_, text):
                    self._write(text, "cyan")
                case ToolResult(_, text):
                    self._begin(ToolResult, always=True)
                    self._write(f"<- {text}", "cyan")
                case Cut():
                    self._begin(Cut)
                    self._write("[cut: the answer has reached --max-tokens, or the context is full]", "dim")

    def _begin(self, kind: type, *, always: bool = False) -> None:
        """A new line where one kind of text follows another, or the same one again if it is `always` on its own."""
        if self._line_is_open and (always or kind is not self._last):
            self._write("\n")
        self._last = kind

    def _write(self, text: str, style: str | None = None) -> None:
        from rich.segment import Segment, Segments

        if text := printable(text):
            # Segments are left alone: no markup, no emoji codes, no wrapping, tabs stay.
            segment = Segment(text, self._console.get_style(style) if style else None)
            self._console.print(Segments([segment]), end="", soft_wrap=True)
            self._line_is_open = not text.endswith("\n")


def printable(text: str) -> str:
    """Text without control characters, which could move the cursor or recolour the terminal; line breaks stay."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def image_part(path: Path) -> tuple[dict[str, Any], tuple[int, int]]:
    """A content part with the image's own bytes, and its width and height.

    Raises:
        InvalidImageError: it is no PNG, JPEG, WebP or GIF.
        UserError: the file cannot be read.
    """
    from ventoux.text.images import decode_image

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    limits = ServerConfig()
    image = decode_image(data, max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels)
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}, image.size


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _on_or_off(command: str, choice: str) -> bool:
    if choice not in ("on", "off"):
        raise UserError(f"{command} takes on or off.")
    return choice == "on"
