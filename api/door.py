"""The bounds of a connection: what a client may send before a token is looked at, and how long it may take for it.

uvicorn has no limit on headers and none on the time in which a request arrives. `deprovisioner api` serves with this
protocol. There is no limit for each address: behind a proxy all connections come from one; the proxy may set one.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import Problem, busy
from outbox.logs import log

# Ten times what browsers and proxies send. It counts for the trailers of a chunked body too.
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# From the first byte of a request to its last: 64 KiB at 5 KiB a second. A new connection has as long for its first.
ARRIVAL_SECONDS = 15.0
# For a client that reads its answer slowly, or not at all. The longest answers have some hundred kilobytes.
READ_SECONDS = 60.0
# Below the 1,024 files that a process may open by default. Beyond it, the longest wait for a client's bytes is ended.
MAX_CONNECTIONS = 512
MAX_PIPELINED = 16
QUIET_SECONDS = 60  # between two lines of the log that say that all connections are taken


class Door(HttpToolsProtocol):
    """uvicorn's protocol for one connection, with these bounds. What it refuses is a problem like any other."""

    # The connections of this process that wait for bytes of their client, the longest wait first.
    _waiting: ClassVar[dict["Door", None]] = {}
    _quiet_until: ClassVar[float] = 0.0
    _arrival: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _ended = False
    _unread = 0  # bytes of headers, trailers and the like that are in the parser's memory, and in no request yet
    _progress = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; when there are too many, end one for it."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._ended = True
        self._request_arrived()
        self._stop_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless this connection was ended."""
        if self._ended:
            return
        self._progress = False
        super().data_received(data)
        if not self._progress:
            self._unread += len(data)
            if self._unread > MAX_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if not self._ended:
            self._await_request()

    def on_headers_complete(self) -> None:
        """Begin to answer the request, when its head is within bounds."""
        self._advance()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse_head()
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._end()
        if not self._ended:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._advance()
        if not self._ended:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        self._advance()
        self._request_arrived()
        if not self._ended:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written; the connection may be closed while it is idle."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self._waiting[self] = None

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer is written: it may stand still for a while."""
        super().pause_writing()
        self._allow_stall()

    def resume_writing(self) -> None:
        """The client has read."""
        if not self._ended:
            self._stop_stall()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        self._end()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Refuse what is not HTTP."""
        self._refuse(Problem(400, "malformed_request", "this is not valid HTTP; the connection is closed"))

    def _advance(self) -> None:
        self._progress, self._unread = True, 0

    def _await_request(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(ARRIVAL_SECONDS, self._refuse_slow)
            self._waiting[self] = None

    def _request_arrived(self) -> None:
        self._waiting.pop(self, None)
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _allow_stall(self) -> None:
        self._stop_stall()
        self._stall = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _make_room(self) -> None:
        if time.monotonic() > Door._quiet_until:
            Door._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("connections_full", limit=MAX_CONNECTIONS)
        oldest = next(iter(self._waiting))
        if oldest is self:
            self._refuse(busy("all connections are taken; ask again"))
        else:
            oldest._end()

    def _refuse_head(self) -> None:
        detail = f"the headers are larger than {MAX_HEAD_BYTES} bytes, or more than {MAX_HEADERS}; send less"
        self._refuse(Problem(431, "headers_too_large", detail))

    def _refuse_slow(self) -> None:
        detail = f"the request did not arrive within {ARRIVAL_SECONDS:g} s; send it again"
        self._refuse(Problem(408, "request_timeout", detail))

    def _refuse(self, problem: Problem) -> None:
        """Answer the request that is arriving, unless an earlier one is being answered, and end the connection."""
        cycle = self.cycle
        arriving = cycle is None or (not cycle.response_started if cycle.more_body else cycle.response_complete)
        if arriving and not self.pipeline and not self._ended:
            self.transport.write(_as_http(problem))
        self._end()

    def _end(self) -> None:
        """Close the connection, at the latest when the client has not read its answer for a while."""
        self._ended = True
        self._request_arrived()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._allow_stall()


def _as_http(problem: Problem) -> bytes:
    response = problem.response()
    headers: list[Any] = [*response.raw_headers, (b"connection", b"close")]
    head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    line = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n".encode()
    return line + head + b"\r\n" + response.body
