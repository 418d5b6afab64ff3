"""HTTP on one connection: uvicorn's, with a limit on the time that headers take, and its refusals in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import secrets

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from ventoux.server.logs import RequestLine

logger = logging.getLogger(__name__)
# From a request's first byte to the end of its headers. Clients need milliseconds; who drips a byte now and then would
# otherwise hold a connection for ever.
HEADER_TIMEOUT = 30.0
# A client that leaves 64 KiB lying for so long counts as gone. Closing the connection would wait for it to take them.
WRITE_TIMEOUT = 60.0


class Protocol(H11Protocol):
    """Beside uvicorn's own timer, which closes idle connections, one for requests that have begun, and one for answers
    that are not taken."""

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn counts from the end of a request; a connection without any would stay open for ever.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_write_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
        elif self._header_timer is None:
            # Not started anew by the next bytes: it is the whole of the headers that has to arrive.
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self._headers_late)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers in plain text."""
        self._refuse(400, "This is no valid HTTP request.", code="invalid_request")

    def _headers_late(self) -> None:
        self._header_timer = None
        self._refuse(408, "The request's headers did not arrive in time.", code="timeout")

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Answers and hangs up. By hand: a server starts with this module, and server/errors.py imports slowly."""
        self._stop_header_timer()
        request_id = f"req-{secrets.token_hex(16)}"
        client = self.client[0] if self.client else None
        logger.info(RequestLine({"request_id": request_id, "client": client, "status": status, "code": code}))
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = msgspec.json.encode({"error": error})
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            ("x-request-id", request_id),
        ]
        reason = STATUS_PHRASES[status]
        try:
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer has begun already, and cannot be taken back
        self.transport.close()
