"""A worker checks its backends: what it finds is in its log and in the doctor."""

import json
from collections.abc import Sequence

import httpx
import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from outbox import findings
from outbox.errors import Unavailable
from tests.support.processes import System, shell
from tests.support.witness import eventually
from worker import backends, checks
from worker.backends import Backend, Finding

FOUND = Finding("door_open", "the door is open", "CLOSE DOOR")
KEPT = {"code": "door_open", "what": "the door is open", "mend": "CLOSE DOOR"}


def test_a_worker_that_starts_reports_what_it_finds_to_its_log_and_the_doctor(
    db: Connection, env: dict[str, str], system: System
) -> None:
    worker = system.worker()
    eventually(lambda: db.execute(text("SELECT count(*) FROM backend_checks")).scalar_one() == 2)
    assert '"backend_unsafe"' in worker.logs()
    told = {one["code"]: one for one in json.loads(shell(env, "doctor", "--json").stdout)["checks"]}
    with httpx.Client(base_url=system.api()) as api:
        ready = api.get("/readyz")
    assert (ready.status_code, ready.json()["ok"]) == (200, True)
    assert "deprovisioner doctor" in ready.json()["warnings"]
    (open_door,) = [one for one in told["backend_unsafe"]["sample"] if one["id"] == "redis-main"]
    assert open_door["note"].startswith("public_connect: everybody may log in as `default`")
    assert "Mend: ACL SETUSER default " in open_door["note"]
    assert told["backend_unsafe"]["status"] == "warning"


class Asked:
    """A backend that answers, or raises, as told."""

    def __init__(self, answer: Sequence[Finding] | Exception) -> None:
        self.answer = answer

    def check(self) -> Sequence[Finding]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    remember = recall = installations = None


@pytest.mark.parametrize(
    ("answer", "error"),
    [([FOUND], None), (Unavailable("no route"), "no route"), (KeyError("hunter2"), "unexpected KeyError")],
)
def test_whatever_a_check_does_it_is_kept_and_shows_no_secret(
    db: Connection, answer: Sequence[Finding] | Exception, error: str | None
) -> None:
    backend: Backend = Asked(answer)  # type: ignore[assignment]
    with capture_logs() as logged:
        checks.report(checks.check("pg-main", backend), worker="w1")
    kept = db.execute(text("SELECT backend, worker, findings, error FROM backend_checks")).one()
    assert kept == ("pg-main", "w1", [KEPT] if error is None else [], error)
    assert {line["event"] for line in logged} == {
        None: {"backend_unsafe"},
        "no route": {"backend_unchecked"},
        "unexpected KeyError": {"backend_check_failed", "backend_unchecked"},
    }[error]


def test_words_of_a_backend_are_bounded_and_storable(db: Connection) -> None:
    many = [{"code": "c", "what": f"\0\ud800{'x' * 5000}", "mend": "m"}] * 1000
    findings.record(db, "pg-main", many, worker="w1", error="\0" + "y" * 5000)
    size = db.execute(text("SELECT pg_column_size(findings) + length(error) FROM backend_checks")).scalar_one()
    assert size < 64_000


def test_a_report_is_logged_where_the_control_database_is_away(monkeypatch: pytest.MonkeyPatch, db: Connection) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("the control database is away")

    monkeypatch.setattr(findings, "record", away)
    with capture_logs() as logged:
        checks.report(checks.Checked("pg-main", [FOUND]), worker="w1")
    assert [line["event"] for line in logged] == ["backend_unsafe", "backend_check_not_recorded"]
    assert backends.check(Asked([FOUND])) == [FOUND]  # type: ignore[arg-type]


class Forgetful:
    """A backend of a kind that keeps no memory."""


def test_what_no_operator_can_mend_is_told_and_is_no_fault(db: Connection) -> None:
    checked = checks.check("pg-main", Forgetful())  # type: ignore[arg-type]
    with capture_logs() as logged:
        checks.report(checked, worker="w1")
    assert ([one.code for one in checked.findings], checked.faults, logged) == (["no_memory"], [], [])
    assert db.execute(text("SELECT findings FROM backend_checks")).scalar_one() == []
