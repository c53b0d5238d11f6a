"""Clients of a Redis or Valkey server: timeouts, and what each failure means."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis import exceptions

from outbox.errors import OutOfService, Refused, SettingsError, Transient, Unavailable

TIMEOUT_SECONDS = 5
NEVER = frozenset({"default"})
# Answers of a server that is busy, full, read-only or without its disk: it is out of service, whatever the resource.
_AWAY = ("BUSY", "MISCONF", "OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS")


class Server:
    """One server, reached by a redis:// URL; `protected`: users that are never adopted or torn down."""

    def __init__(self, dsn: str, protected: frozenset[str]) -> None:
        self._dsn = dsn
        self.protected = NEVER | protected
        try:
            redis.ConnectionPool.from_url(dsn)
        except ValueError:
            raise SettingsError("the dsn is not a redis:// URL (it is not shown: it may hold a password)") from None

    @contextmanager
    def connect(self, *, database: int | None = None, decode: bool = True) -> Iterator["Session"]:
        """A client; its errors come out as Unavailable, Refused or Transient."""
        pool = redis.ConnectionPool.from_url(
            self._dsn,
            decode_responses=decode,
            encoding_errors="replace",
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            client_name="deprovisioner",
        )
        if database is not None:  # as an argument it would be overridden by the URL's
            pool.connection_kwargs["db"] = database
        session = Session(connection_pool=pool)
        session.server = self
        try:
            yield session
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            raise Unavailable(str(error)) from error
        except exceptions.NoPermissionError as error:
            raise Refused(f"the server forbids it: {error}") from error
        except exceptions.RedisError as error:
            away = isinstance(error, exceptions.ReadOnlyError | exceptions.OutOfMemoryError)
            away = away or str(error).rpartition("caused error: ")[2].startswith(_AWAY)  # a pipeline puts words before
            raise (OutOfService if away else Transient)(str(error)) from error
        finally:
            pool.disconnect()


class Session(redis.Redis):
    """A client that knows its server, so that a second one can be opened beside it."""

    server: Server

    @property
    def home(self) -> int:
        """The logical database of the URL; the generation key is there."""
        return int(self.connection_pool.connection_kwargs.get("db") or 0)

    def save_acl(self) -> None:
        """Write the users to the aclfile, if there is one: ACL LOAD or a restart would bring a deleted one back."""
        if self.config_get("aclfile").get("aclfile"):
            self.execute_command("ACL", "SAVE")
