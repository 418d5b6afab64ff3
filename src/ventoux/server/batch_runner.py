"""Works batches off, one after the other, below the requests that somebody waits for.

A line is asked for what a request of its own would be asked for, and its answer is the same. It waits while requests
wait for a place in the engine, and gives its place up to them: it is then computed anew. What has an answer is never
computed again, also not by a server that is started after this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from ventoux.errors import EngineDeadError
from ventoux.server.batch_lines import read_lines
from ventoux.server.batch_store import LEASE, BatchStore, Line, result_line
from ventoux.server.body import decode_object
from ventoux.server.chat import chat_answer
from ventoux.server.chat_request import prepare_chat
from ventoux.server.completions import completion_answer, prepare_completion
from ventoux.server.errors import ApiError, from_engine, to_api_error
from ventoux.server.file_store import FileStore, StoreFullError
from ventoux.server.generate import new_request_id
from ventoux.server.responses import responses_answer
from ventoux.server.responses_request import prepare_responses
from ventoux.server.responses_schemas import ResponsesRequest
from ventoux.server.schemas import ChatRequest, CompletionRequest
from ventoux.server.service import Place, Service

logger = logging.getLogger(__name__)

# Lines of a batch that are answered at the same time: a quarter of the engine's default, and one beside live requests.
MAX_RUNNING = 32
MAX_RUNNING_BESIDE_OTHERS = 1
# A line that so many engines died of while it was answered is not tried again.
MAX_DEATHS = 2
# Of the prompt tokens and pixels that may wait for the engine, lines may be so many: requests find room beside them.
QUEUE_SHARE = 0.5
# Seconds between two looks at what else goes on, and after an error of the store or the engine.
TICK = 0.1
PAUSE = 1.0


class Endpoint(NamedTuple):
    schema: type[BaseModel]
    prepare: Callable[[Service, Any, Place], Awaitable[Any]]
    whole: Callable[[Service, Any], Awaitable[dict[str, Any]]]


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(ChatRequest, prepare_chat, chat_answer),
    "/v1/completions": Endpoint(CompletionRequest, prepare_completion, completion_answer),
    "/v1/responses": Endpoint(ResponsesRequest, prepare_responses, responses_answer),
}


class BatchRunner:
    """`run` works until it is cancelled; `wake` tells it that there is something new."""

    def __init__(self, service: Service, files: FileStore):
        self._service = service
        self._files = files
        self.store = BatchStore(files)
        self._owner = secrets.token_hex(8)
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    async def run(self) -> None:
        pause = PAUSE
        try:
            while True:
                self._news.clear()
                try:
                    if await self._work_once():
                        pause = PAUSE
                        continue
                except Exception as e:
                    # A full disk, say. The batch stays as it is, and is taken up again.
                    logger.error("batches cannot go on: %s", to_api_error(e).message)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LEASE)
                    continue
                # Nothing to do. A batch of a server that died becomes free when its lease ends.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEASE / 5):
                        await self._news.wait()
        finally:
            if self._files.database.exists:
                with contextlib.suppress(ApiError):
                    await self.store.release(self._owner)

    async def _work_once(self) -> bool:
        """Works off one batch; False if there is none. A server whose users want no batches makes no file for them."""
        if not self._files.database.exists:
            return False
        batch = await self.store.claim(self._owner, self._service.served_names[0])
        if batch is not None:
            await self._work(batch)
        return batch is not None

    async def _work(self, batch: dict[str, Any]) -> None:
        batch_id, status = batch["id"], batch["status"]
        logger.info("%s: goes on as %s", batch_id, status)
        if status == "validating":
            if not await self._validate(batch):
                return
            status = await self.store.renew(batch_id, self._owner)
        outcome = "cancelled" if status == "cancelling" else "completed"
        if status == "in_progress":
            outcome = await self._answer_lines(batch)
        now = int(time.time())
        if outcome == "completed":
            await self.store.move(batch_id, ("in_progress",), "finalizing", finalizing_at=now)
        await self.store.finish(batch_id, outcome, _unanswered_error(outcome), **{f"{outcome}_at": now})
        logger.info("%s: %s", batch_id, outcome)

    async def _validate(self, batch: dict[str, Any]) -> bool:
        content = await self._files.read(batch["input_file_id"])
        if content is None:
            errors = [{"code": "file_not_found", "line": None, "message": "The input file is gone.", "param": None}]
        else:
            lines, errors = await asyncio.to_thread(read_lines, content, batch["endpoint"])
            if not errors:
                try:
                    await self.store.begin(batch["id"], lines)
                    return True
                except StoreFullError:
                    errors = [_STORE_FULL]
        found = {"object": "list", "data": errors}
        await self.store.finish(batch["id"], "failed", None, errors=found, failed_at=int(time.time()))
        return False

    async def _answer_lines(self, batch: dict[str, Any]) -> str:
        """Answers all lines that have none; returns how that ended: completed, cancelled, expired or failed."""
        work = _Lines(self._service, self.store, batch, await self.store.unanswered(batch["id"]))
        renewed = time.monotonic()
        try:
            while not work.is_done:
                if time.time() > batch["expires_at"]:
                    return "expired"
                await work.step()
                if self._news.is_set() or time.monotonic() - renewed > LEASE / 5:
                    self._news.clear()
                    renewed = time.monotonic()
                    if await self.store.renew(batch["id"], self._owner) == "cancelling":
                        return "cancelled"
            return "completed"
        except StoreFullError:
            await self.store.move(
                batch["id"], ("in_progress",), "in_progress", errors={"object": "list", "data": [_STORE_FULL]}
            )
            return "failed"
        finally:
            await work.stop()


_STORE_FULL = {
    "code": "storage_full",
    "line": None,
    "message": "There is no room for the results: see --max-stored-file-bytes.",
    "param": None,
}


def _unanswered_error(outcome: str) -> dict[str, Any] | None:
    """What the file of errors says of lines that have no answer at the end."""
    messages = {
        "expired": "This request was not answered within the completion window.",
        "cancelled": "The batch was cancelled before this request was answered.",
        "failed": "There was no room for the result of this request.",
    }
    return {"code": f"batch_{outcome}", "message": messages[outcome]} if outcome in messages else None


class _Lines:
    """The lines of one batch that have no answer: those that wait, the first one first, and those being answered."""

    def __init__(self, service: Service, store: BatchStore, batch: dict[str, Any], numbers: list[int]):
        self._service = service
        self._store = store
        self._batch_id = batch["id"]
        self._url = batch["endpoint"]
        self._endpoint = ENDPOINTS[self._url]
        self._waiting = numbers  # sorted, which is a heap
        self._running: dict[asyncio.Task[bool], int] = {}
        # Lines that were being answered when an engine died, with how often. They are tried again one by one: otherwise
        # the innocent among them would be taken for what kills it.
        self._deaths: dict[int, int] = {}
        self._not_before = 0.0

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    async def step(self) -> None:
        """Starts what there is room for, and waits a little. Raises StoreFullError."""
        room = self._room()
        while self._waiting and len(self._running) < room:
            number = heapq.heappop(self._waiting)
            self._running[asyncio.create_task(self._answer(number))] = number
        if self._running and room == 0:
            # The youngest has the least to lose.
            task = next(reversed(self._running))
            task.cancel()
        if not self._running:
            await asyncio.sleep(TICK)
            return
        done, _ = await asyncio.wait(self._running, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            number = self._running.pop(task)
            if task.cancelled() or not task.result():
                heapq.heappush(self._waiting, number)

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _room(self) -> int:
        """How many lines may be answered now."""
        if self._service.draining or time.monotonic() < self._not_before:
            return len(self._running)
        try:
            stats = self._service.engine.stats()
        except EngineDeadError:
            return len(self._running)
        beside_others = self._service.num_in_flight > 0
        if beside_others and stats.num_waiting:
            return 0
        if self._deaths:
            return 1
        return max(MAX_RUNNING_BESIDE_OTHERS, len(self._running)) if beside_others else MAX_RUNNING

    async def _answer(self, number: int) -> bool:
        """Returns whether the line has its answer now; if not, the server cannot answer at the moment."""
        line = await self._store.line(self._batch_id, number)
        request_id = new_request_id("req-")
        try:
            status, body = 200, await self._ask(line)
        except Exception as e:
            error = to_api_error(e)
            if error.code == "engine_dead":
                self._deaths[number] = self._deaths.get(number, 0) + 1
                if self._deaths[number] >= MAX_DEATHS:
                    error = from_engine(None, "engine_crashed")
            if error.status == 503:
                self._not_before = time.monotonic() + PAUSE
                return False
            status, body = error.status, error.body()
        response = {"status_code": status, "request_id": request_id, "body": body}
        result = result_line(line.custom_id, response, None)
        await self._store.answer(self._batch_id, number, result, failed=status != 200)
        self._deaths.pop(number, None)
        return True

    async def _ask(self, line: Line) -> dict[str, Any]:
        request = self._endpoint.schema.model_validate(decode_object(line.body))
        for name in ("stream", "background"):
            if getattr(request, name, None):
                message = f"{name} is not possible in a batch."
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        if isinstance(request, ResponsesRequest) and request.store is None:
            # What a batch answers is in its file; a large one would push everybody's kept responses out of the store.
            request.store = False
        # Not counted as in flight: a server that shuts down does not wait for batches.
        place = Place(share=QUEUE_SHARE)
        try:
            job = await self._endpoint.prepare(self._service, request, place)
            return await self._endpoint.whole(self._service, job)
        finally:
            self._service.release(place)
