"""`ventoux serve`: start the engine process, show the plan, answer HTTP until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ventoux.cli.compat import add_compatible_flags, images_per_prompt, notices
from ventoux.cli.flags import add_flags, check_argument, config_model, from_args
from ventoux.cli.progress import loading_bar
from ventoux.config import EngineConfig, ServerConfig
from ventoux.errors import ConfigError

# The least that a number may be.
_LEAST = {
    "limit_images": 0,
    "max_image_bytes": 1,
    "max_image_pixels": 1,
    "image_workers": 0,
    "media_timeout": 0.1,
    "max_request_bytes": 1,
    "max_queued_requests": 1,
    "max_queued_tokens": 1,
    "hang_timeout": 1,
    "step_timeout": 1,
    "max_failed_starts": 1,
    "max_stored_responses": 1,
    "max_stored_response_bytes": 1,
    "drain_timeout": 0,
}
BUNDLED_NAME = "ventoux-demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="Hub id or folder, either layout (default: the bundled model)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; those on the command line win")
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, ServerConfig, "server")
    add_compatible_flags(parser)


def run(args: argparse.Namespace) -> int:
    from ventoux.checkpoint.hub import resolve_model
    from ventoux.server.logs import configure
    from ventoux.server.run import Backend, serve
    from ventoux.supervisor import Patience, Supervisor
    from ventoux.worker import EngineProcess

    check_argument(args, "model")
    if args.model is None:
        args.model = config_model(args.config)
    for line in notices(args):
        print(line, file=sys.stderr)
    choices = from_args(EngineConfig, args)
    server = from_args(ServerConfig, args)
    if hasattr(args, "limit_mm_per_prompt"):
        server = replace(server, limit_images=images_per_prompt(args.limit_mm_per_prompt))
    check_server(server)
    configure(server.log_format)
    names = server.served_model_name or (args.model or BUNDLED_NAME,)

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Backend]:
        folder = await asyncio.to_thread(resolve_model, args.model)
        loop, gave_up = asyncio.get_running_loop(), asyncio.Event()
        engine = Supervisor(
            partial(EngineProcess, folder, choices),
            Patience(server.hang_timeout, server.step_timeout, server.max_failed_starts),
            on_give_up=partial(loop.call_soon_threadsafe, gave_up.set),
        )
        try:
            tokenizer, ready = await asyncio.gather(
                asyncio.to_thread(_load_tokenizer, folder), asyncio.to_thread(_wait, engine)
            )
            tokenizer.require_vocabulary(ready.vocab_size)
            print(ready.plan.describe(), file=sys.stderr, flush=True)
            yield Backend(engine, tokenizer, names, ready.plan.max_model_len, gave_up)
        finally:
            await asyncio.to_thread(engine.stop)

    def on_ready(url: str) -> None:
        print(f"ventoux serves {', '.join(names)} on {url}", file=sys.stderr, flush=True)

    serve(server, start, on_ready=on_ready)
    return 0


def check_server(config: ServerConfig) -> None:
    """Raises ConfigError for a value with which no server could work, or only one that is open to all."""
    for name, least in _LEAST.items():
        # Not `value < least`: NaN is no number to wait for.
        if not (value := getattr(config, name)) >= least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")
    if not 0 <= config.port <= 65535:
        raise ConfigError(f"--port {config.port}: ports run from 1 to 65535 (0 takes any that is free).")
    # An empty host, from a variable that was never set, would mean every address that this machine has.
    if not re.fullmatch(r"[\w.:%-]{1,253}", config.host):
        raise ConfigError(
            f"--host {config.host!r} is no address or host name (examples: 127.0.0.1, ::1 without brackets, 0.0.0.0)."
        )
    # An empty key is what a forgotten variable leaves, and anybody would have it; others could not be sent in a header.
    for flag, keys in (("--api-key", config.api_key), ("--admin-api-key", config.admin_api_key)):
        if not all(key and all("!" <= c <= "~" for c in key) for key in keys):
            raise ConfigError(f"{flag}: a key must not be empty, and holds printable ASCII characters without blanks.")
    _check_files(config)
    if config.root_path and (not config.root_path.startswith("/") or config.root_path.endswith("/")):
        raise ConfigError(f"--root-path must look like /prefix, got {config.root_path}.")


def _check_files(config: ServerConfig) -> None:
    """What the server opens when its model is loaded, tried before; imported only if asked for, since it takes time."""
    if config.api_key_file:
        from ventoux.server.keys import read_keys

        read_keys(Path(config.api_key_file).expanduser())
    if config.otlp_traces_endpoint:
        from ventoux.server.tracing import make_exporter

        make_exporter(config)


def _load_tokenizer(folder: Path):
    from ventoux.text.tokenizer import Tokenizer

    return Tokenizer.from_file(folder)


def _wait(engine):
    with loading_bar("loading weights") as progress:
        return engine.wait_ready(progress)
