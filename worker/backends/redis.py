"""Redis and Valkey: a resource is an ACL user and the keys under its prefix.

Identity has two halves: the generation key `<prefix>gen`, which a Lua script compares before each batch of
UNLINK, in the same breath; and a channel pattern that carries the generation on the ACL user, which the
tenant cannot change. `deprovisioner:server` names the server, since its run id changes at every restart.
"""

import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions

from outbox.errors import Refused, SettingsError, Transient, Unavailable
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Plan, Same

TIMEOUT_SECONDS = 5
# One UNLINK of this many keys blocks the server for well under a millisecond.
BATCH = 500
# SCAN promises only keys that stay throughout: pass until one pass finds nothing, but not for ever.
MAX_PASSES = 100
NEVER = frozenset({"default"})
OURS = "deprovisioner:"
SERVER_KEY = f"{OURS}server"
_CHANNEL = f"&{OURS}gen:"
# Everything on its own keys, nothing on the server: no admin, no FLUSHALL or KEYS, no shared functions.
# Nor SCAN and its like: ACLs do not filter them, and the names of others' keys are others' data.
COMMANDS = (
    *("+@all", "-@admin", "-@dangerous", "-function", "-script", "+script|load", "+script|exists"),
    *("-scan", "-randomkey", "-dbsize"),
)
# A server that is busy, full, read-only or without its disk is out of service, not wrong about this resource.
_AWAY = ("BUSY", "MISCONF", "OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS")

# KEYS[1]: the generation key; the rest: what to unlink. ARGV: generation, its database, the keys' database.
# -1: the generation is another's. -2: there is none, so another worker has just finished this very teardown.
_UNLINK_IF_OURS = """
redis.call('SELECT', ARGV[2])
local generation = redis.call('GET', KEYS[1])
if not generation then return -2 end
if generation ~= ARGV[1] then return -1 end
redis.call('SELECT', ARGV[3])
return redis.call('UNLINK', unpack(KEYS, 2))
"""


class _VanishedError(Exception):
    """The generation key is gone in the middle of a teardown."""


class Redis:
    """One server; `dsn` is a redis:// URL whose user may manage ACLs."""

    observable = True

    def __init__(self, dsn: str, *, protected: frozenset[str] = frozenset()) -> None:
        self._dsn = dsn
        self._protected = NEVER | protected
        try:
            redis.ConnectionPool.from_url(dsn)
        except ValueError:
            raise SettingsError("the dsn is not a redis:// URL (it is not shown: it may hold a password)") from None

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """Names from the resource's UUID, whole; see the Protocol."""
        with self._session() as server:
            manifest = {
                "user": f"usr_{resource_id.hex}",
                "prefix": f"{resource_id}:",
                "generation": str(generation),
                "server": _server_id(server, make=True),
            }
            where = server.connection_pool.connection_kwargs
        password = secrets.token_urlsafe(24)
        host, port, database = where.get("host", "localhost"), where.get("port", 6379), where.get("db") or 0
        credentials = {
            "url": f"redis://{manifest['user']}:{password}@{host}:{port}/{database}",
            "host": host,
            "port": port,
            "db": database,
            "user": manifest["user"],
            "password": password,
            "prefix": manifest["prefix"],
        }
        return Plan(manifest, credentials)

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """The generation key first, then the user: whoever can log in has an identity; see the Protocol."""
        with self._session() as server:
            self._right_server(server, manifest)
            server.set(_generation_key(manifest), manifest["generation"], nx=True)
            if isinstance(seen := self._judge(server, manifest), Different):
                raise Refused(seen.why)
            rules = ("reset", "on", f">{credentials['password']}", f"~{_escape(manifest['prefix'])}*", *COMMANDS)
            channels = ("resetchannels", f"&{_escape(manifest['prefix'])}*", _channel(manifest))
            server.execute_command("ACL", "SETUSER", manifest["user"], *rules, *channels)
            _save_acl(server)
        return manifest

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """Mark user and prefix with the generation; see the Protocol."""
        self._allowed(manifest)
        if not manifest["prefix"].endswith(":"):
            raise Refused(f"prefix {manifest['prefix']!r} must end with ':', or it would match its neighbours' keys")
        with self._session() as server:
            full = {
                "user": manifest["user"],
                "prefix": manifest["prefix"],
                "generation": str(generation),
                "server": manifest.get("server") or _server_id(server, make=True),
            }
            self._right_server(server, full)
            user = _acl_user(server, full["user"])
            if user is None:
                raise Refused(f"there is no ACL user {full['user']!r} to adopt")
            if full["user"] == server.acl_whoami():
                raise Refused(f"ACL user {full['user']!r} is the one that deprovisioner itself works with")
            taken = Refused(f"user {full['user']!r} or prefix {full['prefix']!r} belongs to another resource already")
            if any(c.startswith(_CHANNEL) and c != _channel(full) for c in user["channels"]):
                raise taken
            planted = server.set(_generation_key(full), full["generation"], nx=True)
            if not planted and _generation(server, full) != full["generation"]:
                raise taken
            if overlap := self._overlap(server, full):
                if planted:
                    self._unlink(server, full, self._home(server), [_generation_key(full).encode()])
                raise Refused(f"prefix {full['prefix']!r} lies inside another resource's or around it: {overlap!r}")
            if "&*" not in user["channels"]:
                server.execute_command("ACL", "SETUSER", full["user"], _channel(full))
            else:  # a pattern cannot be added to "all channels": say the same in other words
                server.execute_command("ACL", "SETUSER", full["user"], "resetchannels", "&?*", _channel(full))
            _save_acl(server)
        return full

    def inspect(self, manifest: Json) -> Observation:
        """See the Protocol."""
        with self._session() as server:
            return self._judge(server, manifest)

    def quarantine(self, manifest: Json) -> None:
        """No login, no connection, and the change on disk; see the Protocol."""
        self._allowed(manifest)
        with self._session() as server:
            self._quarantine(server, manifest)

    def release(self, manifest: Json) -> None:
        """See the Protocol."""
        with self._session() as server:
            if not isinstance(self._judge(server, manifest), Same):
                raise Refused("the namespace is not the one of this resource, or no longer there")
            server.execute_command("ACL", "SETUSER", manifest["user"], "on")
            _save_acl(server)

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - the generation key fences here
        """Writers first, then keys until a clean pass, then the user, and the generation key last."""
        self._allowed(manifest)
        with self._session() as server:
            if not self._quarantine(server, manifest):
                return {}
            try:
                return self._destroy(server, manifest)
            except _VanishedError:
                if isinstance(self._judge(server, manifest), Absent):
                    return {}  # another worker has just finished this very teardown
                raise Transient(f"generation key {_generation_key(manifest)!r} vanished meanwhile") from None

    def _destroy(self, server: "redis.Redis", manifest: Json) -> Json:
        unlinked = 0
        for _ in range(MAX_PASSES):
            if (done := self._unlink_pass(server, manifest)) == 0:
                break
            unlinked += done
        else:
            raise Transient(f"keys under {manifest['prefix']!r} keep appearing: somebody else writes them")
        (users,) = self._if_still_ours(server, manifest, ("ACL", "DELUSER", manifest["user"]))
        _save_acl(server)  # before the generation key goes: as long as that stands, an attempt comes by here
        self._unlink(server, manifest, self._home(server), [_generation_key(manifest).encode()])
        return {"keys_unlinked": unlinked, "users_removed": users}

    def _judge(self, server: "redis.Redis", manifest: Json) -> Observation:
        user = _acl_user(server, manifest["user"])
        generation = _generation(server, manifest)
        found = _server_id(server, make=False)
        evidence: Json = {
            "server": found,
            "user": None
            if user is None
            else f"{manifest['user']} {' '.join(user['flags'])} {' '.join(user['channels'])}",
            "generation_key": generation,
        }
        if manifest.get("server") not in (None, found):
            why = f"{SERVER_KEY} is {found!r}, not {manifest['server']!r}: another server, or one that lost its data"
            return Different(evidence, why)
        if generation not in (None, manifest["generation"]):
            return Different(
                evidence, f"the generation key of {manifest['prefix']!r} is {generation!r}: another resource's"
            )
        ours = user is not None and _channel(manifest) in user["channels"]
        if user is not None and not ours:
            return Different(evidence, f"user {manifest['user']!r} is not the one that was made for this resource")
        if ours or generation is not None:
            return Same(evidence)
        if stray := next(self._keys(server, manifest), None):
            return Different(evidence, f"keys under {manifest['prefix']!r} (such as {stray[1]!r}) bear no generation")
        return Absent(evidence)

    def _overlap(self, server: "redis.Redis", manifest: Json) -> str | None:
        """The generation key of a prefix inside ours or around it. Of two that race here, each sees the other's."""
        prefix = manifest["prefix"]
        around = [f"{prefix[: end + 1]}gen" for end, letter in enumerate(prefix[:-1]) if letter == ":"]
        inside = (key.decode(errors="replace") for _, key in self._keys(server, manifest) if key.endswith(b":gen"))
        for key in (*around, *inside):
            if server.type(key) == "string" and _is_uuid(server.get(key)):
                return key
        return None

    def _quarantine(self, server: "redis.Redis", manifest: Json) -> bool:
        """False when there is nothing of the resource on the server."""
        if isinstance(self._judge(server, manifest), Absent):
            return False
        if _acl_user(server, manifest["user"]) is not None:
            commands = [("ACL", "SETUSER", manifest["user"], "off"), ("PERSIST", _generation_key(manifest))]
            # A tenant may have removed its own generation key, or let it expire in a moment; the user's mark still
            # proves that the prefix is its own.
            if _generation(server, manifest) is None:
                commands.append(("SET", _generation_key(manifest), manifest["generation"], "NX"))
            self._if_still_ours(server, manifest, *commands)
            server.execute_command("CLIENT", "KILL", "USER", manifest["user"])  # `off` leaves its connections alive
            _save_acl(server)
        elif isinstance(seen := self._judge(server, manifest), Different):
            raise Refused(seen.why)
        return True

    def _if_still_ours(self, server: "redis.Redis", manifest: Json, *commands: tuple[str, ...]) -> list[Any]:
        """Run commands that no script may run, unless the generation key is touched between the look and them.

        Every teardown ends by removing that key: a worker that stood still cannot reach who has the names now.
        """
        with server.pipeline() as pipe:
            pipe.watch(_generation_key(manifest))
            if not isinstance(seen := self._judge(server, manifest), Same):
                if isinstance(seen, Different):
                    raise Refused(seen.why)
                raise Transient("the namespace is no longer there: looking again")
            pipe.multi()
            for command in commands:
                pipe.execute_command(*command)
            try:
                return list(pipe.execute())
            except exceptions.WatchError as error:
                raise Transient("the generation key was touched meanwhile: looking again") from error

    def _unlink_pass(self, server: "redis.Redis", manifest: Json) -> int:
        """One SCAN of every database; how many keys it unlinked. Raises Refused when the generation key changed."""
        return sum(self._unlink(server, manifest, *batch) for batch in _batches(self._keys(server, manifest)))

    def _unlink(self, server: "redis.Redis", manifest: Json, database: int, keys: list[bytes]) -> int:
        arguments = (manifest["generation"], self._home(server), database)
        done: Any = server.eval(_UNLINK_IF_OURS, 1 + len(keys), _generation_key(manifest), *keys, *arguments)
        if done == -1:
            raise Refused(f"generation key {_generation_key(manifest)!r} is no longer the one of this resource")
        if done == -2:
            raise _VanishedError
        return int(done)

    @staticmethod
    def _home(server: "redis.Redis") -> int:
        return int(server.connection_pool.connection_kwargs.get("db") or 0)

    def _keys(self, server: "redis.Redis", manifest: Json) -> Iterator[tuple[int, bytes]]:
        """Every key under the prefix but the generation key, with its database; keys are any bytes."""
        pattern = f"{_escape(manifest['prefix'])}*"
        home = self._home(server)
        for name in server.info("keyspace"):
            database = int(name.removeprefix("db"))
            with self._session(database=database, decode=False) as there:
                for key in there.scan_iter(match=pattern, count=1000):
                    if database != home or key != _generation_key(manifest).encode():
                        yield database, key

    def _right_server(self, server: "redis.Redis", manifest: Json) -> None:
        found = _server_id(server, make=False)
        if manifest.get("server") not in (None, found):
            raise Refused(f"{SERVER_KEY} is {found!r}, not {manifest['server']!r}: the wrong server")

    def _allowed(self, manifest: Json) -> None:
        if manifest["user"] in self._protected:
            raise Refused(f"ACL user {manifest['user']!r} is protected: it is never adopted or torn down")
        if not manifest["prefix"]:
            raise Refused("an empty prefix would match every key of the server")
        if manifest["prefix"].startswith(OURS) or OURS.startswith(manifest["prefix"]):
            raise Refused(f"prefix {manifest['prefix']!r} is deprovisioner's own")

    @contextmanager
    def _session(self, *, database: int | None = None, decode: bool = True) -> Iterator["redis.Redis"]:
        """A client; what goes wrong on it comes out as Unavailable, Refused or Transient."""
        pool = redis.ConnectionPool.from_url(
            self._dsn,
            decode_responses=decode,
            encoding_errors="replace",
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            client_name="deprovisioner",
        )
        if database is not None:  # as an argument it would lose against the URL's own
            pool.connection_kwargs["db"] = database
        server = redis.Redis(connection_pool=pool)
        try:
            yield server
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            raise Unavailable(str(error)) from error
        except exceptions.NoPermissionError as error:
            raise Refused(f"the server forbids it: {error}") from error
        except exceptions.RedisError as error:
            away = isinstance(error, exceptions.ReadOnlyError | exceptions.OutOfMemoryError)
            away = away or str(error).startswith(_AWAY)
            raise (Unavailable if away else Transient)(str(error)) from error
        finally:
            pool.disconnect()


def _batches(keys: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, list[bytes]]]:
    """Runs of at most BATCH keys of one database."""
    batch: list[bytes] = []
    current = 0
    for database, key in keys:
        if batch and (database != current or len(batch) == BATCH):
            yield current, batch
            batch = []
        current = database
        batch.append(key)
    if batch:
        yield current, batch


def _server_id(server: "redis.Redis", *, make: bool) -> str | None:
    if make:
        server.set(SERVER_KEY, str(uuid.uuid4()), nx=True)
    found: Any = server.get(SERVER_KEY)
    return None if found is None else str(found)


def _acl_user(server: "redis.Redis", name: str) -> Json | None:
    found: Any = server.acl_getuser(name)
    return found  # type: ignore[no-any-return]


def _save_acl(server: "redis.Redis") -> None:
    """Else ACL LOAD or a restart brings a deleted user back; a server without an aclfile keeps users in memory."""
    if server.config_get("aclfile").get("aclfile"):
        server.execute_command("ACL", "SAVE")


def _generation_key(manifest: Json) -> str:
    return f"{manifest['prefix']}gen"


def _generation(server: "redis.Redis", manifest: Json) -> str | None:
    kind: Any = server.type(_generation_key(manifest))
    if kind in ("string", "none"):
        found: Any = server.get(_generation_key(manifest))
        return None if found is None else str(found)
    return f"({kind})"  # no generation of ours is a list


def _channel(manifest: Json) -> str:
    return f"{_CHANNEL}{manifest['generation']}"


def _is_uuid(value: Any) -> bool:
    try:
        return bool(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        return False


def _escape(prefix: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix)
