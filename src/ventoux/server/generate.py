"""One engine request, read to its end: outputs become answer events, with timings, errors and aborts taken care of."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec

from ventoux.engine.request import Request
from ventoux.server.errors import ApiError, from_engine
from ventoux.server.service import Place, Service, shutting_down
from ventoux.text.answer import AnswerEvent, AnswerStream

T = TypeVar("T")


def new_request_id(prefix: str) -> str:
    """`prefix` with its separator: OpenAI's ids have a dash, those of its Responses and Anthropic's an underscore."""
    return prefix + secrets.token_hex(16)


async def generate(
    service: Service, request: Request, streams: Sequence[AnswerStream], place: Place | None = None
) -> AsyncGenerator[tuple[int, list[AnswerEvent]], None]:
    """Submits a request and yields (index of the sequence, its new events) until all of `streams` have finished.

    The last item of a sequence may have no events; its stream then has a `finish_reason`. Closing this generator
    aborts the request. The images go to the engine: `request` has none afterwards, and `place` no pixels once they
    are encoded.

    Raises:
        ApiError: the engine gave up on a sequence, or the server is shutting down.
        EngineDeadError: the engine is gone.
    """
    timer = service.metrics.timer(len(request.prompt_token_ids))
    reason, is_first = "abort", True
    service.running.add(request.request_id)
    sent = msgspec.structs.replace(request)
    request.images = []
    outputs = service.engine.submit(sent)
    del sent
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if is_first and place is not None:
                    # The prompt has been computed. Images that were found in the cache keep their pixels to the end.
                    if not output.num_cached_tokens:
                        service.release_pixels(place)
                    service.release_tokens(place, min(len(request.prompt_token_ids), place.queued_tokens))
                is_first = False
                timer.started(output.queue_seconds)
                stream = streams[output.index]
                if stream.finish_reason is not None:
                    continue
                if output.finish_reason == "error":
                    raise from_engine(output.error, output.error_code)
                if output.finish_reason == "abort":
                    # Only a shutdown aborts from outside: our own aborts have ended the stream before.
                    raise shutting_down()
                before = stream.num_tokens
                events = stream.push(output)
                timer.tokens(stream.num_tokens - before)
                if stream.must_abort:
                    service.engine.abort(request.request_id, output.index)
                yield output.index, events
                if all(s.finish_reason is not None for s in streams):
                    reason = streams[0].finish_reason or "stop"
                    return
        raise ApiError(500, "The engine ended this request without an answer.", code="engine_error")
    except Exception:
        reason = "abort" if service.draining else "error"
        raise
    finally:
        service.running.discard(request.request_id)
        timer.finish(reason, max(s.num_cached_tokens for s in streams), max(s.num_tokens for s in streams))


async def merge(iterators: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yields (index of the iterator, item) as items come. The first failure ends all of them."""
    # One slot per iterator: a slow reader holds the iterators back instead of filling memory.
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(len(iterators))

    async def pump(i: int, iterator: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(iterator):
                async for item in iterator:
                    await queue.put((i, item))
            await queue.put(None)
        except Exception as e:
            await queue.put(e)

    tasks = [asyncio.create_task(pump(i, iterator)) for i, iterator in enumerate(iterators)]
    try:
        for _ in tasks:
            while (got := await queue.get()) is not None:
                if isinstance(got, BaseException):
                    raise got
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
