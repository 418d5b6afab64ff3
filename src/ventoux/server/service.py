"""What all routes share: the engine, the tokenizer, who is served, and how many requests may be in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ventoux.config import ServerConfig
from ventoux.engine.client import EngineClient
from ventoux.engine.request import EngineStats
from ventoux.errors import EngineDeadError, ModelNotFoundError
from ventoux.server.errors import ApiError
from ventoux.server.media import MediaFetcher
from ventoux.server.metrics import Metrics
from ventoux.server.response_store import ResponseStore
from ventoux.text.grammar import GrammarCompiler
from ventoux.text.limit import PromptLimit
from ventoux.text.tokenizer import Tokenizer

MAX_DECODING_REQUESTS = 4
# Preprocessed pixels that wait for the engine, over all requests; an image of full size takes 28 MB.
MAX_PIXEL_BYTES = 2 * 2**30
# /tokenize counts texts that are too long, so that clients can shorten them; up to so many times the length.
COUNTED_LENGTHS = 4
# Such counts at a time: they take seconds, and the threads that they run in are those of prompts.
MAX_COUNTING_REQUESTS = 2


@dataclass(eq=False)
class Place:
    """What one request holds; given back at the end of its answer, whatever becomes of it.

    `share`: how much of what may wait for the engine it may fill up.
    """

    share: float = 1.0
    pixel_bytes: int = 0
    queued_tokens: int = 0


class Service:
    """The server's state; lives in one event loop. `drain` and `abort_all` are how it ends."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        served_names: Sequence[str],
        max_model_len: int,
        config: ServerConfig,
        media: MediaFetcher,
        metrics: Metrics,
        responses: ResponseStore | None,
    ):
        """`responses`: None: none are kept."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.served_names = tuple(served_names)
        self.max_model_len = max_model_len
        self.config = config
        self.media = media
        self.metrics = metrics
        self.responses = responses
        self.grammars = GrammarCompiler(tokenizer)
        # A decoded image takes up to 200 MB: only so many requests may hold theirs at a time.
        self.image_slots = asyncio.Semaphore(MAX_DECODING_REQUESTS)
        self.counting_slots = asyncio.Semaphore(MAX_COUNTING_REQUESTS)
        self.prompt_limit = PromptLimit.for_answer(max_model_len)
        self.counting_limit = PromptLimit(max_model_len, COUNTED_LENGTHS * max_model_len)
        self.created = int(time.time())
        self.draining = False
        self.num_in_flight = 0
        self.pixel_bytes = 0
        self.queued_tokens = 0
        # Ids of requests that the engine is working on.
        self.running: set[str] = set()

    @contextmanager
    def admitted(self) -> Iterator[Place]:
        """Counts one request as in flight. Raises ApiError 503 if the server is full or shutting down."""
        if self.draining:
            raise shutting_down()
        if self.num_in_flight >= self.config.max_queued_requests:
            raise ApiError(503, "Too many requests are in flight; try again later.", code="overloaded")
        with self.held() as place:
            yield place

    @contextmanager
    def held(self) -> Iterator[Place]:
        """As `admitted`, for what an admitted request leaves behind."""
        self.num_in_flight += 1
        place = Place()
        try:
            yield place
        finally:
            self.release(place)
            self.num_in_flight -= 1

    def release(self, place: Place) -> None:
        """All that a request still holds."""
        self.release_pixels(place)
        self.release_tokens(place, place.queued_tokens)

    def hold_pixels(self, place: Place, num_bytes: int) -> None:
        """Counts pixels as waiting for the engine. Raises ApiError 503 if too many others wait already.

        A request alone is always taken, and may ask with 0 bytes before it does the work.
        """
        if self.pixel_bytes and self.pixel_bytes + num_bytes >= MAX_PIXEL_BYTES * place.share:
            raise ApiError(503, "Too many images are waiting; try again later.", code="overloaded")
        place.pixel_bytes += num_bytes
        self.pixel_bytes += num_bytes

    def release_pixels(self, place: Place) -> None:
        """The engine has encoded them, or never will."""
        self.pixel_bytes -= place.pixel_bytes
        place.pixel_bytes = 0

    def hold_tokens(self, place: Place, count: int) -> None:
        """Counts prompt tokens as waiting for the engine. Raises ApiError 503 if too many others wait already.

        A request alone is always taken.
        """
        if self.queued_tokens and self.queued_tokens + count > self.config.max_queued_tokens * place.share:
            raise ApiError(503, "Too many prompt tokens are waiting; try again later.", code="overloaded")
        place.queued_tokens += count
        self.queued_tokens += count

    def release_tokens(self, place: Place, count: int) -> None:
        """So many of them have been computed."""
        self.queued_tokens -= count
        place.queued_tokens -= count

    def model(self, name: str | None) -> str:
        """The served name that a request means. Raises ModelNotFoundError."""
        if name is None:
            return self.served_names[0]
        if name not in self.served_names:
            raise ModelNotFoundError(name[:200], self.served_names)
        return name

    def check_running(self) -> None:
        """Raises ApiError 503 if a request that comes now would not be taken."""
        self._stats()

    def check_ready(self) -> None:
        """Raises ApiError 503 if no token can move now.

        That may be a matter of a moment, and a request that comes now would be answered after it.
        """
        if self._stats().is_silent:
            raise ApiError(503, "The engine gives no sign of life.", code="engine_silent")

    def _stats(self) -> EngineStats:
        if self.draining:
            raise shutting_down()
        try:
            return self.engine.stats()
        except EngineDeadError:
            raise ApiError(503, "The engine is not running.", code="engine_dead") from None

    def drain(self) -> None:
        """From now on new requests are answered 503; running ones go on."""
        self.draining = True

    def abort_all(self) -> None:
        """Ends what still runs: streams get an error event, complete answers an error."""
        for request_id in tuple(self.running):
            self.engine.abort(request_id)


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down.", code="shutting_down")
