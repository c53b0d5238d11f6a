"""Sessions with the management API of a RabbitMQ server: timeouts, bounded answers, and what each failure means."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import httpx

from outbox.errors import BackendError, OutOfService, Refused, SettingsError, Transient, Unavailable
from outbox.rows import Json

TIMEOUT_SECONDS = 10
LONGEST = 8 << 20  # bytes of one answer, or of one item of a list: a vhost with 30,000 connections fits
NEVER = frozenset({"/", "guest"})
OURS = "deprovisioner:"
_MAX_TEXT = 300
_PORTS = {"http": 15672, "https": 15671}
# Without statistics, which are five seconds behind: so a connection is found as soon as it is there. Lists of nodes and
# listeners lack what matters then.
FEW = {"disable_stats": "true"}
# 401 has these reasons where the login worked and a right is missing; any other reason is a login that failed.
_RIGHTS = ("Not administrator user", "Not management user", "Not monitor user", "User not authorised")


class DoubtError(Unavailable):
    """The server may have done what it was asked for: its answer did not come, or was that it failed half-way."""


class Server:
    """One server or cluster, reached by the URL of its management API; `protected`: vhosts and users never touched."""

    def __init__(self, dsn: str, protected: frozenset[str]) -> None:
        try:
            parts = urlsplit(dsn)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in _PORTS or not parts.hostname or not parts.username or not parts.password:
            raise SettingsError(
                "the dsn is not http(s)://user:password@host:15672, the address of the management API "
                "(it is not shown: it may hold a password)"
            )
        words = dict(parse_qsl(parts.query))
        if unknown := words.keys() - {"cafile"}:
            raise SettingsError(f"the dsn has an unknown parameter {sorted(unknown)[0]!r}; known: cafile")
        self.host = parts.hostname
        self.user = unquote(parts.username)
        self.protected = NEVER | protected | {self.user}
        self.encrypted = parts.scheme == "https"
        self.cafile = words.get("cafile")
        place = f"[{self.host}]" if ":" in self.host else self.host
        self._base = f"{parts.scheme}://{place}:{port or _PORTS[parts.scheme]}{parts.path.rstrip('/')}/api"
        self._account = (self.user, unquote(parts.password))

    def trust(self) -> ssl.SSLContext:
        """What a TLS server's certificate is verified by."""
        try:
            return ssl.create_default_context(cafile=self.cafile)
        except OSError as error:
            raise Unavailable(f"cannot read the cafile of the dsn: {error.strerror}") from error

    @contextmanager
    def connect(self) -> Iterator["Session"]:
        """A session; its errors come out as Unavailable, OutOfService, Refused or Transient."""
        verify: ssl.SSLContext | bool = self.trust() if self.encrypted else False
        # The environment's proxies and .netrc are not for this server.
        with httpx.Client(auth=self._account, timeout=TIMEOUT_SECONDS, verify=verify, trust_env=False) as client:
            yield Session(self, client, self._base)


class Session:
    """The calls that the backend makes. A name is encoded whole; `None` is RabbitMQ's own word that a thing is not."""

    def __init__(self, server: Server, client: httpx.Client, base: str) -> None:
        self.server = server
        self._client = client
        self._base = base

    def get(self, *path: str, **parameters: str) -> Any:
        """The JSON of a thing or list; None where RabbitMQ says that there is none."""
        return self._call("GET", path, parameters=parameters)

    def need(self, *path: str, **parameters: str) -> Any:
        """The JSON of what every server has. Raises Unavailable where it has not."""
        found = self.get(*path, **parameters)
        if found is None:
            raise Unavailable(f"there is no /{'/'.join(path)}: is this the management API?")
        return found

    def each(self, *path: str, columns: str) -> Iterator[Json]:
        """The items of a list, read one at a time: the answer is never whole in memory."""
        with self._sent("GET", path, parameters=FEW | {"columns": columns}) as answer:
            if answer.status_code != httpx.codes.OK:
                raise _meaning(answer, _text(answer), "GET", path)
            try:
                yield from _items(answer.iter_text())
            except ValueError as error:
                raise Transient(f"GET /{'/'.join(path)}: the answer is no JSON list: {error}") from None

    def put(self, *path: str, **body: Any) -> None:
        """Make or replace a thing; there is no condition that the server would check."""
        self._call("PUT", path, body=body)

    def delete(self, *path: str, seconds: float | None = None) -> bool:
        """Remove a thing; False where RabbitMQ says that there is none. Raises DoubtError where that is not known."""
        return self._call("DELETE", path, parameters=FEW, seconds=seconds) is not None

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        body: Json | None = None,
        parameters: dict[str, str] | None = None,
        seconds: float | None = None,
    ) -> Any:
        with self._sent(method, path, body=body, parameters=parameters, seconds=seconds) as answer:
            text = _text(answer)
        found = _json(text)
        match answer.status_code:
            case 200 if found is not None and method == "GET":
                return found
            case 201 | 204 if method != "GET":
                return {}
            # A proxy's 404 is no word of RabbitMQ's.
            case 404 if isinstance(found, dict) and found.get("error") == "Object Not Found" and method != "PUT":
                return None
            case _:
                raise _meaning(answer, text, method, path)

    @contextmanager
    def _sent(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        body: Json | None = None,
        parameters: dict[str, str] | None = None,
        seconds: float | None = None,
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=seconds or TIMEOUT_SECONDS)
        words: dict[str, Any] = {"params": parameters, "json": body, "timeout": timeout}
        words["headers"] = {"x-reason": "deprovisioner"}  # what a client reads whose connection is closed
        try:
            with self._client.stream(method, f"{self._base}/{encoded(path)}", **words) as answer:
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(f"no connection: {_line(str(error))}") from error
        except httpx.HTTPError as error:
            what = f"{method} /{'/'.join(path)}: {type(error).__name__}: {_line(str(error))}"
            raise (Unavailable if method == "GET" else DoubtError)(what) from error


def encoded(path: tuple[str, ...]) -> str:
    """A path whose parts are whole names. Raises Refused for names that an HTTP path cannot say.

    The server takes `%2E%2E` for the path's parent: GET /vhosts/%2E%2E/permissions answers for all vhosts.
    """
    for part in path:
        if part in ("", ".", ".."):
            raise Refused(f"the management API cannot address a vhost or user whose name is {part!r}")
    return "/".join(quote(part, safe="") for part in path)


def _meaning(answer: httpx.Response, text: str, method: str, path: tuple[str, ...]) -> BackendError:
    """What an answer means for the job: one bounded line. No answer of RabbitMQ quotes a request's password."""
    found = _json(text)
    reason = _line(str(found.get("reason", ""))) if isinstance(found, dict) else "(not RabbitMQ's words)"
    what = f"{method} /{'/'.join(path)}: {answer.status_code} {reason}"
    match answer.status_code:
        case 401 | 403 if reason.startswith(_RIGHTS):
            return Refused(f"the service's account lacks the tag `administrator`: {what}")
        case 401 | 403 | 407:
            return Unavailable(f"the server does not let the service in: {what}")
        case 429 | 503:
            return OutOfService(what)
        case 408 | 500 | 502 | 504 if method == "DELETE":
            return DoubtError(what)
        case 400 | 404 if "not_found" in reason or "no_such" in reason or reason == "Not Found":
            return Transient(f"{what}: it vanished meanwhile")
        case 400 | 405 | 409 | 413 if isinstance(found, dict):
            return Refused(what)
        case 500:
            return Transient(what)
        case _:
            return Unavailable(f"{what}: is this the management API, with nothing between?")


def _text(answer: httpx.Response) -> str:
    found = bytearray()
    for piece in answer.iter_bytes():
        found += piece
        if len(found) > LONGEST:
            raise Transient(f"the answer is longer than {LONGEST} bytes")
    return found.decode(errors="replace")


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _line(text: str) -> str:
    return " ".join(text.split())[:_MAX_TEXT]


def _items(pieces: Iterator[str]) -> Iterator[Json]:
    """The objects of a JSON list that comes in pieces. Raises ValueError where it is none, or ends early."""
    decoder = json.JSONDecoder()
    text, opened = "", False
    for piece in pieces:
        text, at = text + piece, 0
        if len(text) > LONGEST:
            raise ValueError(f"an item is longer than {LONGEST} characters")
        if not opened and text:
            if text[0] != "[":
                raise ValueError(f"it begins with {text[0]!r}")
            opened, at = True, 1
        while text.startswith("{", at):
            try:
                item, at = decoder.raw_decode(text, at)
            except ValueError:
                break  # the rest of it comes with the next piece
            yield item
            at += text.startswith(",", at)
        text = text[at:]
    if text != "]":
        raise ValueError("it ends early")
