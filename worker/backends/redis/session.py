"""Clients of a Redis or Valkey server: timeouts, and what each failure means."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any, TypeVar

import redis
from redis import exceptions
from redis._parsers.resp3 import _RESP3Parser
from redis._parsers.socket import SocketBuffer

from outbox.errors import BackendError, OutOfService, Refused, SettingsError, Transient, Unavailable

T = TypeVar("T")

TIMEOUT_SECONDS = 5
# Names of commands, and of keys that change seldom: a thousand adoptions would read them a thousand times.
KEPT_SECONDS = 60
NEVER = frozenset({"default"})
# A server's answer to an account that it does not let in; WRONGPASS also where the account is switched off.
LOGIN_REFUSED = frozenset({"NOAUTH", "WRONGPASS", "DENIED"})
# What an error means, by the code that the server sends as its first word. A code that is not here is Transient: the
# work failed and may succeed later. docs/design.md has this table too; a test compares.
MEANS: dict[str, type[BackendError]] = {
    # The server is out of service, whatever the resource: busy, full, without its disk, primary or replicas.
    **dict.fromkeys(("BUSY", "LOADING", "MISCONF", "OOM"), OutOfService),
    **dict.fromkeys(("READONLY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN"), OutOfService),
    # It does not let the service in.
    **dict.fromkeys(LOGIN_REFUSED, Unavailable),
    # It will answer the same for ever.
    **dict.fromkeys(("NOPERM", "CROSSSLOT", "MOVED", "ASK"), Refused),
}
# Under the code ERR: an account lacks a right that a script of ours needs. Of Redis 7.0, and of later ones and Valkey.
_FORBIDDEN_IN_SCRIPT = re.compile(r"The user executing the script can't|ACL failure in script")
_MAX_TEXT = 300
_SECRET = re.compile(r"(?<=['\"\s])[><#!][^\s'\"]+")  # a password or its hash, as ACL SETUSER takes it


class _Parser(_RESP3Parser):
    """Keeps each error's code: redis-py drops the ones that it does not know, and pipelines put words before them."""

    @classmethod
    def parse_error(cls, response: str) -> Any:
        error: Any = super().parse_error(response)  # type: ignore[no-untyped-call]
        error.status_code = response.split(" ", 1)[0]
        return error


class _Cut(SocketBuffer):
    """Reads no text that is longer than a limit: what others wrote may be."""

    longest: int

    def read(self, length: int, *more: Any, **words: Any) -> bytes:
        if length > self.longest:
            raise exceptions.InvalidResponse(f"the answer has a text of {length} bytes, and {self.longest} are read")
        return super().read(length, *more, **words)


def _limited(limit: int) -> type[_Parser]:
    class Cut(_Cut):
        longest = limit

    class Limited(_Parser):
        def on_connect(self, connection: Any) -> None:
            super().on_connect(connection)  # type: ignore[no-untyped-call]
            self._buffer.__class__ = Cut

    return Limited


PACE = 1
LONGEST_WAIT_SECONDS = 5.0


class Server:
    """One server, reached by a redis:// URL; `protected`: users that are never adopted or torn down.

    `volatile_users`: births are allowed although a restart of the server forgets its ACL users. `scripting`: customers
    may run scripts. `pace`: from how many namespaces this process removes keys at once.
    """

    def __init__(
        self,
        dsn: str,
        protected: frozenset[str],
        *,
        volatile_users: bool = False,
        scripting: bool = False,
        pace: int = PACE,
    ) -> None:
        self._dsn = dsn
        self.protected = NEVER | protected
        self.volatile_users = volatile_users
        self.scripting = scripting
        self._turns = BoundedSemaphore(pace)
        self._kept: dict[tuple[str, str], tuple[float, Any]] = {}
        self.users_saved = float("-inf")  # when `memory` last had this server write its users, by the monotonic clock
        try:
            redis.ConnectionPool.from_url(dsn)
        except ValueError:
            raise SettingsError("the dsn is not a redis:// URL (it is not shown: it may hold a password)") from None

    def kept(self, session: "Session", name: str, read: "Callable[[Session], T]") -> T:
        """What `read` reads of this server, at most KEPT_SECONDS ago, since the server's last start."""
        key = (name, str(session.info("server")["run_id"]))
        at, value = self._kept.get(key, (float("-inf"), None))
        if time.monotonic() - at > KEPT_SECONDS:
            at, value = time.monotonic(), read(session)
            self._kept = {k: v for k, v in self._kept.items() if k[1] == key[1]} | {key: (at, value)}
        found: T = value
        return found

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn to scan and to unlink: the server does one thing at a time, and its customers wait for each.

        Who has waited for long goes on without it: a namespace of millions of keys must not stop all teardowns.
        """
        taken = self._turns.acquire(timeout=LONGEST_WAIT_SECONDS)
        try:
            yield
        finally:
            if taken:
                self._turns.release()

    @contextmanager
    def connect(
        self,
        *,
        database: int | None = None,
        decode: bool = True,
        account: tuple[str, str] | None = None,
        longest: int | None = None,
    ) -> Iterator["Session"]:
        """A client of the primary; its errors come out as Unavailable, Refused or Transient.

        `account`: another user than the service's, and its password; such a session needs a `database`.
        `longest`: bytes; a longer text in an answer ends the session, and is Transient.
        """
        pool = redis.ConnectionPool.from_url(
            self._dsn,
            decode_responses=decode,
            encoding_errors="replace",
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            client_name="deprovisioner",
            parser_class=_Parser if longest is None else _limited(longest),
            protocol=3,
        )
        if database is not None:  # as an argument it would be overridden by the URL's
            pool.connection_kwargs["db"] = database
        if account is not None:  # it may not be allowed to name its connection
            user, password = account
            pool.connection_kwargs.update(username=user, password=password, client_name=None)
        session = Session(connection_pool=pool)
        session.server = self
        try:
            if database is None:  # with one, it is a second session beside a checked one
                session.must_be_primary()
            yield session
        except exceptions.RedisError as error:
            raise meaning(error) from error
        finally:
            pool.disconnect()


def code_of(error: BaseException | None) -> str | None:
    """The code that the server sent, None where the server sent none."""
    return getattr(error, "status_code", None)


def meaning(error: exceptions.RedisError) -> BackendError:
    """What a client's error means for the job: one bounded line without secrets."""
    code = code_of(error)
    if code == "ERR" and _FORBIDDEN_IN_SCRIPT.search(str(error)):
        code = "NOPERM"
    text = _SECRET.sub("(secret)", " ".join(str(error).split()))[:_MAX_TEXT]
    if code is not None and code not in text:
        text = f"{code} {text}"
    if code in MEANS:
        return MEANS[code](f"the server forbids it: {text}" if code == "NOPERM" else text)
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return Unavailable(text)
    return Transient(text)


class Session(redis.Redis):
    """A client that knows its server, so that a second one can be opened beside it."""

    server: Server

    @property
    def home(self) -> int:
        """The logical database of the URL; the generation key is there."""
        return int(self.connection_pool.connection_kwargs.get("db") or 0)

    def must_be_primary(self) -> None:
        """Raises Unavailable on a replica: it may lag, and it has its primary's keys without its primary's users."""
        found: Any = self.info("replication")
        if found["role"] != "master":
            primary = f"{found.get('master_host')}:{found.get('master_port')}"
            raise OutOfService(f"the server is a replica (of {primary}): only a writable primary is believed")

    def keeps_users(self) -> bool:
        """Whether ACL users survive a restart; where CONFIG is forbidden, whether ACL SAVE works."""
        try:
            found: Any = self.config_get("aclfile")
        except exceptions.ResponseError as error:
            if code_of(error) not in ("NOPERM", "ERR"):
                raise
            return self._saved()
        return bool(found.get("aclfile"))

    def save_acl(self) -> None:
        """Write the users to the aclfile, if there is one: ACL LOAD or a restart would bring a deleted one back."""
        if self.keeps_users():
            self._save()

    def _saved(self) -> bool:
        try:
            self._save()
        except exceptions.ResponseError as error:
            if code_of(error) not in ("NOPERM", "ERR"):
                raise
            return False
        return True

    def _save(self) -> None:
        try:
            self.execute_command("ACL", "SAVE")
        except exceptions.ResponseError as error:
            # Without an aclfile, and where the file cannot be written, the code is the same.
            if "trying to save" not in str(error):
                raise
            raise OutOfService(f"the server cannot write its aclfile: {meaning(error)}") from error
