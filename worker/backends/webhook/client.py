"""Signed requests to a provisioner, and their answers: bounded in time and size, no redirect followed.

Each call has a connection of its own: on one that was kept, a provisioner that has just closed it could not be told
from one that died at work. Proxies and passwords of the environment are not used.
"""

import datetime as dt
import json
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from outbox.rows import Json
from worker.backends.webhook.endpoint import Endpoint

LARGEST = 1 << 20  # bytes of an answer; a page of 1,000 objects has some 100 kB
SERVER_HEADER = "X-Deprovisioner-Server"
FENCE_HEADER = "X-Deprovisioner-Fence"
KEY_HEADER = "Idempotency-Key"
CLOCK_TOLERANCE = dt.timedelta(minutes=5)  # of Standard Webhooks
LONGEST_PAUSE = 3600.0  # seconds; a longer `Retry-After` counts as this


@dataclass(frozen=True)
class Answer:
    """What came back. `body` is None where it is no JSON object; `server` is who says that it answered."""

    status: int
    body: Json | None
    server: str | None = None
    location: str | None = None
    retry_after: float | None = None  # seconds
    date: dt.datetime | None = None
    url: httpx.URL = field(default_factory=httpx.URL)


class NoAnswer(Exception):
    """No answer came that can be read. `sent`: the request may have arrived, and been acted upon."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Client:
    """The one way to the provisioner. Threads share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._tls = endpoint.tls()

    def send(self, url: httpx.URL, body: Json | None, key: str | None = None, fence: int | None = None) -> Answer:
        """POST a body, or GET where there is none. Raises NoAnswer, whose words have nothing of what was sent."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = self.signed(content, key or str(uuid.uuid4()))
        headers |= {} if key is None else {KEY_HEADER: key}
        headers |= {} if fence is None else {FENCE_HEADER: str(fence)}
        headers |= {} if body is None else {"Content-Type": "application/json"}
        method = "GET" if body is None else "POST"
        limits = httpx.Limits(max_keepalive_connections=0)
        timeout = self.endpoint.timeout
        with (
            _deadline(timeout) as on_event,
            _named(timeout),
            httpx.Client(verify=self._tls, trust_env=False, limits=limits, timeout=timeout) as client,
            client.stream(
                method, url, content=content, headers=headers, extensions={"trace": on_event}, follow_redirects=False
            ) as answer,
        ):
            return _read(answer, url)

    def signed(self, content: bytes, id: str) -> dict[str, str]:
        """The headers of Standard Webhooks: a signature by each secret."""
        now = dt.datetime.now(dt.UTC)
        signatures = [signer.sign(id, now, content.decode()) for signer in self.endpoint.signers]
        return {
            "webhook-id": id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
            "User-Agent": "deprovisioner",
            "Accept-Encoding": "identity",  # a small body that unpacks to a large one is no answer either
        }


def _read(answer: httpx.Response, url: httpx.URL) -> Answer:
    read = bytearray()
    for piece in answer.iter_raw(65_536):
        read += piece
        if len(read) > LARGEST:
            raise NoAnswer(f"its answer ({answer.status_code}) has more than {LARGEST} bytes", sent=True)
    try:
        body = json.loads(read)
    except (ValueError, RecursionError):
        body = None
    return Answer(
        answer.status_code,
        body if isinstance(body, dict) else None,
        answer.headers.get(SERVER_HEADER),
        answer.headers.get("Location"),
        _pause(answer.headers),
        _date(answer.headers.get("Date")),
        url,
    )


def _pause(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds; it may be a date, by the provisioner's clock."""
    said = headers.get("Retry-After", "")
    if said.isascii() and said.isdigit():
        return min(float(said[:9]), LONGEST_PAUSE)
    until, now = _date(said), _date(headers.get("Date")) or dt.datetime.now(dt.UTC)
    return None if until is None else min(max((until - now).total_seconds(), 0.0), LONGEST_PAUSE)


def _date(said: str | None) -> dt.datetime | None:
    try:
        found = parsedate_to_datetime(said or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


@contextmanager
def _named(timeout: float) -> Iterator[None]:
    """Each error of the connection as NoAnswer. The library's own words may hold what a server wrote."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
        raise NoAnswer(f"it cannot be reached ({_kind(error)})", sent=False) from None
    except httpx.TimeoutException:
        raise NoAnswer(f"it did not answer within {timeout} s", sent=True) from None
    except httpx.HTTPError as error:
        raise NoAnswer(f"the connection broke ({_kind(error)})", sent=True) from None


def _kind(error: Exception) -> str:
    """What the operating system or TLS called it: `Connection refused`, `CERTIFICATE_VERIFY_FAILED`."""
    cause: BaseException | None = error
    while cause is not None:
        if reason := getattr(cause, "reason", None) or getattr(cause, "strerror", None):
            return str(reason)[:100]
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


@contextmanager
def _deadline(seconds: float) -> Iterator[Any]:
    """End the whole call after this time, however slowly its answer drips; what it gives is told of the connection."""
    opened: list[socket.socket] = []
    passed = threading.Event()

    def end() -> None:
        passed.set()
        for each in opened[-1:]:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return

    def on_event(name: str, info: Mapping[str, Any]) -> None:
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            opened.append(info["return_value"].get_extra_info("socket"))
            if passed.is_set():
                end()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield on_event
    except NoAnswer as error:
        if not (passed.is_set() and error.sent):
            raise
    finally:
        timer.cancel()
    if passed.is_set():  # what was read may be a part: an answer without a length ends where its connection does
        raise NoAnswer(f"it did not answer within {seconds} s", sent=True)
