"""PostgreSQL as a Subject of the conformance suite, 18 and 15, with the documented account."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psycopg2

from deprovisioner.sdk import Backend, Json
from deprovisioner.up import servers as embedded
from outbox.kinds.postgres import KIND
from tests.support import accounts
from tests.support.servers import OLD_POSTGRES_PROGRAMS, serving_old_postgres, serving_postgres
from tests.support.standby import lagging
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres

_ROWS = 100


@contextmanager
def subject() -> Iterator["Subject"]:
    """On a server of its own, from the wheel."""
    with serving_postgres() as server, on(server) as made:
        yield made


@contextmanager
def subject15() -> Iterator["Subject"]:
    """On a PostgreSQL 15 of its own."""
    with serving_old_postgres() as server, on(server, OLD_POSTGRES_PROGRAMS) as made:
        yield made


@contextmanager
def on(server: PgServer, programs: Path | None = None) -> Iterator["Subject"]:
    """On a server that others use too; `programs`: its version's folder. What was made by hand is removed again."""
    databases, roles = server.databases(), server.roles()
    with ExitStack() as life:
        yield Subject(server, programs, life)
    for name in server.databases() - databases:
        server.query(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        server.query(f'DROP DATABASE "{name}" WITH (FORCE)')
    for role in server.roles() - roles:
        if not role.startswith("deprovisioner_nobody_"):  # it stays: see docs/backends.md
            server.query(f'DROP OWNED BY "{role}"')
            server.query(f'DROP ROLE "{role}"')


class Subject:
    """See `deprovisioner.conformance.Subject`."""

    calls = ("worker.backends.postgres.session.Session.execute", "worker.backends.postgres.obstacles.end_sessions")
    not_shown: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: PgServer, programs: Path | None, life: ExitStack) -> None:
        self.server, self._programs, self._life = server, programs, life
        self._other: PgServer | None = None

    def backend(self) -> Backend:
        return Postgres(self.server.service_dsn)

    def dead(self) -> Backend:
        return Postgres(f"postgresql://x:{accounts.PASSWORD}@127.0.0.1:{embedded.free_port()}/x")

    def secrets(self, credentials: Json) -> list[str]:
        return [credentials["password"], accounts.PASSWORD]

    def bears(self, manifest: Json) -> bool:
        return self.server.bears(manifest)

    def put(self, credentials: Json) -> None:
        with closing(psycopg2.connect(credentials["dsn"])) as customer, customer, customer.cursor() as cursor:
            cursor.execute(f"CREATE TABLE t AS SELECT generate_series(1, {_ROWS}) AS n")

    def has(self, credentials: Json) -> bool:
        with closing(psycopg2.connect(credentials["dsn"])) as customer, customer.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM t")
            return cursor.fetchone() == (_ROWS,)

    def can_log_in(self, credentials: Json) -> bool:
        try:
            psycopg2.connect(credentials["dsn"]).close()
        except psycopg2.OperationalError:
            return False
        return True

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        with closing(psycopg2.connect(credentials["dsn"])) as customer:
            yield lambda: customer.cursor().execute("SELECT 1")

    def made_by_hand(self) -> tuple[Json, Json]:
        unique = uuid.uuid4().hex
        database, role = f"or%_{unique}", f"app_{unique}"
        self.server.query(f"CREATE ROLE {role} LOGIN PASSWORD 'made-by-hand'")
        accounts.adoptable(self.server, database, role)
        return KIND.manifest(database=database, role=role), self._credentials(database, role)

    def neighbours(self, manifest: Json) -> list[Json]:
        names = [(manifest["database"], manifest["role"])]
        names = [(f"{database}2", f"{role}2") for database, role in names] + [
            (database.replace("%", "%%").replace("_", "a", 1), role.replace("_", "a", 1)) for database, role in names
        ]
        for database, role in names:
            self.server.query(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'made-by-hand'")
            self.server.query(f'CREATE DATABASE "{database}" OWNER "{role}"')
        return [self._credentials(database, role) for database, role in names]

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """A database renamed and re-commented; the same with its role renamed; a role left under another name."""
        renamed = 'ALTER DATABASE "{database}" RENAME TO "moved_{generation}"'
        recommented = "COMMENT ON DATABASE \"moved_{generation}\" IS 'mine'"
        role_renamed = 'ALTER ROLE "{role}" RENAME TO "r_{generation}"'
        yield self._by_hand(renamed, recommented)
        yield self._by_hand(renamed, recommented, role_renamed)
        yield self._by_hand('DROP DATABASE "{database}"', role_renamed)

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        if self._other is None:
            self._other = self._life.enter_context(serving_postgres(self._programs))
        yield Postgres(self._other.service_dsn)

    @contextmanager
    def not_authoritative(self) -> Iterator[tuple[Backend, Backend]]:
        with lagging(self._programs) as (primary, standby):
            yield Postgres(primary.service_dsn), Postgres(standby.service_dsn)

    def weaker(self) -> Iterator[tuple[str, Backend]]:
        for right in ("CREATEDB", "CREATEROLE"):
            yield right, Postgres(accounts.fresh(self.server, f"weak_{uuid.uuid4().hex}", lacking=right))

    def destroyed_by_hand(self, manifest: Json) -> None:
        self._by_hand('DROP DATABASE "{database}"', 'DROP ROLE "{role}"')(manifest)

    def _by_hand(self, *statements: str) -> Callable[[Json], None]:
        def act(manifest: Json) -> None:
            for statement in statements:
                self.server.query(statement.format(**manifest))

        return act

    def _credentials(self, database: str, role: str) -> Json:
        where = urlsplit(self.server.dsn)
        dsn = psycopg2.extensions.make_dsn(
            host=where.hostname, port=where.port, dbname=database, user=role, password="made-by-hand"
        )
        return {"dsn": dsn, "password": "made-by-hand"}
