"""`deprovisioner backends check`: what it prints, and its exit codes."""

import json

from deprovisioner.up.servers import free_port
from tests.support.processes import shell


def test_each_backend_is_asked_as_its_service_account_and_findings_come_with_what_mends_them(
    env: dict[str, str],
) -> None:
    answer = shell(env, "backends", "check", "--json")
    told = json.loads(answer.stdout)
    assert (answer.returncode, told["ok"]) == (1, False)
    backends = {one["backend"]: one for one in told["backends"]}
    assert {name: (one["kind"], one["error"]) for name, one in backends.items()} == {
        "pg-main": ("postgres", None),
        "redis-main": ("redis", None),
    }
    (finding,) = backends["redis-main"]["findings"]  # the tests' default user needs no password
    assert (finding["code"], finding["mend"][:20]) == ("public_connect", "ACL SETUSER default ")
    shown = shell(env, "backends", "check", "redis-main").stdout
    assert f"found      redis-main {finding['code']}: {finding['what']}\n           {finding['mend']}" in shown
    assert "pg-main" not in shown


def test_a_backend_that_cannot_be_asked_is_unchecked_and_shows_no_secret(env: dict[str, str]) -> None:
    port = free_port()
    away = env | {"PG_MAIN_DSN": f"postgresql://service:hunter2@127.0.0.1:{port}/postgres"}
    answer = shell(away, "backends", "check", "pg-main")
    assert answer.returncode == 1
    assert answer.stdout.startswith("UNCHECKED  pg-main: ")
    assert str(port) in answer.stdout
    assert "hunter2" not in answer.stdout + answer.stderr
    without = shell(
        {name: value for name, value in env.items() if name != "PG_MAIN_DSN"}, "backends", "check", "--json"
    )
    told = {one["backend"]: one["error"] for one in json.loads(without.stdout)["backends"]}
    assert "PG_MAIN_DSN is not set" in told["pg-main"]
    assert told["redis-main"] is None


def test_a_name_that_is_not_in_the_backends_file_is_refused(env: dict[str, str]) -> None:
    answer = shell(env, "backends", "check", "pg-mian")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "there is no backend 'pg-mian' in the backends file; it has: pg-main, redis-main" in answer.stderr
