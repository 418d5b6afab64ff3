"""Responses that nobody waits for: they are worked on until they end, and looked at, or cancelled, by their id."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any

from ventoux.errors import InvalidRequestError
from ventoux.server.context import current
from ventoux.server.errors import ApiError
from ventoux.server.response_store import StoredResponse
from ventoux.server.responses import responses_events
from ventoux.server.responses_request import ResponsesJob, is_unfinished, prepare_responses
from ventoux.server.responses_schemas import ResponsesRequest
from ventoux.server.service import Service

logger = logging.getLogger(__name__)


class Background:
    """The responses of this server that are being worked on; each is in flight like a request."""

    def __init__(self, service: Service):
        self._service = service
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._forgotten: set[str] = set()

    async def start(self, body: ResponsesRequest) -> ResponsesJob:
        """Returns once the request is known to be good, and is kept.

        Raises:
            InvalidRequestError, ModelNotFoundError, ApiError: as for a response that is waited for.
        """
        if self._service.responses is None or body.store is False:
            raise InvalidRequestError(
                "background needs a response that is stored.", param="background", code="unsupported_parameter"
            )
        if body.stream:
            raise InvalidRequestError("background and stream exclude each other here.", param="stream")
        self._service.check_running()
        begun: asyncio.Future[ResponsesJob] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(body, begun))
        try:
            job = await begun
        except BaseException:
            task.cancel()
            raise
        return job

    def shown(self, stored: StoredResponse) -> dict[str, Any]:
        """The response as it is now. One that was begun, and is not worked on, was cut off with its server."""
        response = stored.response
        if not is_unfinished(response):
            return response
        if response["id"] in self._tasks:
            return {**response, "status": "in_progress"}
        error = {"code": "server_error", "message": "The server stopped before this response was complete."}
        return {**response, "status": "failed", "error": error}

    async def cancel(self, response_id: str) -> None:
        """Ends the work on a response, if there is any; what is complete of its output is kept."""
        if (task := self._tasks.get(response_id)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def forget(self, response_id: str) -> None:
        """Ends the work on a response without keeping anything of it."""
        if response_id in self._tasks:
            self._forgotten.add(response_id)
            await self.cancel(response_id)

    async def close(self) -> None:
        for response_id in list(self._tasks):
            await self.cancel(response_id)

    async def _run(self, body: ResponsesRequest, begun: asyncio.Future[ResponsesJob]) -> None:
        try:
            # The request that asks for it was admitted, and holds places of its own until it is answered.
            with self._service.held() as place, current().hold():
                job = await prepare_responses(self._service, body, place)
                job.frame["status"] = "queued"
                if not await self._keep(job, job.frame):
                    raise ApiError(503, "The store of responses cannot be used now.", code="store_unavailable")
                task = asyncio.current_task()
                assert task is not None
                self._tasks[job.frame["id"]] = task
                begun.set_result(job)
                await self._answer(job)
        except Exception as e:
            if begun.done():
                logger.exception("a response in the background failed")
            else:
                begun.set_exception(e)

    async def _answer(self, job: ResponsesJob) -> None:
        response_id, output = job.frame["id"], []
        try:
            async with aclosing(responses_events(self._service, job)) as events:
                # The last event keeps the response, whatever became of it.
                async for event in events:
                    if event["type"] == "response.output_item.done":
                        output.append(event["item"])
        except asyncio.CancelledError:
            if response_id not in self._forgotten:
                await self._keep(job, {**job.frame, "status": "cancelled", "output": output})
            raise
        finally:
            self._tasks.pop(response_id, None)
            self._forgotten.discard(response_id)

    async def _keep(self, job: ResponsesJob, response: dict[str, Any]) -> bool:
        assert self._service.responses is not None
        return await self._service.responses.put(StoredResponse(response, job.items))
