"""PostgreSQL: a resource is a database and the role that opens it.

Identity is the database's OID, the cluster's system identifier and a generation comment; OID and comment
survive RENAME, and a database made again under the same name has neither. An object is born under a name
that nobody else can have (`zz_new_<generation>`) and dies under one (`zz_del_<generation>`), because CREATE
and DROP DATABASE take only a name and run in no transaction: RENAME does, and there identity is checked.
"""

import contextlib
import hashlib
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import errors, extensions, sql

from outbox.errors import BackendError, Refused, SettingsError, Transient, Unavailable
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Plan, Same, mark

CONNECT_TIMEOUT_SECONDS = 5
# DROP DATABASE waits for a checkpoint and unlinks every file: minutes for terabytes.
STATEMENT_TIMEOUT_MS = 300_000
# The same, held from this side too, for a server that stands still; a mere look is over in milliseconds.
WORK_SECONDS = STATEMENT_TIMEOUT_MS / 1000 + 30
LOOK_SECONDS = 15
# How long to wait for another worker inside the same object, and for a session to end when told to.
LOCK_TIMEOUT_MS = 10_000
TERMINATE_TIMEOUT_MS = 5_000
# A session may slip in between "terminate" and "rename": try again, but not for ever.
RENAME_TRIES = 3
NEVER = frozenset({"template0", "template1", "postgres"})
_SESSION = {
    "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
    "application_name": "deprovisioner",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # The server's side of keepalive and idle: the lock of a worker that vanished must not outlive it by hours.
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
    f" -c idle_session_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout={LOCK_TIMEOUT_MS}"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}


class _Session(extensions.connection):  # type: ignore[misc]  # psycopg2 ships no types
    """A connection that remembers what it changed: the evidence of a teardown."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.did: list[str] = []


@dataclass(frozen=True)
class _Database:
    oid: int
    name: str
    comment: str | None
    template: bool


@dataclass(frozen=True)
class _Role:
    oid: int
    comment: str | None
    superuser: bool
    owns: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """One look at the server: what bears the manifest's names, and what bears its OID."""

    system_identifier: int
    us: tuple[str, str]
    databases: tuple[_Database, ...]
    role: _Role | None

    def named(self, name: str) -> _Database | None:
        return next((d for d in self.databases if d.name == name), None)


class Postgres:
    """One cluster, reached through the maintenance database that `dsn` names."""

    observable = True

    def __init__(self, dsn: str, *, protected: frozenset[str] = frozenset()) -> None:
        try:
            self._words = dict(extensions.parse_dsn(dsn))
        except psycopg2.ProgrammingError:
            raise SettingsError("the dsn is not one of libpq's (it is not shown: it may hold a password)") from None
        self._dsn = dsn
        self._protected = NEVER | protected

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """Names from the resource's UUID, whole; see the Protocol."""
        with self._session(seconds=LOOK_SECONDS) as session:
            system_identifier = _system_identifier(session)
            where = session.info
            address = {"host": where.host, "port": where.port}
        manifest = {
            "database": f"db_{resource_id.hex}",
            "role": f"usr_{resource_id.hex}",
            "oid": None,
            "system_identifier": system_identifier,
            "generation": str(generation),
        }
        password = secrets.token_urlsafe(24)
        user, database, host, port = manifest["role"], manifest["database"], address["host"], address["port"]
        credentials = {
            "dsn": f"postgresql://{user}:{password}@{host}:{port}/{database}",
            **address,
            "database": database,
            "user": user,
            "password": password,
        }
        return Plan(manifest, credentials)

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """Role, database under its birth name, then comment and final name in one transaction; see the Protocol."""
        with self._session(forbidden=Refused) as session, self._inside(session, manifest["database"]):
            seen = self._look(session, manifest)
            self._right_server(seen, manifest)
            self._make_role(session, seen, manifest, credentials["password"])
            self._make_database(session, seen, manifest)
            named = self._look(session, manifest).named(manifest["database"])
            if named is None:
                raise Transient(f"database {manifest['database']} vanished while it was being made")
            with self._session(manifest["database"]) as inside:
                _execute(inside, "GRANT ALL ON SCHEMA public TO {role}", role=manifest["role"])
        return manifest | {"oid": named.oid}

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """Mark database and role with the generation, in one transaction; see the Protocol."""
        self._allowed(manifest)
        with (
            self._session(forbidden=Refused) as session,
            self._inside(session, manifest["database"], manifest.get("role")),
        ):
            seen = self._look(session, manifest)
            self._right_server(seen, manifest)
            self._not_ours_to_take(seen, manifest)
            self._not_a_bystander(seen, manifest)
            database = seen.named(manifest["database"])
            if database is None:
                raise Refused(f"there is no database {manifest['database']!r} to adopt")
            if manifest.get("oid") not in (None, database.oid):
                raise Refused(f"database {database.name!r} has OID {database.oid}, not {manifest['oid']}")
            if manifest.get("role") and seen.role is None:
                raise Refused(f"there is no role {manifest['role']!r} to adopt")
            with _transaction(session):
                _mark(session, "DATABASE", database.name, database.comment, generation)
                if seen.role is not None:
                    _mark(session, "ROLE", manifest["role"], seen.role.comment, generation)
        return {
            "database": database.name,
            "role": manifest.get("role"),
            "oid": database.oid,
            "system_identifier": seen.system_identifier,
            "generation": str(generation),
        }

    def inspect(self, manifest: Json) -> Observation:
        """See the Protocol."""
        with self._session(seconds=LOOK_SECONDS) as session:
            return self._judge(self._look(session, manifest), manifest)

    def quarantine(self, manifest: Json) -> None:
        """No login, no session, no connection, no name: the last two in one transaction that checks identity."""
        self._allowed(manifest)
        with self._session() as session, self._inside(session, manifest["database"]):
            self._quarantine(session, manifest)

    def release(self, manifest: Json) -> None:
        """See the Protocol."""
        with self._session() as session, self._inside(session, manifest["database"]):
            seen = self._look(session, manifest)
            self._must_be_same(seen, manifest)
            if seen.named(_dying(manifest)):
                with _transaction(session):
                    _execute(
                        session, "ALTER DATABASE {old} RENAME TO {new}", old=_dying(manifest), new=manifest["database"]
                    )
                    _execute(session, "ALTER DATABASE {name} ALLOW_CONNECTIONS true", name=manifest["database"])
                    _execute(session, "ALTER DATABASE {name} CONNECTION LIMIT -1", name=manifest["database"])
            if seen.role is not None:
                _execute(session, "ALTER ROLE {role} LOGIN", role=manifest["role"])

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - identity fences here, not the number
        """Database first, then every grant of the role, then the role: a role that survives is a working credential."""
        self._allowed(manifest)
        with self._session() as session, self._inside(session, manifest["database"]):
            self._quarantine(session, manifest)
            for name in (_dying(manifest), _newborn(manifest)):
                if self._look(session, manifest).named(name):
                    _execute(session, "DROP DATABASE {name}", name=name)
            self._drop_role(session, manifest)
            return {"statements": session.did}

    # -- observing ---------------------------------------------------------------------------------------------

    def _look(self, session: _Session, manifest: Json) -> _Seen:
        with session.cursor() as cursor:
            cursor.execute(
                """
                SELECT oid::bigint, datname, shobj_description(oid, 'pg_database'), datistemplate FROM pg_database
                 WHERE datname = ANY(%(names)s) OR oid = %(oid)s""",
                {"names": [manifest["database"], _newborn(manifest), _dying(manifest)], "oid": manifest.get("oid")},
            )
            databases = tuple(_Database(*row) for row in cursor)
            cursor.execute(
                """
                SELECT oid::bigint, shobj_description(oid, 'pg_authid'), rolsuper,
                       ARRAY(SELECT datname::text FROM pg_database WHERE datdba = pg_roles.oid)
                  FROM pg_roles WHERE rolname = %s""",
                (manifest.get("role"),),
            )
            role = cursor.fetchone()
            cursor.execute("SELECT current_database(), session_user")
            us = cursor.fetchone()
        return _Seen(_system_identifier(session), us, databases, _Role(*role) if role else None)

    def _judge(self, seen: _Seen, manifest: Json) -> Observation:
        evidence: Json = {
            "system_identifier": seen.system_identifier,
            "databases": [f"{d.name} oid={d.oid} comment={d.comment}" for d in seen.databases],
            "role": None
            if seen.role is None
            else f"{manifest['role']} oid={seen.role.oid} comment={seen.role.comment}",
        }
        if manifest.get("system_identifier") not in (None, seen.system_identifier):
            return Different(
                evidence,
                f"this server is {seen.system_identifier}, not {manifest['system_identifier']}: the wrong server",
            )
        named = seen.named(manifest["database"])
        ours = [d for d in seen.databases if _is_ours(d, manifest)]
        if seen.role is not None and not _marked(seen.role.comment, manifest):
            return Different(evidence, f"role {manifest['role']!r} is not the one that was made for this resource")
        if named is not None and named not in ours and not ours:
            return Different(evidence, f"database {named.name!r} (OID {named.oid}) is not the one of this resource")
        if stray := [d for d in ours if d.name not in (manifest["database"], _newborn(manifest), _dying(manifest))]:
            return Different(evidence, f"the database was renamed to {stray[0].name!r} by somebody else")
        if not ours and seen.role is None:
            return Absent(evidence)
        return Same(evidence)

    def _must_be_same(self, seen: _Seen, manifest: Json) -> None:
        match self._judge(seen, manifest):
            case Different(why=why):
                raise Refused(why)
            case Absent():
                raise Refused("the object is no longer there")
            case Same():
                return

    def _right_server(self, seen: _Seen, manifest: Json) -> None:
        if manifest.get("system_identifier") not in (None, seen.system_identifier):
            raise Refused(
                f"this server is {seen.system_identifier}, not {manifest['system_identifier']}: the wrong server"
            )

    def _allowed(self, manifest: Json) -> None:
        for name in (manifest["database"], manifest.get("role")):
            if name in self._protected:
                raise Refused(f"{name!r} is protected: it is never adopted or torn down")

    def _not_ours_to_take(self, seen: _Seen, manifest: Json) -> None:
        database = seen.named(manifest["database"])
        if {manifest["database"], manifest.get("role")} & set(seen.us):
            raise Refused("this is the role or database that deprovisioner itself works with")
        if (manifest.get("role") or "").startswith("pg_"):
            raise Refused(f"role {manifest['role']!r} is PostgreSQL's own")
        if seen.role is not None and seen.role.superuser:
            raise Refused(f"role {manifest['role']!r} is a superuser: no customer's")
        if database is not None and database.template:
            raise Refused(f"database {database.name!r} is a template: no customer's")

    def _not_a_bystander(self, seen: _Seen, manifest: Json) -> None:
        if seen.role is not None and (others := set(seen.role.owns) - {manifest["database"]}):
            raise Refused(f"role {manifest['role']!r} owns another database too: {sorted(others)[0]!r}")

    # -- making ------------------------------------------------------------------------------------------------

    def _make_role(self, session: _Session, seen: _Seen, manifest: Json, password: str) -> None:
        # Hashed here: a password in CREATE ROLE would stand in the server's log.
        verifier = extensions.encrypt_password(password, manifest["role"], session, "scram-sha-256")
        if seen.role is not None:
            if not _marked(seen.role.comment, manifest):
                raise Refused(f"role {manifest['role']!r} exists and is not of this resource")
            return
        with _transaction(session):
            _execute(
                session,
                "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {password}",
                role=manifest["role"],
                password=sql.Literal(verifier),
            )
            _execute(
                session,
                "COMMENT ON ROLE {role} IS {mark}",
                role=manifest["role"],
                mark=sql.Literal(mark(manifest["generation"])),
            )
            # Membership lets a service role that is no superuser end its sessions and drop it later.
            _execute(session, "GRANT {role} TO CURRENT_USER", role=manifest["role"])

    def _make_database(self, session: _Session, seen: _Seen, manifest: Json) -> None:
        named = seen.named(manifest["database"])
        if named is not None:
            if not _is_ours(named, manifest):
                raise Refused(f"database {manifest['database']!r} exists and is not of this resource")
            return
        newborn = _newborn(manifest)
        if seen.named(newborn) is not None:
            # Left by an attempt that died: whether it is whole is not worth finding out, it holds nothing yet.
            _execute(session, "DROP DATABASE {name}", name=newborn)
        # template0: a session in template1 would make it fail.
        _execute(session, "CREATE DATABASE {name} TEMPLATE template0", name=newborn)
        with _transaction(session):
            _execute(session, "REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=newborn)
            _execute(
                session,
                "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {name} TO {role}",
                name=newborn,
                role=manifest["role"],
            )
            _execute(
                session,
                "COMMENT ON DATABASE {name} IS {mark}",
                name=newborn,
                mark=sql.Literal(mark(manifest["generation"])),
            )
            _execute(session, "ALTER DATABASE {old} RENAME TO {new}", old=newborn, new=manifest["database"])

    # -- ending ------------------------------------------------------------------------------------------------

    def _quarantine(self, session: _Session, manifest: Json) -> None:
        seen = self._look(session, manifest)
        self._not_ours_to_take(seen, manifest)
        match self._judge(seen, manifest):
            case Different(why=why):
                raise Refused(why)
            case Absent():
                return
            case Same():
                pass
        if seen.role is not None:
            _execute(session, "ALTER ROLE {role} NOLOGIN", role=manifest["role"])
        named = seen.named(manifest["database"])
        ours = named if named is not None and _is_ours(named, manifest) else None
        self._end_sessions(session, ours, seen.role)
        if ours is None:
            return
        with _transaction(session):  # or clients under other roles come back as fast as they are ended
            _execute(session, "ALTER DATABASE {name} CONNECTION LIMIT 0", name=manifest["database"])
            limited = self._look(session, manifest).named(manifest["database"])
            if limited is None or not _is_ours(limited, manifest):
                raise Refused(f"database {manifest['database']!r} is no longer the one of this resource")
        self._end_sessions(session, ours, seen.role)
        for last in (*[False] * (RENAME_TRIES - 1), True):
            try:
                self._rename_away(session, manifest)
            except errors.ObjectInUse as error:
                if last:
                    raise Transient(f"database {manifest['database']!r} is in use: {_first_line(error)}") from error
                self._end_sessions(session, ours, seen.role)
            else:
                return

    def _end_sessions(self, session: _Session, database: _Database | None, role: _Role | None) -> None:
        with session.cursor() as cursor:
            cursor.execute(
                """
                SELECT pg_terminate_backend(pid, %(wait)s) FROM pg_stat_activity
                 WHERE (datid = %(database)s OR usesysid = %(role)s) AND pid <> pg_backend_pid()
                   AND COALESCE(backend_type, '') NOT LIKE 'autovacuum%%'""",  # the server ends those itself
                {
                    "wait": TERMINATE_TIMEOUT_MS,
                    "database": database.oid if database else None,
                    "role": role.oid if role else None,
                },
            )
            cursor.execute(
                "SELECT gid FROM pg_prepared_xacts WHERE database = %s", (database.name if database else None,)
            )
            prepared = [gid for (gid,) in cursor]
        if database and prepared:  # they hold the database open, and outlive every session
            with self._session(database.name) as inside:
                for gid in prepared:
                    _execute(inside, "ROLLBACK PREPARED {gid}", gid=sql.Literal(gid))

    def _rename_away(self, session: _Session, manifest: Json) -> None:
        """The atomic quarantine: after the rename, and before the commit, what was renamed must be ours."""
        with _transaction(session):
            _execute(session, "ALTER DATABASE {name} ALLOW_CONNECTIONS false", name=manifest["database"])
            _execute(session, "ALTER DATABASE {old} RENAME TO {new}", old=manifest["database"], new=_dying(manifest))
            renamed = self._look(session, manifest).named(_dying(manifest))
            if renamed is None or not _is_ours(renamed, manifest):
                raise Refused(f"database {manifest['database']!r} is no longer the one of this resource")

    def _drop_role(self, session: _Session, manifest: Json) -> None:
        role = self._look(session, manifest).role
        if role is None:
            return
        if not _marked(role.comment, manifest):
            raise Refused(f"role {manifest['role']!r} is no longer the one of this resource")
        with session.cursor() as cursor:
            cursor.execute(
                """
                SELECT DISTINCT datname FROM pg_shdepend JOIN pg_database ON pg_database.oid = dbid
                 WHERE refclassid = 'pg_authid'::regclass AND refobjid = %s AND datallowconn""",
                (role.oid,),
            )
            elsewhere = [name for (name,) in cursor]
        for name in elsewhere:  # what it owns in a neighbour's database is the neighbour's: handed over, not dropped
            with self._session(name) as neighbour:
                _disown(neighbour, manifest["role"])
                session.did += [f"in {name!r}: {statement}" for statement in neighbour.did]
        with _transaction(session):  # the look right before: a role has no name that nobody else can have
            if (role := self._look(session, manifest).role) is None:
                return
            if not _marked(role.comment, manifest):
                raise Refused(f"role {manifest['role']!r} is no longer the one of this resource")
            _disown(session, manifest["role"])
            _execute(session, "DROP ROLE {role}", role=manifest["role"])

    # -- sessions ----------------------------------------------------------------------------------------------

    @contextmanager
    def _session(
        self, database: str | None = None, *, seconds: float = WORK_SECONDS, forbidden: type[BackendError] = Transient
    ) -> Iterator["_Session"]:
        """An autocommit connection; what goes wrong on it comes out as Unavailable, Transient or `forbidden`.

        A server that stands still answers nothing and times nothing out: after `seconds` the connection is cut.
        """
        words = _SESSION | self._words | ({"dbname": database} if database else {})
        words["options"] = f"{self._words.get('options', '')} {_SESSION['options']}"
        try:
            session = psycopg2.connect(extensions.make_dsn(**words), connection_factory=_Session)
        except psycopg2.OperationalError as error:
            raise Unavailable(_first_line(error)) from error
        watch = threading.Timer(seconds, _cut, (session.fileno(),))
        watch.daemon = True
        watch.start()
        try:
            session.autocommit = True
            yield session
        except errors.InsufficientPrivilege as error:
            raise forbidden(f"the server forbids it: {_first_line(error)}") from error
        except psycopg2.Error as error:
            raise (Unavailable if _lost(error) else Transient)(_first_line(error)) from error
        finally:
            watch.cancel()
            session.close()

    @contextmanager
    def _inside(self, session: "_Session", *names: str | None) -> Iterator[None]:
        """One worker at a time inside one object, a zombie included: the lock dies with the session that does the work.

        The key is made with the DSN: customers can connect to the maintenance database, and must not be able to
        keep a teardown waiting.
        """
        with session.cursor() as cursor:
            for name in filter(None, names):
                digest = hashlib.blake2b(name.encode(), key=self._dsn.encode()[:64], digest_size=8).digest()
                cursor.execute("SELECT pg_advisory_lock(%s)", (int.from_bytes(digest, signed=True),))
        yield


def _cut(descriptor: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as line:
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def _transaction(session: _Session) -> Iterator[None]:
    _execute(session, "BEGIN")
    try:
        yield
    except BaseException:
        if not session.closed:
            _execute(session, "ROLLBACK")
        raise
    _execute(session, "COMMIT")


def _execute(session: _Session, statement: str, **words: Any) -> None:
    """Run a statement; a plain string among `words` is a name and is quoted as one."""
    quoted = {key: sql.Identifier(word) if isinstance(word, str) else word for key, word in words.items()}
    with session.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(**quoted))
    session.did.append(statement.format(**{key: getattr(word, "string", "…") for key, word in quoted.items()}))


def _disown(session: _Session, role: str) -> None:
    _execute(session, "REASSIGN OWNED BY {role} TO CURRENT_USER", role=role)
    _execute(session, "DROP OWNED BY {role}", role=role)


def _mark(session: _Session, what: str, name: str, comment: str | None, generation: uuid.UUID) -> None:
    ours = mark(str(generation))
    if comment and comment.endswith(ours):
        return
    if comment and "deprovisioner gen=" in comment:
        raise Refused(f"{what.lower()} {name!r} belongs to another resource already")
    words = sql.Literal(f"{comment} {ours}" if comment else ours)
    _execute(session, f"COMMENT ON {what} {{name}} IS {{words}}", name=name, words=words)


def _marked(comment: str | None, manifest: Json) -> bool:
    return comment is not None and comment.endswith(mark(manifest["generation"]))


def _is_ours(database: _Database, manifest: Json) -> bool:
    if manifest.get("oid") not in (None, database.oid):
        return False
    # Between CREATE and COMMENT a newborn has only its name, which holds the generation.
    return _marked(database.comment, manifest) or database.name == _newborn(manifest)


def _newborn(manifest: Json) -> str:
    return f"zz_new_{manifest['generation']}"


def _dying(manifest: Json) -> str:
    return f"zz_del_{manifest['generation']}"


def _system_identifier(session: _Session) -> int:
    with session.cursor() as cursor:
        cursor.execute("SELECT system_identifier FROM pg_control_system()")
        return int(cursor.fetchone()[0])


def _lost(error: psycopg2.Error) -> bool:
    # No SQLSTATE: libpq lost the server. 57P0x: shutting down, crashed, starting; 53300: no connection slot.
    state = error.pgcode
    return state is None or state[:2] == "08" or state in ("57P01", "57P02", "57P03", "53300")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
