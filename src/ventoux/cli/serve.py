"""`ventoux serve`: start the engine process, show the plan, answer HTTP until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
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
    "media_timeout": 0.1,
    "max_request_bytes": 1,
    "max_queued_requests": 1,
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
    from ventoux.server.run import Backend, serve
    from ventoux.worker import StartingWorker

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
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
    names = server.served_model_name or (args.model or BUNDLED_NAME,)

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Backend]:
        folder = await asyncio.to_thread(resolve_model, args.model)
        starting = StartingWorker(folder, choices)
        try:
            tokenizer, worker = await asyncio.gather(
                asyncio.to_thread(_load_tokenizer, folder), asyncio.to_thread(_wait, starting)
            )
        except BaseException:
            starting.kill()
            raise
        try:
            tokenizer.require_vocabulary(worker.vocab_size)
            print(worker.plan.describe(), file=sys.stderr, flush=True)
            yield Backend(worker.client, tokenizer, names, worker.plan.max_model_len)
        finally:
            await asyncio.to_thread(worker.stop)

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
    if not all(key and all("!" <= c <= "~" for c in key) for key in config.api_key):
        raise ConfigError("--api-key: a key must not be empty, and holds printable ASCII characters without blanks.")
    if config.root_path and (not config.root_path.startswith("/") or config.root_path.endswith("/")):
        raise ConfigError(f"--root-path must look like /prefix, got {config.root_path}.")


def _load_tokenizer(folder: Path):
    from ventoux.text.tokenizer import Tokenizer

    return Tokenizer.from_file(folder)


def _wait(starting):
    with loading_bar("loading weights") as progress:
        return starting.wait(progress)
