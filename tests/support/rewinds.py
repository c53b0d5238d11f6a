"""A control cluster of a test's own, and each way in which its database goes back in time.

A way prepares what it needs (a standby, an archive), keeps the moment to which the database will go back, and later
puts that older state in the place of the present one: same address, same name, same rights.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from deprovisioner.up import servers as embedded
from deprovisioner.up.servers import Child
from tests.support import forked
from tests.support.servers import database_dsn
from tests.support.witness import PgServer, eventually

NAME, ROLE, PASSWORD = "ours", "deprovisioner_api", "api-secret"
# But `full_page_writes` and `synchronous_commit` stay on: tests copy the files of a server that runs.
_SETTINGS = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "80", "archive_mode": "on"}


class Control:
    """A cluster with a migrated control database, `folder/control`, at an address that stays.

    The product works as the service's role, as docs/production.md has it.
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder, self.port = folder, embedded.free_port()
        self.archive = folder / "archive"
        self.archive.mkdir(mode=0o777)
        self.archive.chmod(0o777)
        self.children: list[Child] = []
        self.root = embedded.postgres_dsn(self.port, "secret")
        if template:
            shutil.copytree(template, folder / "control")
        self.run("control", archive_command=f'cp "%p" "{self.archive}/%f" && chmod a+r "{self.archive}/%f"')
        self.server = PgServer(database_dsn(self.root, NAME), self.child.log)
        self.service_dsn = embedded.postgres_dsn(self.port, PASSWORD, NAME, ROLE)

    def run(self, name: str, port: int | None = None, **settings: str) -> Child:
        """Start the cluster in `folder/name`, at the address of them all unless `port` says another."""
        child = embedded.postgres(self.folder, name, port or self.port, "secret", _SETTINGS | settings)
        dsn = embedded.postgres_dsn(port or self.port, "secret")
        child.spawn()
        self.children.append(child)
        child.wait_until(lambda: embedded.postgres_ready(dsn))
        if port is None:
            self.child = child
        return child

    def migrate(self) -> None:
        """Make the database, with the service's role."""
        PgServer(self.root, self.child.log).query(f"CREATE DATABASE {NAME}")
        env = {"DEPROVISIONER_DATABASE_URL": self.server.dsn, "DEPROVISIONER_SERVICE_PASSWORD": PASSWORD}
        done = forked.run(["migrate", "--service-role", ROLE], os.environ | env)
        assert done.returncode == 0, done.stderr

    def end(self, how: signal.Signals) -> None:
        """End the server: SIGINT sends all to its standbys first, SIGQUIT is as a crash."""
        self.child.process.send_signal(how)
        self.child.process.wait(60)

    def stop(self) -> None:
        for child in self.children:
            child.stop_signal = signal.SIGQUIT  # at once: their data is not needed any more
            child.stop()

    def program(self, name: str, *words: str | Path) -> None:
        """Run one of PostgreSQL's client programs to its end."""
        command = [str(word) for word in (embedded._postgres_bin() / name, *words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def as_root(self, *statements: str) -> None:
        """Run statements outside of the control database."""
        for statement in statements:
            PgServer(self.root, self.child.log).query(statement)

    def end_sessions(self) -> None:
        """End all sessions of the control database."""
        self.as_root(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{NAME}'")


class Way:
    """How the database goes back."""

    def prepare(self, control: Control) -> None:
        """Before anything happens."""

    def keep(self, control: Control) -> None:
        """To this moment the database goes back."""

    def go_back(self, control: Control) -> None:
        """Put the older state in the place of the present one."""


class DumpIntoNew(Way):
    """pg_dump, restored into a new database, which then takes the name."""

    def keep(self, control: Control) -> None:
        self.file = control.folder / "dump"
        control.program("pg_dump", "-Fc", "-f", self.file, control.server.dsn)

    def go_back(self, control: Control) -> None:
        control.as_root("CREATE DATABASE restored")
        control.program("pg_restore", "--exit-on-error", "-d", database_dsn(control.root, "restored"), self.file)
        control.as_root(f"ALTER DATABASE {NAME} ALLOW_CONNECTIONS false")
        control.end_sessions()
        control.as_root(f"ALTER DATABASE {NAME} RENAME TO lost", f"ALTER DATABASE restored RENAME TO {NAME}")


class DumpIntoSame(DumpIntoNew):
    """pg_dump, restored into the same database: neither the server's identity nor the OID tells."""

    def go_back(self, control: Control) -> None:
        control.as_root(f"ALTER DATABASE {NAME} CONNECTION LIMIT 0")
        control.end_sessions()
        control.program("pg_restore", "--clean", "--if-exists", "-1", "-d", control.server.dsn, self.file)
        control.as_root(f"ALTER DATABASE {NAME} CONNECTION LIMIT -1")


class Recovery(Way):
    """A base backup and the archived WAL, recovered to an earlier point: another timeline."""

    def prepare(self, control: Control) -> None:
        _copy_base(control, "copy")

    def keep(self, control: Control) -> None:
        control.as_root("SELECT pg_create_restore_point('before')")

    def go_back(self, control: Control) -> None:
        ((last,),) = control.server.query("SELECT pg_walfile_name(pg_switch_wal())")
        archived = f"SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver"
        eventually(lambda: control.server.query(archived) == [(True,)], what="the WAL is archived")
        control.end(signal.SIGQUIT)
        (control.folder / "copy" / "recovery.signal").touch()
        control.run(
            "copy",
            restore_command=f'cp "{control.archive}/%f" "%p"',
            recovery_target_name="before",
            recovery_target_action="promote",
        )
        _is_primary(control)


class FileCopy(Way):
    """The files as they were at one moment, as a snapshot of the disk has them: the same timeline goes on."""

    def keep(self, control: Control) -> None:
        copy_files(control.child, control.folder / "control", control.folder / "copy")

    def go_back(self, control: Control) -> None:
        control.end(signal.SIGQUIT)
        control.run("copy")


class LaggingStandby(Way):
    """A standby that has lost its connection to the primary, and is promoted when that has died."""

    def prepare(self, control: Control) -> None:
        _copy_base(control, "standby", "-R")
        self.port = embedded.free_port()
        self.standby = control.run("standby", self.port)
        self.server = PgServer(embedded.postgres_dsn(self.port, "secret"), self.standby.log)

    def keep(self, control: Control) -> None:
        ((now,),) = control.server.query("SELECT pg_current_wal_flush_lsn()::text")
        eventually(lambda: self._asked(f"SELECT pg_last_wal_replay_lsn() >= '{now}'"), what="the standby has it all")
        self.server.query("ALTER SYSTEM SET primary_conninfo = ''")
        self.server.query("SELECT pg_reload_conf()")
        eventually(lambda: self._asked("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"), what="it is cut off")

    def go_back(self, control: Control) -> None:
        control.end(signal.SIGQUIT)
        self._promote(control)

    def _promote(self, control: Control) -> None:
        self.standby.stop()
        control.run("standby")
        control.as_root("SELECT pg_promote()")
        _is_primary(control)

    def _asked(self, question: str) -> bool:
        return bool(self.server.query(question)[0][0])


class CurrentStandby(LaggingStandby):
    """A standby that has everything when its primary is shut down: nothing is lost."""

    def keep(self, control: Control) -> None:
        pass

    def go_back(self, control: Control) -> None:
        control.end(signal.SIGINT)
        self._promote(control)


def copy_files(server: Child, data: Path, copy: Path) -> None:
    """Copy the files of a PostgreSQL that runs, as they are at one moment."""
    first = psutil.Process(server.process.pid)
    processes = [first, *first.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        shutil.copytree(data, copy)
    finally:
        for process in reversed(processes):
            process.resume()
    (copy / "postmaster.pid").unlink()


def files_back(server: Child, data: Path, copy: Path) -> None:
    """Restart a PostgreSQL on the files that were copied before."""
    owner = data.stat()
    server.process.send_signal(signal.SIGQUIT)
    server.process.wait(60)
    shutil.rmtree(data)
    shutil.move(copy, data)
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    server.spawn()


def _copy_base(control: Control, name: str, *words: str) -> None:
    control.program("pg_basebackup", "-d", control.root, "-D", control.folder / name, "-c", "fast", "-N", *words)


def _is_primary(control: Control) -> None:
    server = PgServer(control.root, control.child.log)
    eventually(lambda: server.query("SELECT NOT pg_is_in_recovery()") == [(True,)], what="it is promoted")


def migrated(folder: Path) -> Path:
    """The files of a cluster with a migrated control database, to be copied."""
    control = Control(folder)
    control.migrate()
    control.end(signal.SIGINT)
    return folder / "control"
