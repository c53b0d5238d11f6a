"""The final snapshot of a database in quarantine, and its proof: what was restored from it equals what was frozen.

A dump is a customer's code: defaults, CHECKs and generated columns run as it is restored. So it is restored by a role
that logs in, owns nothing else and is a member of nothing, into a database of its own: both are made and torn down as a
customer's are. A `SET ROLE` of the service's session would not do, for the code could set it back.
"""

import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from psycopg2 import extensions

from outbox.errors import Refused, Transient
from outbox.kinds.postgres import KIND
from outbox.rows import Json
from worker.backends import Still
from worker.backends.postgres import client, contents, create, destroy, identity, obstacles
from worker.backends.postgres.errors import clean
from worker.backends.postgres.session import LOCK_TIMEOUT_MS, Server, Session, afterwards

# A dump takes as long as it takes: what ends it is its attempt's `still`, or standing still.
_SECONDS = 30 * 86_400.0
# How long the dump's own session may take to show.
_ENTER_SECONDS = 30.0
# What identifies the service's account, and no other.
_OURS_ALONE = frozenset({"sslcert", "sslkey", "sslpassword", "sslcertmode", "passfile", "service", "options"})

Write = Callable[[bytes], object]
Read = Callable[[int], bytes]


def take(server: Server, manifest: Json, write: Write, still: Still) -> Json:
    """Write a dump of the database in quarantine, and return what it holds; see `worker.backends.snapshot`.

    The door is opened twice, for a session of ours each time, and closed behind it.
    """
    with server.connect(seconds=_SECONDS) as session:
        session.lock(manifest["database"])
        still()
        state = identity.read_state(session, manifest)
        identity.must_be_same(state, manifest)
        database = state.named(identity.dying_name(manifest)) or state.named(manifest["database"])
        if database is None:
            raise Refused(f"database {manifest['database']!r} is no longer there: there is nothing to take")
        programs = client.folder(session.server_version)
        door = _Door(session, manifest, database)
        door.close()  # an attempt that died may have left it open

        def beat() -> None:
            with session.cursor() as cursor:  # ended by a restore, which takes the lock over
                cursor.execute("SELECT 1")
            still()

        # Where our session is gone, a restore has taken over, or the next attempt closes the door.
        with afterwards(door.close), door.entered(server) as inside:
            contents.prepare(inside)
            contents.must_be_readable(inside)
            with inside.cursor() as cursor:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                cursor.execute("SELECT pg_catalog.pg_export_snapshot()")
                ((seen,),) = cursor.fetchall()
            _dump(server, door, inside, programs=programs, seen=seen, write=write, beat=beat)
            return contents.read(inside, _now_and_then(beat))


def verify(server: Server, manifest: Json, read: Read, source: Json, still: Still) -> Json:
    """Restore a dump into a scratch database, compare it with its source, drop it; see `worker.backends.snapshot`."""
    scratch = _scratch(manifest)
    _drop(server, scratch)  # what an attempt that died has left
    password = secrets.token_urlsafe(24)
    with afterwards(partial(_drop, server, scratch)):
        made = create.provision(server, scratch, {"password": password})
        still()
        said = _restore(server, made, password, read, still, "--section=pre-data", "--section=data")
        with _as_owner(server, made, password).connect(made["database"], seconds=_SECONDS) as inside:
            contents.prepare(inside)
            with inside.cursor() as cursor:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            contents.must_be_equal(source, contents.read(inside, _now_and_then(still)), said)
    return contents.summary(source) | ({"restore_said": said} if said else {})


def restore(server: Server, manifest: Json, credentials: Json, read: Read, still: Still) -> Json:
    """Fill a new database from a dump, as its own role; see `worker.backends.restore_snapshot`."""
    with server.connect() as session:
        identity.must_be_same(identity.read_state(session, manifest), manifest)
    said = _restore(server, manifest, credentials["password"], read, still)
    return {"restore_said": said} if said else {}


def _drop(server: Server, scratch: Json) -> None:
    destroy.teardown(server, scratch)


def _scratch(manifest: Json) -> Json:
    """The names of the scratch database and its role: made from the generation, so that the next attempt finds them."""
    generation = uuid.uuid5(uuid.UUID(manifest["generation"]), "scratch")
    name = f"zz_scratch_{manifest['generation']}"
    return KIND.manifest(database=name, role=name, generation=str(generation))


class _Door:
    """Whether the server lets sessions into a database in quarantine. Its role cannot log in; others may try."""

    def __init__(self, session: Session, manifest: Json, database: identity.Database) -> None:
        self._session, self._manifest, self._database = session, manifest, database
        with session.cursor() as cursor:
            cursor.execute("SELECT datconnlimit FROM pg_catalog.pg_database WHERE oid = %s", (database.oid,))
            ((self._limit,),) = cursor.fetchall()
        self.name = database.name

    def open(self) -> None:
        """Let sessions in; a limit of none would keep ours out too."""
        self._set("CONNECTION LIMIT -1 ALLOW_CONNECTIONS true" if self._limit == 0 else "ALLOW_CONNECTIONS true")

    def close(self) -> None:
        """Let none in, superusers' neither."""
        self._set("CONNECTION LIMIT 0 ALLOW_CONNECTIONS false" if self._limit == 0 else "ALLOW_CONNECTIONS false")

    def _set(self, clause: str) -> None:
        with self._session.transaction():
            self._session.execute(f"ALTER DATABASE {{name}} {clause}", name=self.name)
            touched = identity.read_state(self._session, self._manifest).named(self.name)
            if touched is None or not identity.is_ours(touched, self._manifest):
                raise Refused(f"database {self.name!r} is no longer the one of this resource")

    def end_others(self, ours: int = 0) -> None:
        """End every session in the database, but for ours. Raises Transient where one does not end."""
        left = obstacles.end_sessions(self._session, self._database, None, spared=ours)
        obstacles.must_be_ended(left, self.name)

    def must_be_alone(self, *ours: int) -> None:
        """Raises Transient where a session came in beside ours, and ends all: what it wrote would be in no snapshot."""
        with self._session.cursor() as cursor:
            cursor.execute(
                """
                SELECT usename FROM pg_catalog.pg_stat_activity
                 WHERE datid = %s AND usesysid IS NOT NULL AND pid <> ALL(%s) LIMIT 1""",
                (self._database.oid, list(ours)),
            )
            other = cursor.fetchone()
        if other is not None:
            obstacles.end_sessions(self._session, self._database, None)
            raise Transient(clean(f"a session of {other[0]!r} came into {self.name!r} while its snapshot was begun"))

    def held_by(self) -> str:
        """Prepared transactions of the database, in words: they keep their locks, and a dump waits for those."""
        if not (found := obstacles.prepared(self._session, self.name)):
            return ""
        told = ", ".join(f"{gid!r} of {owner!r}" for gid, owner in found[: obstacles.NAMED])
        return clean(
            f"; {len(found)} prepared transactions there may hold locks that it needs ({told}): an administrator can"
            " let sessions in, and end each there with ROLLBACK PREPARED"
        )

    def close_behind(self, name: str, program: client.Program, inside: int) -> None:
        """Wait until the session of that application_name is in, close the door, end all others but `inside`."""
        deadline = time.monotonic() + _ENTER_SECONDS
        while not (entered := self._pid_of(name)):
            if program.ended() or time.monotonic() > deadline:
                raise Transient(f"{program.name} did not come into the database: {client.words_of(program)}")
            time.sleep(0.01)  # until the server shows it
        self.close()
        self.must_be_alone(inside, entered)

    def _pid_of(self, name: str) -> int | None:
        with self._session.cursor() as cursor:
            cursor.execute(
                """
                SELECT pid FROM pg_catalog.pg_stat_activity
                 WHERE datid = %s AND application_name = %s
                   AND usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)""",
                (self._database.oid, name),
            )
            row = cursor.fetchone()
        return None if row is None else row[0]

    @contextmanager
    def entered(self, server: Server) -> Iterator[Session]:
        """A session of ours in the database, with the door closed behind it and no other session inside."""
        self.open()
        with server.connect(self.name, seconds=_SECONDS) as inside:
            self.close()
            self.end_others(inside.info.backend_pid)
            yield inside


def _dump(
    server: Server,
    door: _Door,
    inside: Session,
    *,
    programs: Path,
    seen: str,
    write: Write,
    beat: client.Beat,
) -> None:
    reached = inside.info.host, inside.info.port
    name = f"deprovisioner {secrets.token_hex(8)}"
    where, env = client.address(
        server.parameters, reached, dbname=door.name, application_name=name, client_encoding="auto"
    )
    argv: list[str | Path] = [programs / "pg_dump", "--format=custom", "--compress=1", "--no-password"]
    argv += [f"--snapshot={seen}", f"--lock-wait-timeout={LOCK_TIMEOUT_MS}", f"--dbname={where}"]
    door.open()
    with client.running(argv, env, beat) as program:
        door.close_behind(name, program, inside.info.backend_pid)
        while piece := program.read():
            write(piece)
        if program.end() != 0:
            raise Transient(f"pg_dump failed: {client.words_of(program)}{door.held_by()}")


def _restore(server: Server, manifest: Json, password: str, read: Read, still: Still, *sections: str) -> str:
    """Restore as the database's own role; what pg_restore said of statements that failed, empty where none did.

    A statement that fails is no failure: what was restored is compared.
    """
    with server.connect() as session:
        programs, reached = client.folder(session.server_version), (session.info.host, session.info.port)
    where, env = client.address(_as_owner(server, manifest, password).parameters, reached)
    argv: list[str | Path] = [
        programs / "pg_restore",
        "--no-password",
        "--no-owner",
        "--no-privileges",
        "--no-comments",
    ]
    argv += ["--no-publications", "--no-subscriptions", "--no-security-labels", "--no-tablespaces"]
    argv += [*sections, f"--dbname={where}"]
    with client.running(argv, env, still, may_stall=not sections) as program:  # indexes take as long as they take
        while piece := read(client.PIECE):
            if not program.write(piece):
                break
        program.end()
        return client.words_of(program) if program.said else ""


def _as_owner(server: Server, manifest: Json, password: str) -> Server:
    """The server, for sessions of a database's own role."""
    parameters: Mapping[str, str] = {
        **{key: value for key, value in server.parameters.items() if key not in _OURS_ALONE},
        "user": manifest["role"],
        "password": password,
        "dbname": manifest["database"],
    }
    return Server(extensions.make_dsn(**parameters), server.protected)


def _now_and_then(beat: client.Beat) -> Callable[[], None]:
    last = time.monotonic()

    def moved() -> None:
        nonlocal last
        if time.monotonic() - last > client.BEAT_SECONDS:
            last = time.monotonic()
            beat()

    return moved
