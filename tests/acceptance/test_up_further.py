"""`deprovisioner up --with`: a backend of each further kind, which the home keeps."""

import signal
from pathlib import Path

import psutil
import pytest

from deprovisioner.up import FURTHER, further, servers
from tests.support import forked
from tests.support.api import create, until
from tests.support.processes import descendants
from tests.support.up import Running, clean_environment


def test_the_option_knows_each_kind_and_names_what_it_does_not_know() -> None:
    assert tuple(further.KINDS) == FURTHER
    wrong = forked.run(("up", "--with", "s3,oracle"), clean_environment())
    assert wrong.returncode == 2
    assert "'oracle' is none of mysql, rabbitmq, s3, webhook" in wrong.stderr


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "mariadbd is not in PATH" in str(further.Mysql.missing())
    monkeypatch.setattr(further, "_RABBITMQ", tmp_path)
    assert f"there is no {tmp_path}/rabbitmq-server" in str(further.Rabbitmq.missing())


def test_tables_are_added_once_and_an_edited_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "backends.toml"
    path.write_text("# mine\n[backends.pg-main]\n")
    assert further.add_tables(path, ["s3"]) == ["s3"]
    once = path.read_text()
    assert once.startswith("# mine\n")
    assert further.add_tables(path, ["s3"]) == ["s3"]
    assert path.read_text() == once
    assert further.add_tables(path, []) == ["s3"], "a home keeps what it was given"


def _try_each(running: Running, kinds: list[str]) -> None:
    with running.api() as api:
        made = [until(api, create(api, kind, backend=f"{kind}-main"), "active") for kind in kinds]
        for one in made:
            assert api.get(f"/v1/resources/{one['id']}/credentials").status_code == 200
            assert api.delete(f"/v1/resources/{one['id']}?grace=0s").status_code == 202
        for one in made:
            until(api, one, "deleted")


def _here(kinds: tuple[str, ...]) -> list[str]:
    """Those that this machine has the programs for."""
    return [kind for kind in kinds if further.KINDS[kind].missing() is None]


@pytest.mark.proof
def test_each_kind_s_backend_works_and_a_home_starts_it_again(folder: Path) -> None:
    _live_twice(folder, _here(("s3", "webhook")))


@pytest.mark.proof
def test_servers_of_this_machine_work_and_a_home_starts_them_again(folder: Path) -> None:
    kinds = _here(("mysql", "rabbitmq"))
    if not kinds:
        pytest.skip("this machine has no programs of MariaDB or RabbitMQ")
    _live_twice(folder, kinds)


def _live_twice(folder: Path, kinds: list[str]) -> None:
    home, port = folder / "home", servers.free_port()
    first = Running(home, port, "--with", ",".join(kinds)).ready()
    try:
        _try_each(first, kinds)
        family = [process.pid for process in descendants(first.popen.pid)]
    finally:
        assert first.stop(signal.SIGTERM) == 0
    assert not [pid for pid in family if psutil.pid_exists(pid)]
    again = Running(home, port).ready()
    try:
        _try_each(again, kinds)
    finally:
        assert again.stop(signal.SIGTERM) == 0
