"""What a client without a token can do to the API: cost it no memory, hold no place in it, learn no address from it."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api import door
from deprovisioner.up.servers import free_port
from tests.support.api import problem
from tests.support.processes import System, client
from tests.support.witness import eventually, slowness

MEGABYTE = 1 << 20
GET = b"GET /v1/resources HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/resources HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


def connect(url: str) -> socket.socket:
    """A plain connection to the API."""
    where = httpx.URL(url)
    return socket.create_connection((where.host, where.port or 80), timeout=10)


def send(url: str, first: bytes, again: Iterable[bytes]) -> bytes:
    """Send `first`, then all of `again` as long as the API reads it; what it answers."""
    with connect(url) as client:
        with contextlib.suppress(OSError):
            client.sendall(first)
            for each in again:
                client.sendall(each)
            client.settimeout(1)
        return read(client)


def read(client: socket.socket) -> bytes:
    """All that the API says until it closes the connection, or is silent."""
    said = bytearray()
    with contextlib.suppress(OSError):
        while part := client.recv(65536):
            said += part
    return bytes(said)


def taken(client: socket.socket, data: bytes) -> bool:
    """Whether the connection takes more."""
    try:
        client.sendall(data)
    except OSError:
        return False
    return True


def closed(client: socket.socket) -> bool:
    """Whether the API closes the connection without a word."""
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False


def as_problem(said: bytes, status: int, code: str) -> None:
    assert said.startswith(b"HTTP/1.1 "), said
    head, _, body = said.partition(b"\r\n\r\n")
    answer = httpx.Response(int(head.split()[1]), headers=dict(_headers(head)), content=body)
    problem(answer, status, code)
    assert answer.headers["connection"] == "close"


def _headers(head: bytes) -> Iterator[tuple[str, str]]:
    for line in head.decode().splitlines()[1:]:
        name, _, value = line.partition(": ")
        yield name, value


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_hundred_megabytes_without_a_token_cost_the_api_no_memory(system: System, tenant: str) -> None:
    url = system.api()
    with client(url, tenant) as api:
        assert api.get("/v1/resources").status_code == 200
    before = peak(system.apis[0].pid)
    much = [b"x" * MEGABYTE] * 100
    many = [b"".join(b"x-%d: %s\r\n" % (n, b"y" * 80) for n in range(10_000))] * 100
    for name, first, again in [
        ("one value", GET + b"X: ", much),
        ("one name", GET, much),
        ("many headers", GET, many),
        ("the path", b"GET /", much),
        ("the method", b"", much),
        ("empty lines", b"", [b"\r\n" * MEGABYTE] * 50),
        ("one trailer", CHUNKED + b"0\r\nX: ", much),
        ("many trailers", CHUNKED + b"0\r\n", many),
        ("a chunk's extension", CHUNKED + b"2;x=", much),
        ("requests in a pipeline", b"", [(GET + b"\r\n") * 25_000] * 100),
        ("a body", POST + b"Content-Length: 104857600\r\n\r\n", much),
    ]:
        said = send(url, first, again)
        assert not said or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 503")), (name, said[:200])
        grown = peak(system.apis[0].pid) - before
        assert grown < 24 * MEGABYTE, f"{name}: {grown // MEGABYTE} MB more"
    as_problem(send(url, GET + b"X: " + b"y" * 40_000 + b"\r\n\r\n", []), 431, "headers_too_large")
    as_problem(send(url, GET + b"X: y\r\n" * 100 + b"\r\n", []), 431, "headers_too_large")
    as_problem(send(url, POST + b"Content-Length: ten\r\n\r\n", []), 400, "malformed_request")
    as_problem(send(url, b"BREW / HTTP/1.1\r\n\r\n", []), 400, "malformed_request")
    assert b"401" in send(url, GET + b"X: y\r\n" * 90 + b"\r\n", [])[:20]


def test_a_healthy_client_is_served_while_600_half_sent_requests_hang(system: System, tenant: str) -> None:
    url = system.api()
    halves = (b"", b"GET /", GET, POST + b"Content-Length: 9\r\n\r\n{", CHUNKED)
    with contextlib.ExitStack() as stack, client(url, tenant) as api:
        for n in range(600):
            hanging = stack.enter_context(connect(url))
            with contextlib.suppress(OSError):
                hanging.sendall(halves[n % len(halves)])
        for _ in range(20):
            with connect(url) as fresh:
                fresh.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert read(fresh).startswith(b"HTTP/1.1 200")
            answer = api.get("/v1/resources")
            assert answer.status_code == 200
            assert answer.elapsed.total_seconds() < 2 * slowness()
        log = system.apis[0].logs().decode()
        assert log.count("connections_full") == 1


class _Slow:
    """The door alone, in a thread, with times that a test can wait for; the application answers a long text."""

    def __init__(self) -> None:
        self.port = free_port()
        config = uvicorn.Config(
            self._app, port=self.port, http=door.Door, lifespan="off", log_config=None, interface="asgi3"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.port}"
        eventually(lambda: self._server.started)

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        size = 32 * MEGABYTE if scope["path"] == "/long" else 2
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Slow]:
    monkeypatch.setattr(door, "ARRIVAL_SECONDS", 0.5)
    monkeypatch.setattr(door, "READ_SECONDS", 0.5)
    made = _Slow()
    yield made
    made.stop()


def test_a_request_that_does_not_arrive_in_time_is_408_and_its_connection_is_closed(slow: _Slow) -> None:
    first = b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n"
    for half in (b"", b"GET /", GET, POST + b"Content-Length: 9\r\n\r\n{", CHUNKED, CHUNKED + b"0\r\nX: "):
        with connect(slow.url) as hanging:
            hanging.sendall(half)
            as_problem(read(hanging), 408, "request_timeout")
        with connect(slow.url) as again:  # on a connection that has served a request
            again.sendall(first)
            assert again.recv(65536).startswith(b"HTTP/1.1 200")
            again.sendall(half or b"G")
            as_problem(read(again), 408, "request_timeout")
    with connect(slow.url) as dripping:
        dripping.sendall(GET)
        eventually(lambda: not taken(dripping, b"x: y\r\n"), what="a byte now and then keeps no connection open")
    eventually(lambda: slow.connections() == 0, what="no connection is left")


def test_a_client_that_does_not_read_its_answer_loses_its_connection(
    slow: _Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "READ_SECONDS", 3 * slowness())
    with connect(slow.url) as deaf, connect(slow.url) as reading:
        for each in (deaf, reading):
            each.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert len(read(reading)) > 32 * MEGABYTE
        eventually(lambda: slow.connections() == 0, what="the connection is closed")


def test_a_full_process_ends_the_connection_whose_client_was_silent_longest(
    slow: _Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(door, "ARRIVAL_SECONDS", 30)
    with contextlib.ExitStack() as stack:
        oldest, newer = (stack.enter_context(connect(slow.url)) for _ in range(2))
        oldest.sendall(GET)
        eventually(lambda: slow.connections() == 2)
        with connect(slow.url) as third:
            third.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
            assert third.recv(65536).startswith(b"HTTP/1.1 200")
            assert closed(oldest)
            newer.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
            assert newer.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_stranger_learns_no_address_user_or_name_from_a_readiness_that_is_red(
    system: System, env: dict[str, str]
) -> None:
    port = str(free_port())
    gone = f"postgresql://boss:secret@127.0.0.1:{port}/ledger"
    url = system.api(DEPROVISIONER_DATABASE_URL=gone)
    with httpx.Client(base_url=url, timeout=30) as stranger:
        answer = stranger.get("/readyz")
        assert answer.status_code == 503
        for word in ("127.0.0.1", "localhost", "boss", "ledger", "secret", port):
            assert word not in answer.text
        assert "readiness_failed" in system.apis[0].logs().decode()
        for path in ("/v1/resources", "/openapi.json", "/healthz", "/nowhere"):
            assert "127.0.0.1" not in stranger.get(path).text
