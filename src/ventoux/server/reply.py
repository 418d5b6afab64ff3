"""How a route that generates answers: when the engine is there, as one object or as events, until the client leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ventoux.server.service import Service
from ventoux.server.sse import OPENAI, EventStream, Framing, unless_disconnected


class Job(Protocol):
    @property
    def headers(self) -> dict[str, str]: ...


J = TypeVar("J", bound=Job)


def json_response(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")


async def reply(
    request: Request,
    service: Service,
    prepare: Callable[[], Awaitable[J]],
    stream: bool | None,
    events: Callable[[Service, J], AsyncGenerator[dict[str, Any], None]],
    whole: Callable[[Service, J], Awaitable[dict[str, Any]]],
    framing: Framing = OPENAI,
) -> Response:
    """Prepares the job once the engine is known to run; then streams `events` of it, or waits for `whole`."""

    async def answer() -> Response:
        service.check_running()
        job = await prepare()
        if stream:
            return EventStream(events(service, job), job.headers, framing)
        return json_response(await whole(service, job), job.headers)

    return await unless_disconnected(request.receive, answer())
