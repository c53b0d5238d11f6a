"""An operator resolves one stuck job over HTTP and at the shell: inspection, resolve, and force by two operators."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text

from api.v1.jobs import OBSERVE_SECONDS
from deprovisioner.up import servers as embedded
from outbox import jobs, tokens
from outbox.states import StuckReason
from tests.support.api import at_once, create, until
from tests.support.factories import a_look
from tests.support.processes import System, client, shell
from tests.support.servers import Servers
from tests.support.witness import eventually, slowness

Json = dict[str, Any]
OPEN = text("SELECT id FROM observations WHERE observed_at IS NULL")


@pytest.fixture
def boss(acme: httpx.Client, operator: str) -> Iterator[httpx.Client]:
    with client(str(acme.base_url), operator) as made:
        yield made


@pytest.fixture
def other(acme: httpx.Client, db: Connection) -> Iterator[httpx.Client]:
    """A second operator."""
    with client(str(acme.base_url), tokens.create(db, actor="op", role="operator", tenant=None, name="op")[1]) as made:
        yield made


@pytest.fixture
def resource(acme: httpx.Client, system: System) -> Json:
    """A database that is alive; its worker has gone home."""
    worker = system.worker()
    made = until(acme, create(acme), "active")
    worker.teardown()
    return made


def stuck(db: Connection, acme: httpx.Client, resource: Json, why: StuckReason = StuckReason.REFUSED) -> str:
    """The URL of its deprovision job, which waits for a person at fence 1."""
    url = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]["url"]
    (claim,) = jobs.claim(db, {"pg-main": 1}, slots=1, worker="w")
    jobs.start(db, claim, worker="w")
    jobs.stick(db, claim, worker="w", why=why, error="not sure")
    return url


def drop_by_hand(servers: Servers, resource: Json) -> None:
    manifest = resource["manifest"]
    servers.pg.query(f'DROP DATABASE "{manifest["database"]}" WITH (FORCE)')
    servers.pg.query(f'DROP ROLE "{manifest["role"]}"')


def said(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code") or answer.json().get("state") or "approval"


def cli(env: Mapping[str, str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return shell({**env, **more}, "jobs", *words)


def test_resolve_refuses_while_the_object_exists_and_ends_the_job_once_when_it_is_gone(
    db: Connection,
    acme: httpx.Client,
    boss: httpx.Client,
    other: httpx.Client,
    resource: Json,
    system: System,
    servers: Servers,
) -> None:
    url = stuck(db, acme, resource)
    system.worker(DEPROVISIONER_SWEEP_SECONDS="600")  # only the bell brings it to look
    word = {"reason": "dropped by hand", "fence": 1}
    assert said(boss.post(f"{url}/resolve", json=word | {"fence": 0})) == (409, "fence_mismatch")
    refused = boss.post(f"{url}/resolve", json=word)
    assert said(refused) == (409, "still_there"), refused.text
    assert refused.json()["seen"]["role"].startswith(resource["manifest"]["role"])
    named = resource["manifest"]["database"]
    servers.pg.query(f'ALTER DATABASE "{named}" RENAME TO theirs')
    renamed = boss.post(f"{url}/resolve", json=word)
    assert said(renamed) == (409, "still_there"), renamed.text
    assert (
        "it may still exist: the database was renamed to 'theirs', and not by deprovisioner" in renamed.json()["detail"]
    )
    servers.pg.query(f'ALTER DATABASE theirs RENAME TO "{named}"')
    assert servers.pg.bears(resource["manifest"])
    assert acme.get(f"/v1/resources/{resource['id']}").json()["status"] == "deleting"
    look = boss.post(f"{url}/observe").json()
    assert (look["found"], look["fence"]) == ("same", 1)
    assert look["means"].startswith("it is still there: ")

    drop_by_hand(servers, resource)
    raced = at_once(2, lambda n: (boss, other)[n].post(f"{url}/resolve", json=word))
    assert sorted(map(said, raced)) == [(200, "succeeded"), (409, "job_not_stuck")]
    assert acme.get(f"/v1/resources/{resource['id']}").json()["status"] == "deleted"
    told = boss.get(url).json()
    assert [a["outcome"] for a in told["attempt_history"]] == ["stuck"], "what an operator did is no attempt"
    (last,) = [e for e in told["events"] if e["event"] == "resolved"]
    assert (last["reason"], last["detail"]["state"]) == ("dropped by hand", "succeeded")
    assert last["detail"]["seen"]
    assert {e["event"] for e in told["events"]} == {"enqueued", "claimed", "started", "stuck", "observed", "resolved"}
    assert servers.pg.drops_of(resource["manifest"]) == 1, "the one by hand"


def test_of_two_operators_who_redrive_one_job_one_wins(
    db: Connection, acme: httpx.Client, boss: httpx.Client, other: httpx.Client, resource: Json, servers: Servers
) -> None:
    url = stuck(db, acme, resource)
    word = {"reason": "mended", "fence": 1}
    raced = at_once(2, lambda n: (boss, other)[n].post(f"{url}/redrive", json=word))
    assert sorted(map(said, raced)) == [(200, "pending"), (409, "job_not_stuck")]


@pytest.mark.proof
def test_an_inspection_of_the_wrong_server_or_of_none_resolves_nothing(
    db: Connection,
    acme: httpx.Client,
    boss: httpx.Client,
    resource: Json,
    system: System,
    servers: Servers,
    env: dict[str, str],
) -> None:
    url = stuck(db, acme, resource)
    word = {"reason": "r", "fence": 1}
    unseen = boss.post(f"{url}/resolve", json=word)
    assert said(unseen) == (409, "not_observed")
    assert OBSERVE_SECONDS <= unseen.elapsed.total_seconds() < OBSERVE_SECONDS + 5 * slowness()
    id = url.rsplit("/", maxsplit=1)[1]
    for dsn, answer, code in [
        (servers.control.dsn, (409, "still_there"), 0),  # another server, as its superuser
        (f"postgresql://p:p@127.0.0.1:{embedded.free_port()}/postgres", (409, "not_observed"), 1),
    ]:
        worker = system.worker(PG_MAIN_DSN=dsn)
        eventually(lambda: not db.execute(OPEN).all(), what="what was asked before is looked at, at the first sweep")
        assert said(boss.post(f"{url}/resolve", json=word)) == answer
        assert cli(env, "observe", id).returncode == code, "where nothing could be seen, that is no success"
        worker.teardown()
    assert boss.get(url).json()["state"] == "stuck"
    assert servers.pg.bears(resource["manifest"])


def test_the_command_observes_and_resolves_while_the_broker_is_dead(
    db: Connection, acme: httpx.Client, resource: Json, system: System, servers: Servers, env: dict[str, str]
) -> None:
    url = stuck(db, acme, resource)
    id = url.rsplit("/", maxsplit=1)[1]
    dead = {"DEPROVISIONER_BROKER_URL": f"redis://127.0.0.1:{embedded.free_port()}/0"}
    began = time.monotonic()
    unseen = cli(env, "resolve", id, "--fence", "1", "--reason", "r", "--wait", "1", **dead)
    assert (unseen.returncode, "no worker has inspected" in unseen.stderr) == (1, True)
    assert time.monotonic() - began < 30 * slowness()
    system.worker()
    look = cli(env, "observe", id, "--json", **dead)
    assert (look.returncode, json.loads(look.stdout)["found"]) == (0, "same")
    alive = cli(env, "resolve", id, "--fence", "1", "--reason", "r", **dead)
    assert (alive.returncode, "still there" in alive.stderr) == (1, True)
    manifest = resource["manifest"]
    servers.pg.query(f'DROP DATABASE "{manifest["database"]}" WITH (FORCE)')
    half = cli(env, "observe", id, **dead).stdout
    assert "part of it is still there: " in half
    assert "(gone: databases)" in half
    servers.pg.query(f'DROP ROLE "{manifest["role"]}"')
    assert "absent" in cli(env, "observe", id, **dead).stdout
    assert cli(env, "resolve", id, "--fence", "0", "--reason", "r", **dead).returncode == 1
    done = cli(env, "resolve", id, "--fence", "1", "--reason", "by hand", "--json", **dead)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "succeeded")
    assert acme.get(f"/v1/resources/{resource['id']}").json()["status"] == "deleted"
    assert cli(env, "resolve", id, "--fence", "1", **dead).returncode == 2, "without a reason"
    late = cli(env, "observe", id, **dead)
    assert late.returncode == 1
    assert late.stderr.splitlines()[-1].endswith("only a stuck job can be observed, re-driven or resolved")
    assert "waiting for a worker" not in late.stderr


@pytest.mark.parametrize(
    ("verb", "flag", "state"),
    [("resolve", "force", "succeeded"), ("redrive", "force_outcome_unknown", "pending")],
)
def test_two_operators_force_over_http_and_at_the_shell(
    db: Connection,
    acme: httpx.Client,
    boss: httpx.Client,
    operator: str,
    tenant: str,
    env: dict[str, str],
    verb: str,
    flag: str,
    state: str,
    resource: Json,
) -> None:
    url = stuck(db, acme, resource, StuckReason.OUTCOME_UNKNOWN)
    words = [
        verb,
        url.rsplit("/", maxsplit=1)[1],
        "--fence",
        "1",
        "--reason",
        "scrapped",
        f"--{flag.replace('_', '-')}",
    ]
    first = at_once(16, lambda _: boss.post(f"{url}/{verb}", json={"reason": "scrapped", "fence": 1, flag: True}))
    assert {answer.status_code for answer in first} == {202}
    proposal = first[0].json()["approval"]
    assert {"action", "job_id", "fence", "reason", "proposed_by", "proposed_at", "expires_at"} == set(proposal)
    assert sorted(answer.json()["new"] for answer in first) == [False] * 15 + [True]
    assert first[0].json()["last_look"] is None
    a_look(db, int(words[1]), "unobservable")
    same = cli(env, *words[:4], "--reason", "other words", words[-1], "--token", operator)
    assert same.returncode == 1, "nothing is done yet"
    assert "you are the operator who proposed it: " in same.stdout
    assert "--token TOKEN\nto make a token: deprovisioner token create --role operator --name NAME\n" in same.stdout
    assert "another operator must run" in same.stdout
    assert f"proposed by {proposal['proposed_by']} at 2" in same.stdout
    assert "already (scrapped)" in same.stdout
    assert "last inspection, by w at 2" in same.stdout
    look = boss.post(f"{url}/{verb}", json={"reason": "scrapped", "fence": 1, flag: True}).json()["last_look"]
    assert (look["found"], look["means"]) == ("unobservable", "backends of this kind cannot be inspected")
    assert json.loads(cli(env, *words, "--token", operator, "--json").stdout)["approval"]["action"] == verb
    assert cli(env, *words).returncode == 2, "who forces says who they are"
    revoked, gone = tokens.create(db, actor="op", role="operator", tenant=None, name="gone")
    tokens.revoke(db, revoked.id, actor="op")
    for refused in (tenant, gone, "dpr_none"):
        assert cli(env, *words, "--token", refused).returncode == 1
    assert boss.get(url).json()["state"] == "stuck"
    second = tokens.create(db, actor="op", role="operator", tenant=None, name="op")[1]
    done = cli(env, *words, "--json", DEPROVISIONER_OPERATOR_TOKEN=second)
    assert (done.returncode, json.loads(done.stdout).get("state")) == (0, state), done
    story = boss.get(url).json()
    told = story["events"][-1]
    assert (told["detail"]["forced"], told["detail"]["proposed_by"]) == (True, proposal["proposed_by"])
    assert told["actor"] == told["detail"]["approved_by"] != proposal["proposed_by"]
    again = boss.post(f"{url}/{verb}", json={"reason": "scrapped", "fence": 1, flag: True})
    assert said(again) == (409, "job_not_stuck")
