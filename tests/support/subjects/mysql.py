"""MariaDB as a Subject of the conformance suite, with the documented account."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import ClassVar

import pymysql

from deprovisioner.sdk import Backend, Json
from deprovisioner.up import servers as embedded
from outbox.kinds.mysql import KIND
from tests.support import accounts, mariadb_servers
from tests.support.mariadb_servers import MariadbServer, customer
from tests.support.witness import eventually
from worker.backends.mysql import Mysql
from worker.backends.mysql.names import identifier, literal, schema
from worker.backends.mysql.rights import ALL

_ROWS = 100


@contextmanager
def subject() -> Iterator["Subject"]:
    """On a MariaDB of its own, from the installed programs."""
    with mariadb_servers.serving() as server, ExitStack() as life:
        yield Subject(server, life)


class Subject:
    """See `deprovisioner.conformance.Subject`."""

    calls = ("pymysql.connections.Connection.query",)
    not_shown: ClassVar[Mapping[str, str]] = {}

    def __init__(self, server: MariadbServer, life: ExitStack) -> None:
        self._server, self._life = server, life
        self._other: MariadbServer | None = None

    def backend(self) -> Backend:
        return Mysql(self._server.service_dsn)

    def dead(self) -> Backend:
        return Mysql(f"mysql://x:{accounts.PASSWORD}@127.0.0.1:{embedded.free_port()}/x")

    def secrets(self, credentials: Json) -> list[str]:
        return [credentials["password"], accounts.PASSWORD]

    def bears(self, manifest: Json) -> bool:
        return self._server.bears(manifest)

    def put(self, credentials: Json) -> None:
        with customer(credentials) as session, session.cursor() as cursor:
            cursor.execute("CREATE TABLE t (n INT PRIMARY KEY) ENGINE = InnoDB")
            cursor.executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(_ROWS)])

    def has(self, credentials: Json) -> bool:
        with customer(credentials) as session, session.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM t")
            return bool(cursor.fetchone() == (_ROWS,))

    def can_log_in(self, credentials: Json) -> bool:
        try:
            customer(credentials).close()
        except pymysql.OperationalError:
            return False
        return True

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        session = customer(credentials)

        def use() -> None:
            with session.cursor() as cursor:
                cursor.execute("SELECT 1")

        try:
            yield use
        finally:
            with suppress(pymysql.Error):
                session.close()

    def made_by_hand(self) -> tuple[Json, Json]:
        unique = uuid.uuid4().hex[:12]
        return self._made(f"or_ders%{unique}", f"app_{unique}")

    def neighbours(self, manifest: Json) -> list[Json]:
        database, user = manifest["database"], manifest["user"]
        near = {database.replace("_", "x", 1), database.replace("%", "xy"), f"{database}x", database[:-1]} - {database}
        return [self._made(one, f"{user[:28]}{n}")[1] for n, one in enumerate(sorted(near))]

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """A user renamed; a user made again; a schema made again with other users; both marks gone."""

        def by_hand(*statements: str) -> Callable[[Json], None]:
            def act(manifest: Json) -> None:
                self._server.query(*(statement.format(**manifest) for statement in statements))

            return act

        made_again = "DROP USER `{user}`", "CREATE USER `{user}` IDENTIFIED BY 'x'"
        again = "DROP DATABASE `{database}`", "CREATE DATABASE `{database}`"
        granted = "CREATE USER `x{user}` IDENTIFIED BY 'x'", "GRANT ALL ON `{database}`.* TO `x{user}`"
        yield from (
            by_hand("RENAME USER `{user}` TO `y{user}`"),
            by_hand(*made_again),
            by_hand(*again, *granted),
            by_hand("DROP USER `{user}`", *again),
        )

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        if self._other is None:
            self._other = self._life.enter_context(mariadb_servers.serving())
        yield Mysql(self._other.service_dsn)

    @contextmanager
    def not_authoritative(self) -> Iterator[tuple[Backend, Backend]]:
        with replicated() as (primary, replica):
            yield Mysql(primary.service_dsn), Mysql(replica.service_dsn)

    def weaker(self) -> Iterator[tuple[str, Backend]]:
        for right in ("CREATE USER", "PROCESS", "SLAVE MONITOR"):
            name = f"weak_{uuid.uuid4().hex[:12]}"
            statements = [one.replace("CHANGE-ME", "p") for one in accounts.documented("mysql")]
            lacking = [
                one.replace(f"{right}, ", "")
                .replace(f", {right} ON", " ON")
                .replace(f"TO {accounts.NAME}", f"TO {name}")
                for one in statements
                if one.startswith("GRANT")
            ]
            assert lacking != [one for one in statements if one.startswith("GRANT")]
            self._server.query(f"CREATE USER {name} IDENTIFIED BY 'p'", *lacking)
            yield right, Mysql(f"mysql://{name}:p@127.0.0.1:{self._server.port}/{accounts.NAME}")
            self._server.query(f"DROP USER {name}")

    def destroyed_by_hand(self, manifest: Json) -> None:
        role = f"deprovisioner gen={manifest['generation']}"
        self._server.query(
            f"DROP DATABASE IF EXISTS {identifier(manifest['database'])}",
            f"DROP USER IF EXISTS {literal(manifest['user'])}",
            f"DROP ROLE IF EXISTS {identifier(role)}",
        )

    def _made(self, database: str, user: str) -> tuple[Json, Json]:
        service = f"GRANT {', '.join(ALL)} ON {schema(database)} TO {accounts.NAME} WITH GRANT OPTION"
        self._server.query(
            f"CREATE DATABASE {identifier(database)}",
            f"CREATE USER {literal(user)} IDENTIFIED BY 'made-by-hand'",
            f"GRANT ALL ON {schema(database)} TO {literal(user)}",
            service,
        )
        credentials = {"database": database, "user": user, "password": "made-by-hand"}
        url = f"mysql://127.0.0.1:{self._server.port}"
        return KIND.manifest(database=database, user=user), credentials | {"url": url}


@contextmanager
def replicated() -> Iterator[tuple[MariadbServer, MariadbServer]]:
    """A primary, and a replica that had all and hears no more; it is writable."""
    with (
        mariadb_servers.serving("--log-bin", "--server-id=1") as primary,
        mariadb_servers.serving("--server-id=2") as replica,
    ):
        primary.query("CREATE USER repl IDENTIFIED BY 'r'", "GRANT REPLICATION SLAVE ON *.* TO repl")
        ((position,),) = primary.query("SELECT @@gtid_binlog_pos")
        replica.query(
            f"SET GLOBAL gtid_slave_pos = '{position}'",
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {primary.port}, MASTER_USER = 'repl', "
            "MASTER_PASSWORD = 'r', MASTER_USE_GTID = slave_pos",
            "START SLAVE",
        )
        ((position,),) = primary.query("CREATE DATABASE seen", "SELECT @@gtid_binlog_pos")
        eventually(lambda: "seen" in replica.schemas())
        replica.query("STOP SLAVE")
        yield primary, replica
