"""The operator at a shell: which jobs are stuck, and why this one is."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from sqlalchemy import Connection, text

from outbox import breakers, holds, jobs, observations, resources
from outbox.resources import NewResource
from outbox.states import Found, HoldScope, StuckReason
from tests.support.factories import a_job, a_look, claims
from tests.support.factories import a_stuck_job as stuck
from tests.support.processes import System, client, shell

Words = tuple[str, ...]


def listed(env: dict[str, str], *words: str) -> list[int]:
    answer = shell(env, "jobs", "list", "--json", *words)
    assert answer.returncode == 0, answer
    return [item["id"] for item in json.loads(answer.stdout)["items"]]


def test_each_filter_of_jobs_list_finds_its_jobs(db: Connection, env: dict[str, str]) -> None:
    full = stuck(db, error="ERROR: No space left (100%)", hours=5, reason="attempts_exhausted")
    theirs = stuck(db, tenant="globex", error="another's", backend="pg-2")
    adoption = stuck(db, kind="provision", hours=2, error="who is this?")
    pending = a_job(db)
    for words, expected in [
        ((), [pending, adoption, theirs, full]),
        (("--state", "stuck"), [adoption, theirs, full]),
        (("--reason", "attempts_exhausted"), [full]),
        (("--kind", "provision"), [adoption]),
        (("--backend", "pg-2"), [theirs]),
        (("--tenant", "globex"), [theirs]),
        (("--error", "no SPACE"), [full]),
        (("--error", "%"), [full]),
        (("--error", "_"), []),
        (("--older-than", "3h"), [full]),
        (("--older-than", "90s"), [adoption, full]),
        (("--older-than", "61m", "--reason", "refused"), [adoption]),
        (("--older-than", "1d"), []),
    ]:
        assert listed(env, *words) == expected, words
    answer = json.loads(shell(env, "jobs", "list", "--json", "--state", "stuck").stdout)
    assert [item["tenant"] for item in answer["items"]] == ["acme", "globex", "acme"]
    assert "globex" in shell(env, "jobs", "list").stdout.splitlines()[3].split()
    counts = json.loads(shell(env, "jobs", "list", "--counts", "--state", "stuck", "--json").stdout)
    assert counts == {
        "total": 3,
        "by_state": {"stuck": 3},
        "by_reason": {"attempts_exhausted": 1, "refused": 2},
        "by_backend": {"pg-2": 1, "pg-main": 2},
    }
    told = " ".join(shell(env, "jobs", "list", "--counts").stdout.split())
    assert told.startswith(
        "total 4 by state pending 1 stuck 3 by reason attempts_exhausted 1 refused 2 by backend pg-2"
    )


def test_jobs_list_pages_by_cursor(db: Connection, env: dict[str, str]) -> None:
    made = [stuck(db) for _ in range(5)]
    first = json.loads(shell(env, "jobs", "list", "--state", "stuck", "--limit", "3", "--json").stdout)
    rest = shell(env, "jobs", "list", "--state", "stuck", "--limit", "3", "--json", "--cursor", first["next_cursor"])
    second = json.loads(rest.stdout)
    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next_cursor"] is None
    table = shell(env, "jobs", "list", "--limit", "3")
    assert f"more: --cursor {first['next_cursor']}" in table.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--older-than", "2"),
        ("--older-than", "2w"),
        ("--older-than", "-1h"),
        ("--older-than", "999999d"),
        ("--counts", "--cursor", "WzFd"),
        ("--reason", "bored"),
    ],
)
def test_a_wrong_filter_is_a_usage_error(env: dict[str, str], words: Words) -> None:
    answer = shell(env, "jobs", "list", *words)
    assert answer.returncode == 2
    assert words[0] in answer.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("jobs", "list", "--backend", "nope"),
        ("jobs", "list", "--counts", "--tenant", "nope"),
        ("resources", "list", "--kind", "nope"),
    ],
)
def test_a_name_that_exists_nowhere_is_refused(db: Connection, env: dict[str, str], words: Words) -> None:
    answer = shell(env, *words)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"there is no {words[-2][2:]} 'nope' here: this filter would find nothing; check the name" in answer.stderr


def test_a_long_error_is_cut_only_on_a_terminal(db: Connection, env: dict[str, str]) -> None:
    error = "first line\n" + "x" * 300 + " the end"
    stuck(db, error=error)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEPROVISIONER_", "COLUMNS", "LINES"))}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 140, 0, 0))
    argv = [sys.executable, "-m", "deprovisioner.cli", "jobs", "list"]
    subprocess.run(argv, env=kept | env, stdout=theirs, check=True, timeout=60)
    seen = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert [len(line) for line in seen.splitlines()][1:] == [140]
    assert "first line xxx" in seen
    assert seen.rstrip().endswith("…")
    piped = shell(env, "jobs", "list").stdout
    assert len(piped.splitlines()) == 2
    assert "the end" in piped
    assert json.loads(shell(env, "jobs", "list", "--json").stdout)["items"][0]["last_error"] == error


@pytest.fixture
def refused(db: Connection) -> int:
    """A teardown that failed once, was lost with its worker once, and was then refused."""
    new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="orders")
    resource, _ = resources.register(db, new, actor="token:1:acme")
    (birth,) = claims(db)
    plan = {"database": "d", "generation": str(birth.generation)}
    jobs.start_provision(db, birth, worker="w1", manifest=plan, credentials=b"sealed")
    jobs.activate(db, birth, worker="w1", manifest=plan | {"oid": 7})
    job = jobs.enqueue(db, resource.id, actor="cli:ann", reason="ticket 811").job
    (first,) = claims(db)
    jobs.start(db, first, worker="w1", seen={"oid": 7})
    jobs.retry(db, first, worker="w1", error="still there")
    db.exec_driver_sql("UPDATE outbox SET available_at = now() WHERE state = 'pending'")
    claims(db, worker="w2")
    db.exec_driver_sql("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")
    assert jobs.sweep(db, actor="w3") == 1
    db.exec_driver_sql("UPDATE outbox SET available_at = now() WHERE state = 'pending'")
    (third,) = claims(db, worker="w3")
    jobs.stick(db, third, worker="w3", why=StuckReason.REFUSED, error="oid is 9, not 7", seen={"oid": 9})
    return job.id


def test_show_tells_the_whole_story(
    db: Connection, env: dict[str, str], refused: int, system: System, operator: str
) -> None:
    told = json.loads(shell(env, "jobs", "show", str(refused), "--json").stdout)
    with client(system.api(), operator) as api:
        answer = api.get(f"/v1/jobs/{refused}").json()
    for story in (told, answer):
        asked = story["request"]
        assert (asked["actor"], asked["reason"]) == ("cli:ann", "ticket 811")
        assert asked["request_id"] == story["events"][0]["detail"]["request_id"]
        assert asked["at"] == story["events"][0]["at"]
        assert story["resource_name"] == "orders"
        assert [
            (a["fence"], a["worker"], a["outcome"], a["seen"], a["error"], a["started_at"] is not None)
            for a in story["attempt_history"]
        ] == [
            (1, "w1", "retried", {"before": {"oid": 7}, "after": None}, "still there", True),
            (2, "w2", "swept", {"before": None, "after": None}, story["events"][5]["reason"], False),
            (3, "w3", "stuck", {"before": {"oid": 9}, "after": None}, "oid is 9, not 7", False),
        ]
        events = " ".join(event["event"] for event in story["events"])
        assert events == "enqueued claimed started retried claimed swept claimed stuck"

    read = shell(env, "jobs", "show", str(refused)).stdout
    top = read.splitlines()
    assert top[0] == f"job {refused}: deprovision of 'orders' of tenant acme on pg-main"
    assert top[1].startswith("stuck since 20")
    assert "refused: the worker or its server refused to act" in top[1]
    commands = [line.strip() for line in top if line.startswith("  deprovisioner ")]
    assert f"deprovisioner jobs redrive {refused} --fence 3 --reason 'WHY'" in commands
    for word in ("cli:ann", "ticket 811", told["request"]["request_id"], "w1", "w2", "w3", "still there", '{"oid": 9}'):
        assert word in read
    assert read.count("  error        ") == 3


def test_the_next_command_that_show_prints_works(db: Connection, env: dict[str, str]) -> None:
    job = stuck(db, reason="attempts_exhausted")
    lines = shell(env, "jobs", "show", str(job)).stdout.splitlines()
    (command,) = [line.split() for line in lines if line.startswith("  deprovisioner jobs redrive")]
    assert shell(env, *command[1:]).returncode == 0
    assert json.loads(shell(env, "jobs", "show", str(job), "--json").stdout)["state"] == "pending"


def test_show_describes_a_job_in_any_state(db: Connection, env: dict[str, str]) -> None:
    for state, word in {
        "pending": "pending: ",
        "running": "running, with fence 1; the last attempt below names the worker. Its lease lasts until 2",
        "succeeded": "succeeded at 2",
        "stuck": "stuck since -, refused: ",
    }.items():
        job = a_job(db, state=state)
        db.exec_driver_sql("UPDATE outbox SET last_error = 'held' WHERE state <> 'succeeded'")
        top = shell(env, "jobs", "show", str(job)).stdout.splitlines()
        assert top[1].startswith(word)
        assert "(not recorded: the job's first event is missing)" in top
        assert any(re.match("last_error +of an earlier attempt: held", line) for line in top) == (state == "running")


def headline(env: dict[str, str], job: int) -> str:
    return shell(env, "jobs", "show", str(job)).stdout.splitlines()[1]


def due(db: Connection, job: int, seconds: int) -> None:
    asked = "UPDATE outbox SET available_at = now() - :seconds * interval '1 s' WHERE id = :id"
    db.execute(text(asked), {"id": job, "seconds": seconds})


def test_show_says_first_why_a_pending_job_waits(
    db: Connection, env: dict[str, str], system: System, operator: str, tenant: str
) -> None:
    job = a_job(db)
    due(db, job, -3600)
    assert headline(env, job).startswith("pending: a worker claims it once it is due, at 2")
    due(db, job, 0)
    assert headline(env, job) == "pending: it is due; a worker claims it within seconds"
    due(db, job, 95)
    unclaimed = r"pending: due for \d+ s, and no worker has claimed it: is a worker running that serves pg-main\?"
    assert re.fullmatch(unclaimed, headline(env, job))
    breakers.trip(db, "pg-2", reason="another's")
    breakers.trip(db, "pg-main", reason="connection refused")
    db.execute(text("UPDATE breakers SET retry_at = now() + interval '1 h'"))
    assert "pending: pg-main is out of reach since 2" in headline(env, job)
    assert "(connection refused); the next probe is due at 2" in headline(env, job)
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    assert headline(env, job).endswith("(connection refused); a probe is due")
    with client(system.api(), operator) as api, client(str(api.base_url), tenant) as acme:
        story = api.get(f"/v1/jobs/{job}").json()
        assert (story["breaker"]["why"], story["due_seconds"] >= 95) == ("connection refused", True)
        theirs = acme.get(f"/v1/jobs/{job}").json()
        assert (theirs["breaker"], theirs["due_seconds"] >= 95) == (None, True), "where our servers are is not theirs"
    told = json.loads(shell(env, "jobs", "show", str(job), "--json").stdout)
    assert told["breaker"]["state"] == "half_open"
    holds.engage(db, HoldScope.TENANT, "acme", actor="cli:ann", reason="fraud case 8")
    told_hold = "pending: it does not start while there is hold 1 on tenant acme: fraud case 8 (by cli:ann, 2"
    assert headline(env, job).startswith(told_hold)
    assert "\n  deprovisioner hold release 1 --reason 'WHY'\n" in shell(env, "jobs", "show", str(job)).stdout
    assert "\n  deprovisioner hold release 1 --reason 'WHY'\n" in shell(env, "hold", "list").stdout
    kept = shell(env, "resources", "delete", told["resource_id"]).stdout
    assert f"; job {job} is pending\nit does not start while there is hold 1 on tenant acme: fraud case 8\n" in kept


def test_an_inspection_or_a_proposal_does_not_change_stuck_since(
    db: Connection, env: dict[str, str], refused: int
) -> None:
    since = json.loads(shell(env, "jobs", "show", str(refused), "--json").stdout)["stuck_since"]
    before = headline(env, refused)
    observations.ask(db, refused, actor="cli:ann")
    (look,) = observations.take(db, {"pg-main": 1}, slots=1)
    assert observations.record(db, look, worker="w", found=Found.SAME, seen={"oid": 7})
    jobs.resolve_forced(db, refused, fence=3, actor="token:1:anna", reason="scrapped")
    told = json.loads(shell(env, "jobs", "show", str(refused), "--json").stdout)
    assert [e["event"] for e in told["events"]][-3:] == ["stuck", "observed", "proposed"]
    assert told["stuck_since"] == since == told["events"][-3]["at"]
    assert headline(env, refused) == before
    db.exec_driver_sql(
        "UPDATE outbox SET state = 'running', stuck_reason = NULL, claimed_by = 'w', attempts = 3, "
        "max_attempts = 3, lease_expires_at = now() - interval '1 s' WHERE state = 'stuck'"
    )
    assert jobs.sweep(db, actor="w3") == 1
    swept = json.loads(shell(env, "jobs", "show", str(refused), "--json").stdout)
    assert swept["stuck_since"] == swept["events"][-1]["at"]


def test_show_counts_attempts_since_the_redrive(db: Connection, env: dict[str, str], refused: int) -> None:
    def attempts() -> str:
        lines = shell(env, "jobs", "show", str(refused)).stdout.splitlines()
        return next(" ".join(line.split()) for line in lines if line.startswith("attempts "))

    assert attempts() == "attempts 3"
    jobs.redrive(db, refused, fence=3, actor="cli:ann", reason="mended")
    assert attempts().startswith("attempts 0 since it was re-driven, at 2")


def test_operators_read_a_proposal_and_the_command_of_the_second_operator(
    db: Connection, env: dict[str, str], refused: int, system: System, operator: str, tenant: str
) -> None:
    jobs.resolve_forced(db, refused, fence=3, actor="token:1:anna", reason="the server is scrap")
    a_look(db, refused, "different")
    read = shell(env, "jobs", "show", str(refused)).stdout
    top = read.partition("\n\n")[0]
    assert "resolve by force was proposed by token:1:anna at 2" in top
    assert ": the server is scrap\n" in top
    assert f"  deprovisioner jobs resolve {refused} --fence 3 --reason 'WHY' --force" in top
    assert "last inspection, by w at 2" in top
    told = json.loads(shell(env, "jobs", "show", str(refused), "--json").stdout)
    with client(system.api(), operator) as api, client(str(api.base_url), tenant) as acme:
        answer = api.get(f"/v1/jobs/{refused}").json()
        theirs = acme.get(f"/v1/jobs/{refused}").json()
    assert (theirs["approvals"], theirs["last_look"]) == ([], None)
    for story in (told, answer):
        (approval,) = story["approvals"]
        assert {k: approval[k] for k in ("action", "job_id", "fence", "reason", "proposed_by")} == {
            "action": "resolve",
            "job_id": refused,
            "fence": 3,
            "reason": "the server is scrap",
            "proposed_by": "token:1:anna",
        }
        assert story["last_look"]["found"] == "different"
    for change in ("approved_by = 'token:2:b', approved_at = now()", "proposed_at = now() - interval '1 h'"):
        db.exec_driver_sql("UPDATE approvals SET approved_by = NULL, approved_at = NULL")
        db.exec_driver_sql(f"UPDATE approvals SET {change}")
        assert json.loads(shell(env, "jobs", "show", str(refused), "--json").stdout)["approvals"] == [], change


def test_show_advises_to_redrive_or_delete_a_stuck_provision(db: Connection, env: dict[str, str]) -> None:
    job = stuck(db, kind="provision")
    lines = shell(env, "jobs", "show", str(job)).stdout.splitlines()
    again, delete, resolve = [line.split()[1:] for line in lines if line.startswith("  deprovisioner ")]
    assert (again[:2], delete[:2], resolve[:2]) == (["jobs", "redrive"], ["resources", "delete"], ["jobs", "resolve"])
    assert shell(env, *resolve).returncode == 1, "its resource is not deleted"
    assert shell(env, *delete).returncode == 0
    assert shell(env, *resolve).returncode == 0
    assert headline(env, job).startswith("cancelled at 2")
