"""Servers of a backend that move: a test's own clusters, and each way to bring one to another server."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deprovisioner.up import servers as embedded
from deprovisioner.up import users
from deprovisioner.up.servers import Child
from tests.support import accounts
from tests.support.servers import OLD_POSTGRES_PROGRAMS, server_folder
from tests.support.witness import PgServer

NEW = embedded._postgres_bin()
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB", "log_statement": "ddl"}


class Clusters:
    """PostgreSQL clusters in one folder, each with the documented account once `account` was called."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.children: dict[str, Child] = {}
        self.programs: dict[str, Path] = {}

    def start(self, name: str, programs: Path = NEW, **settings: str) -> PgServer:
        """The cluster in `home/name`, made on first use, at a port of its own."""
        port = embedded.free_port()
        made = embedded.postgres(self.home, name, port, "secret", _SETTINGS | settings, programs=programs)
        self.children[name], self.programs[name] = made, programs
        made.spawn()
        dsn = embedded.postgres_dsn(port, "secret")
        made.wait_until(lambda: embedded.postgres_ready(dsn))
        return PgServer(dsn, made.log, accounts.in_its_database(accounts.as_service(dsn)))

    def stop(self, name: str) -> None:
        self.children[name].stop()

    def upgrade(self, old: str, new: str) -> "subprocess.CompletedProcess[str]":
        """`pg_upgrade` from a stopped cluster to a new and stopped one, by the new one's program."""
        for name in (old, new):  # 15 makes clusters without, 18 with
            self.program(self.programs[name] / "pg_checksums", "--disable", "-D", self.home / name, check=False)
        words = ["-b", self.programs[old], "-B", self.programs[new], "-d", self.home / old, "-D", self.home / new]
        done = self.program(self.programs[new] / "pg_upgrade", *words, "-U", "postgres", "--no-sync", check=False)
        for log in (self.home / new).glob("pg_upgrade_output.d/**/pg_upgrade_dump_*.log"):
            done.stdout += log.read_text()[-2000:]
        return done

    def program(self, path: Path, *words: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a program as a user that may read all clusters, and that has a name, as pg_upgrade wants."""
        user = users.of_server(self.home, "none", path)
        named = user.with_a_name() if user else None
        work = self.home / "work"
        work.mkdir(exist_ok=True)
        if named:
            for data in (work, *(self.home / name for name in self.children)):
                subprocess.run(["chown", "-R", f"{named.uid}:{named.gid}", str(data)], check=True)
        done = subprocess.run(
            [str(word) for word in (path, *words)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=work,
            env={"PGPASSWORD": "secret", "PATH": os.environ["PATH"]},
            user=named.uid if named else None,
            group=named.gid if named else None,
            extra_groups=[named.home_gid] if named else None,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@contextmanager
def clusters() -> Iterator[Clusters]:
    """Stopped, and removed, at the end of the block."""
    home = server_folder("moves")
    users.close(home)
    made = Clusters(home)
    try:
        yield made
    finally:
        for child in made.children.values():
            child.stop()
        shutil.rmtree(home, ignore_errors=True)


def forget_column_versions(old: PgServer) -> None:
    """A minor release of 15 marks columns with an option (`pg_attver`) that the 18 of the wheel does not know yet."""
    for name in old.databases() - {"template0"}:
        old.query(
            "UPDATE pg_attribute SET attoptions = NULL WHERE array_to_string(attoptions, ',') LIKE 'pg_attver=%'",
            database=name,
        )


def dump_and_restore(old: PgServer, new: PgServer) -> None:
    """`pg_dumpall` of one server into another: roles, databases, comments and rights."""
    env = {"PGPASSWORD": "secret", "PATH": os.environ["PATH"]}  # it connects again for each database
    dump = subprocess.run(
        [str(NEW / "pg_dumpall"), "-d", old.dsn], capture_output=True, check=False, timeout=120, env=env
    )
    assert dump.returncode == 0, dump.stderr.decode()
    words = [str(NEW / "psql"), "-X", "-q", "-d", new.dsn]
    done = subprocess.run(words, input=dump.stdout, capture_output=True, check=True, timeout=120)
    errors = [line for line in done.stderr.decode().splitlines() if "ERROR" in line]
    assert [line for line in errors if 'role "postgres" already exists' not in line] == [], errors


__all__ = ["NEW", "OLD_POSTGRES_PROGRAMS", "Clusters", "clusters", "dump_and_restore"]
