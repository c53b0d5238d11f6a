"""MariaDB servers of the tests' own, from the installed programs, with the documented account; and what they tell."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest

from deprovisioner.up import servers as embedded
from tests.support import accounts
from tests.support.servers import server_folder
from tests.support.witness import eventually

PROGRAMS = ("mariadbd", "mariadb-install-db")
_ROOT = "root-secret"
_SYSTEM = "'mysql', 'sys', 'performance_schema', 'information_schema'"
_FAST = (
    *("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-fast-shutdown=2"),
    *(
        "--innodb-flush-method=nosync",
        "--aria-pagecache-buffer-size=8M",
        "--key-buffer-size=1M",
        "--event-scheduler=ON",
    ),
    *("--skip-name-resolve", "--max-connections=60", "--performance-schema=OFF"),
)


class MariadbServer:
    """A server seen from outside, as root: its catalog, and its general log."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port, self.socket = port, str(folder / "socket")
        self.general_log = folder / "general.log"
        self.url = f"mysql://root:{_ROOT}@127.0.0.1:{port}/mysql"
        self.service_dsn = accounts.in_its_database(accounts.as_service(self.url))

    def root(self) -> "pymysql.connections.Connection[Any]":
        """A session of root's; it has a place even where all connections are taken."""
        password = _ROOT if self.named else ""
        return pymysql.connect(
            unix_socket=self.socket, user="root", password=password, autocommit=True, ssl_disabled=True
        )

    named = False

    def query(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last of these statements."""
        with self.root() as session, session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def schemas(self) -> set[str]:
        """All schemas that are not the server's own."""
        return {
            name
            for (name,) in self.query(
                f"SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME NOT IN ({_SYSTEM})"
            )
        }

    def users(self) -> set[tuple[str, str]]:
        """All users, each at a host, and all roles, without one."""
        return set(
            self.query("SELECT User, Host FROM mysql.global_priv WHERE User NOT IN ('root', 'mariadb.sys', 'PUBLIC')")
        )

    def bears(self, manifest: dict[str, Any]) -> bool:
        """Whether any of the server's tables names the object."""
        database, role = manifest["database"], f"deprovisioner gen={manifest['generation']}"
        exact = database.replace("_", "\\_").replace("%", "\\%")
        asked = (
            ("information_schema.SCHEMATA", "SCHEMA_NAME = %(database)s"),
            ("mysql.global_priv", "User IN (%(user)s, %(role)s)"),
            ("mysql.roles_mapping", "User = %(user)s OR Role = %(role)s"),
            ("mysql.db", "User = %(user)s OR Db IN (%(database)s, %(exact)s)"),
            *(
                (f"mysql.{table}", "User = %(user)s OR Db = %(database)s")
                for table in ("tables_priv", "columns_priv", "procs_priv")
            ),
            *((f"mysql.{table}", "db = %(database)s") for table in ("proc", "event")),
            ("information_schema.PROCESSLIST", "USER = %(user)s OR DB = %(database)s"),
        )
        words = {name: manifest[name] for name in ("database", "user")} | {"exact": exact, "role": role}
        with self.root() as session, session.cursor() as cursor:
            for table, where in asked:
                cursor.execute(f"SELECT 1 FROM {table} WHERE {where}", words)
                if cursor.fetchall():
                    return True
        return False

    def errors(self, words: str) -> list[str]:
        """The lines of the error log with these words."""
        found = self.general_log.with_name("error.log").read_text(errors="replace").splitlines()
        return [line for line in found if words in line]

    def log(self) -> list[str]:
        """The statements that clients sent."""
        return self.general_log.read_text(errors="replace").splitlines()


@contextmanager
def serving(*options: str) -> Iterator[MariadbServer]:
    """A server of its own with the documented account; skips the test where the programs are missing."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"no MariaDB on this machine: {missing[0]} is not in PATH")
    folder = server_folder("mariadb")
    folder.chmod(0o755)
    try:
        data = folder / "data"
        words = (f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db", "--user=root")
        subprocess.run(["mariadb-install-db", "--no-defaults", *words], check=True, capture_output=True)
        server = MariadbServer(folder, embedded.free_port())
        places = (
            f"--datadir={data}",
            f"--socket={server.socket}",
            f"--port={server.port}",
            f"--pid-file={folder / 'pid'}",
        )
        logs = (f"--log-error={folder / 'error.log'}", "--general-log=1", f"--general-log-file={server.general_log}")
        command = [
            "mariadbd",
            "--no-defaults",
            "--user=root",
            "--bind-address=127.0.0.1",
            *places,
            *logs,
            *_FAST,
            *options,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: _answers(server) or process.poll() is not None)
            assert process.poll() is None, (folder / "error.log").read_text()[-2000:]
            server.query(f"ALTER USER root@localhost IDENTIFIED BY '{_ROOT}'")
            server.named = True
            server.query(*(one.replace("CHANGE-ME", accounts.PASSWORD) for one in accounts.documented("mysql")))
            yield server
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(server: MariadbServer) -> bool:
    with closing(socket.socket()) as probe:  # pymysql leaves a socket open that nothing answers at
        return probe.connect_ex(("127.0.0.1", server.port)) == 0


def customer(credentials: dict[str, Any]) -> "pymysql.connections.Connection[Any]":
    """A customer's session."""
    where = urlsplit(credentials["url"])
    return pymysql.connect(
        host=where.hostname,
        port=where.port or 3306,
        user=credentials["user"],
        password=credentials["password"],
        database=credentials["database"],
        autocommit=True,
        ssl_disabled=True,
    )
