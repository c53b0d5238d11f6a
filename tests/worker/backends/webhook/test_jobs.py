"""A provisioner's answers, and what becomes of the job, by the runner itself; the provisioner's log counts effects."""

import json
import threading
import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import jobs, observations
from outbox.states import Found
from tests.support.factories import a_job, claims, job, unguarded
from tests.support.provisioners import ACTIONS, VERBS, Served, after, only, says
from tests.worker.backends.webhook.conftest import Serve, provisioned
from worker import observer
from worker.backends import Same
from worker.backends.caller import Caller, caller, calling
from worker.backends.webhook import Webhook
from worker.run import Run

SIGNED = {"webhook-id", "webhook-timestamp", "webhook-signature"}


class DiedError(BaseException):
    """The worker's death: no handler of the product sees it."""


def a_teardown(db: Connection, manifest: dict[str, Any], **words: Any) -> int:
    id = a_job(db, **words)
    asked = "UPDATE resources SET manifest = :manifest, generation = :generation WHERE id = :id"
    words = {"manifest": json.dumps(manifest), "generation": manifest["generation"]}
    unguarded(db, asked, id=job(db, id).resource_id, **words)
    return id


def attempt(db: Connection, id: int, dsn: str) -> Any:
    """One attempt of a worker that has just started; the job after it."""
    db.execute(text("UPDATE outbox SET available_at = now() WHERE state = 'pending'"))
    db.execute(text("DELETE FROM breakers"))
    (claim,) = claims(db)
    assert claim.id == id
    Run(claim, Webhook(dsn), worker="w1")()
    return job(db, id)


def dies(db: Connection, id: int, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt whose worker dies as the provisioner has done its work, and before it reads the answer."""
    (claim,) = claims(db)
    with monkeypatch.context() as patch:
        honest = Webhook.teardown

        def teardown(self: Webhook, *words: Any) -> None:
            honest(self, *words)
            raise DiedError

        patch.setattr(Webhook, "teardown", teardown)
        with pytest.raises(DiedError):
            Run(claim, Webhook(served.dsn()), worker="dead")()
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")


def test_a_teardown_has_one_effect_and_ends_with_what_the_provisioner_did(
    db: Connection, served: Served, made: dict[str, Any]
) -> None:
    id = a_teardown(db, made)
    done = attempt(db, id, served.dsn())
    assert (done.state, served.effects()) == ("succeeded", ["provision", "deprovision"])
    (did,) = db.execute(
        text("SELECT detail -> 'did' FROM events WHERE job_id = :id AND event = 'completed'"), {"id": id}
    )
    assert did[0] == {"status": 200, "did": {"notebooks": 1}}


def test_the_key_is_that_of_the_job_and_its_step_at_each_attempt_and_the_fence_rises(
    db: Connection, served: Served, made: dict[str, Any]
) -> None:
    id = a_teardown(db, made, step="quarantine")
    for path, status in (("/quarantine", "500 Oops"), ("/deprovision", "504 Gateway Timeout")):
        served.meddle = only(path, says(status, server=served.notebooks.server), times=1)
        assert attempt(db, id, served.dsn()).state == "pending"
        attempt(db, id, served.dsn())
    assert job(db, id).state == "succeeded"
    acted = [request for request in served.requests if request.path in ("/quarantine", "/deprovision")]
    told = [(one.headers.get("idempotency-key"), one.headers.get("x-deprovisioner-fence")) for one in acted]
    first, again = f"{id}-quarantine", f"{id}-destroy"
    assert told == [(first, "1"), (first, "2"), (again, "3"), (again, "4")]
    assert all(one.headers["webhook-id"] == one.headers["idempotency-key"] for one in acted), "so the key is signed"
    assert all(request.headers.keys() >= SIGNED for request in served.requests)
    assert served.effects() == ["provision", "quarantine", "deprovision"]


def test_a_verb_knows_the_job_that_calls_it_and_only_then(db: Connection) -> None:
    assert caller() is None
    with calling(7, 3):
        assert caller() == Caller(7, 3)
    assert caller() is None


@pytest.mark.parametrize("verbs", [VERBS, ACTIONS], ids=["observable", "not observable"])
def test_a_provisioner_that_answers_500_after_its_work(db: Connection, serve: Serve, verbs: tuple[str, ...]) -> None:
    served = serve(verbs=verbs)
    made = served.marked()
    served.meddle = only("/deprovision", after(lambda: None, says("500 Oops", server=served.notebooks.server)))
    id = a_teardown(db, made)
    first = attempt(db, id, served.dsn(wait=1))
    if verbs == ACTIONS:
        assert (first.state, first.stuck_reason) == ("stuck", "outcome_unknown")
    else:
        assert first.state == "pending"
        assert attempt(db, id, served.dsn()).state == "succeeded"
    assert served.effects() == ["deprovision"]
    assert served.asked()["/deprovision"] == 1


@pytest.mark.parametrize("verbs", [VERBS, ACTIONS], ids=["observable", "not observable"])
def test_a_worker_that_dies_after_the_work(
    db: Connection, serve: Serve, monkeypatch: pytest.MonkeyPatch, verbs: tuple[str, ...]
) -> None:
    served = serve(verbs=verbs)
    id = a_teardown(db, provisioned(Webhook(served.dsn())))
    dies(db, id, served, monkeypatch)
    done = attempt(db, id, served.dsn())
    assert (done.state, done.stuck_reason) == (
        ("stuck", "outcome_unknown") if verbs == ACTIONS else ("succeeded", None)
    )
    assert served.effects() == ["provision", "deprovision"]
    assert served.asked()["/deprovision"] == 1, "it is not asked again"


def test_with_status_urls_alone_the_next_attempt_asks_under_the_same_key(
    db: Connection, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(verbs=ACTIONS, seconds=0.1)
    id = a_teardown(db, provisioned(Webhook(served.dsn())))
    dies(db, id, served, monkeypatch)
    assert attempt(db, id, served.dsn()).state == "succeeded"
    keys = [one.headers["idempotency-key"] for one in served.requests if one.path == "/deprovision"]
    assert keys == [f"{id}-destroy"] * 2
    assert served.effects() == ["provision", "deprovision"]


def test_without_inspect_the_word_of_the_teardown_is_what_a_teardown_ends_by(db: Connection, serve: Serve) -> None:
    served = serve(verbs=ACTIONS)
    id = a_teardown(db, provisioned(Webhook(served.dsn())))
    assert attempt(db, id, served.dsn()).state == "succeeded"
    seen = db.execute(
        text("SELECT detail -> 'seen' FROM events WHERE job_id = :id AND event = 'completed'"), {"id": id}
    ).scalar_one()
    assert seen == {"not_inspected": True, "status": 200}


def test_without_inspect_a_provisioner_that_is_away_is_asked_for_nothing_and_no_attempt_counts(
    db: Connection, serve: Serve
) -> None:
    served = serve(verbs=ACTIONS)
    id = a_teardown(db, provisioned(Webhook(served.dsn())))
    served.meddle = says("503 Service Unavailable")
    waiting = attempt(db, id, served.dsn())
    assert (waiting.state, waiting.attempts) == ("pending", 0)
    assert served.asked()["/deprovision"] == 0
    served.meddle = None
    assert attempt(db, id, served.dsn()).state == "succeeded"


def test_without_inspect_a_provisioner_that_is_busy_is_asked_again_while_that_is_certain(
    db: Connection, serve: Serve
) -> None:
    """It said itself that it did nothing: later nobody could know."""
    served = serve(verbs=ACTIONS)
    id = a_teardown(db, provisioned(Webhook(served.dsn())))
    busy = says("503 Service Unavailable", server=served.notebooks.server, Retry_After="0")
    served.meddle = only("/deprovision", busy, times=1)
    assert attempt(db, id, served.dsn()).state == "succeeded"
    assert served.effects() == ["provision", "deprovision"]


def test_without_inspect_a_provisioner_that_is_restarted_is_asked_again_within_the_attempt(serve: Serve) -> None:
    """Nothing was sent to it: later nobody could know."""
    served = serve(verbs=ACTIONS)
    backend, made, came = Webhook(served.dsn()), served.marked(), list[int]()

    def still() -> None:
        came.append(len(came))
        if len(came) == 1:
            served.stop()
        else:
            serve(home=served.notebooks.file.parent, verbs=ACTIONS, port=served.port)

    backend.quarantine(made, still)
    assert (came, served.effects()) == ([0, 1], ["quarantine"])


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_busy_provisioner_costs_no_attempt(db: Connection, served: Served, made: dict[str, Any], status: str) -> None:
    id = a_teardown(db, made, max_attempts=1)
    served.meddle = only("/deprovision", says(status, server=served.notebooks.server))
    waiting = attempt(db, id, served.dsn())
    assert (waiting.state, waiting.attempts) == ("pending", 0)
    served.meddle = None
    assert attempt(db, id, served.dsn()).state == "succeeded"


def test_a_hanging_provisioner_that_works_all_the_same_is_not_asked_twice(
    db: Connection, served: Served, made: dict[str, Any]
) -> None:
    released = threading.Event()
    served.meddle = only("/deprovision", after(lambda: released.wait(30)))
    id = a_teardown(db, made)
    first = attempt(db, id, served.dsn(timeout=1))
    assert (first.state, "did not answer within 1 s" in first.last_error) == ("pending", True)
    assert attempt(db, id, served.dsn(timeout=1)).state == "succeeded"
    released.set()
    assert served.asked()["/deprovision"] == 1


def test_a_lying_404_never_ends_a_teardown(db: Connection, served: Served, made: dict[str, Any]) -> None:
    id = a_teardown(db, made, max_attempts=2)
    served.meddle = only("/inspect", says("404 Not Found", server=served.notebooks.server))
    assert attempt(db, id, served.dsn()).state == "pending"
    done = attempt(db, id, served.dsn())
    assert (done.state, done.stuck_reason) == ("stuck", "attempts_exhausted")
    assert "lists it" in done.last_error
    assert served.effects() == ["provision"]


def test_a_wrong_secret_stops_nothing_for_good(
    db: Connection, served: Served, made: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "whsec_" + "QUJD" * 10
    id = a_teardown(db, made)
    waiting = attempt(db, id, f"{served.url}/?secret={wrong}")
    assert (waiting.state, waiting.attempts) == ("pending", 0)
    assert "does not take our signature (HTTP 401)" in waiting.last_error
    assert wrong not in waiting.last_error + caplog.text
    assert attempt(db, id, served.dsn()).state == "succeeded"


def test_a_provisioner_behind_the_wrong_address_makes_the_job_stuck(
    db: Connection, serve: Serve, made: dict[str, Any]
) -> None:
    other = serve()
    stuck = attempt(db, a_teardown(db, made), other.dsn())
    assert (stuck.state, stuck.stuck_reason) == ("stuck", "refused")
    assert "wrong server" in stuck.last_error


@pytest.mark.parametrize("missing", ["quarantine", "release"])
def test_what_cannot_be_cut_off_is_stuck_with_a_grace_and_can_be_restored(
    db: Connection, serve: Serve, missing: str
) -> None:
    served = serve(verbs=tuple(verb for verb in VERBS if verb != missing))
    made = provisioned(Webhook(served.dsn()))
    stuck = attempt(db, a_teardown(db, made, step="quarantine"), served.dsn())
    assert (stuck.state, stuck.stuck_reason) == ("stuck", "refused")
    assert "declare `quarantine` and `release`" in stuck.last_error
    Webhook(served.dsn()).release(made)
    assert served.effects() == ["provision"]


def test_a_late_quarantine_does_not_close_what_was_given_back(
    db: Connection, served: Served, made: dict[str, Any]
) -> None:
    """A worker stood still between `still` and its request; meanwhile a restore released the object."""
    paused, backend = Webhook(served.dsn()), Webhook(served.dsn())

    def restored() -> None:
        with calling(8, 1):
            backend.quarantine(made)
            backend.release(made)

    with calling(7, 1), pytest.raises(Exception, match="a later attempt was here already"):
        paused.quarantine(made, restored)
    assert backend.inspect(made) == Same({**{k: made[k] for k in ("external", "generation")}, "quarantined": False})


def test_an_operator_who_asks_is_told_what_the_provisioner_shows(
    db: Connection, serve: Serve, made: dict[str, Any], served: Served
) -> None:
    def found(dsn: str, manifest: dict[str, Any] | None = None) -> tuple[Found, Any]:
        id = a_teardown(db, manifest or made | {"generation": str(uuid.uuid4())}, state="stuck")
        asked = observations.ask(db, id, actor="op")
        (look,) = observations.take(db, {"pg-main": 9}, slots=9)
        observer.observe(look, Webhook(dsn), worker="w")
        seen = observations.find(db, asked.id)
        assert seen is not None
        return Found(str(seen.found)), seen.seen

    assert found(served.dsn())[0] is Found.DIFFERENT
    assert found(serve(verbs=ACTIONS).dsn())[0] is Found.UNOBSERVABLE
    assert found(serve(verbs=ACTIONS, seconds=1).dsn())[0] is Found.DIFFERENT, "it is another server"
    silent = serve(verbs=ACTIONS, seconds=1)
    kind, seen = found(silent.dsn(), silent.marked())
    assert (kind, "does not declare `inspect`" in seen["error"]) == (Found.UNAVAILABLE, True)
    gone = serve()
    gone.meddle = says("502 Bad Gateway")
    assert found(gone.dsn())[0] is Found.UNAVAILABLE


def test_a_provision_that_comes_too_late_is_undone_by_its_own_worker(
    db: Connection, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DELETE's job saw nothing and is over; then the provision of a worker that stood still arrives."""
    id = a_job(db, kind="provision", lease="30 s")
    unguarded(db, "UPDATE resources SET manifest = NULL")
    (claim,) = claims(db)
    backend = Webhook(served.dsn())

    def lost(*words: Any, **more: Any) -> Any:
        unguarded(db, "UPDATE outbox SET fence = fence + 1 WHERE id = :id", id=id)
        unguarded(
            db, "UPDATE resources SET status = 'deleted', credentials = NULL, deleted_at = now(), purged_at = now()"
        )
        return Webhook.provision(backend, *words, **more)

    monkeypatch.setattr(backend, "provision", lost)
    Run(claim, backend, worker="late")()
    assert served.effects() == ["provision", "deprovision"]
    keys = [one.headers.get("idempotency-key") for one in served.requests if one.path in ("/provision", "/deprovision")]
    assert keys == [f"{id}-provision", f"{id}-destroy"]
