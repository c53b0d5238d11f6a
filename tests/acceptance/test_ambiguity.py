"""The connection breaks while a transition commits: its outcome is read back, never guessed."""

from collections.abc import Iterator

import httpx
import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.proxy import MOMENTS, Moment, Proxy
from tests.support.servers import Servers
from tests.support.witness import eventually

# What each transition says of its event when it is executed, not when it is prepared; no other statement says it.
ENQUEUE, CLAIM, START, COMPLETE, ACTIVATE = (
    '{"request_id"',
    "'claimed'",
    "'started'",
    "'completed'",
    "'activated'",
)
DELETED_ONCE = ["enqueued", "claimed", "started", "completed"]
BORN_ONCE = ["enqueued", "claimed", "started", "activated"]


@pytest.fixture
def proxy(env: dict[str, str]) -> Iterator[Proxy]:
    """Before the control database."""
    port = make_url(env["DEPROVISIONER_DATABASE_URL"]).port
    assert port is not None
    made = Proxy(port)
    yield made
    made.close()


@pytest.fixture
def through(env: dict[str, str], proxy: Proxy) -> dict[str, str]:
    """The environment of a process that reaches its control database through the proxy."""
    url = make_url(env["DEPROVISIONER_DATABASE_URL"]).set(port=proxy.port)
    return {"DEPROVISIONER_DATABASE_URL": url.render_as_string(hide_password=False)}


def told(env: dict[str, str], resource: dict) -> dict[str, list[tuple[str, int]]]:
    """Each job of the resource, by kind: its events and their fences, from the control database itself."""
    with psycopg2.connect(env["DEPROVISIONER_DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT kind, array_agg(event ORDER BY events.id), array_agg(events.fence ORDER BY events.id)"
            "  FROM outbox JOIN events ON job_id = outbox.id WHERE outbox.resource_id = %s GROUP BY outbox.id",
            (resource["id"],),
        )
        rows = cursor.fetchall()
    connection.close()
    stories = {kind: list(zip(events, fences, strict=True)) for kind, events, fences in rows}
    assert len(stories) == len(rows), "one job of a kind"
    return stories


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["postgres", pytest.param("redis", marks=pytest.mark.proof)])
def test_a_worker_whose_answers_are_lost_does_each_thing_once(
    acme: httpx.Client,
    env: dict[str, str],
    system: System,
    servers: Servers,
    proxy: Proxy,
    through: dict[str, str],
    moment: Moment,
    kind: str,
) -> None:
    # Neither a lease that passes nor a second worker: what ends here was read back by this one.
    system.worker(DEPROVISIONER_LEASE_SECONDS="600", **through)
    witness = servers.pg if kind == "postgres" else servers.redis
    for words in (CLAIM, START, ACTIVATE):
        proxy.cut(moment, words)
        resource = until(acme, create(acme, kind), "active")
        assert proxy.cuts == 1
        assert told(env, resource)["provision"] == list(zip(BORN_ONCE, [0, 1, 1, 1], strict=True)), words
        assert witness.bears(resource["manifest"])
    for words in (CLAIM, START, COMPLETE):
        resource = until(acme, create(acme, kind), "active")
        proxy.cut(moment, words)
        assert acme.delete(f"/v1/resources/{resource['id']}").status_code == 202
        until(acme, resource, "deleted")
        assert proxy.cuts == 1
        assert told(env, resource)["deprovision"] == list(zip(DELETED_ONCE, [0, 1, 1, 1], strict=True)), words
        assert not witness.bears(resource["manifest"])
        if kind == "postgres":
            assert servers.pg.drops_of(resource["manifest"]) == 1


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_winner_of_a_delete_learns_that_it_won_though_the_database_s_answer_was_lost(
    env: dict[str, str], system: System, proxy: Proxy, through: dict[str, str], tenant: str, moment: Moment
) -> None:
    with client(system.api(**through), tenant) as acme:
        resource = create(acme)
        proxy.cut(moment, ENQUEUE)
        answer = acme.delete(f"/v1/resources/{resource['id']}")
        assert (answer.status_code, answer.json()["already_deleted"], proxy.cuts) == (202, False, 1)
        assert told(env, resource)["deprovision"] == [("enqueued", 0)]


def test_a_delete_whose_every_answer_was_lost_is_the_same_job_when_sent_again(
    env: dict[str, str], system: System, servers: Servers, proxy: Proxy, through: dict[str, str], tenant: str
) -> None:
    with client(system.api(**through), tenant) as acme:
        system.worker()
        resource = until(acme, create(acme), "active")
        proxy.cut("after", resource["id"], times=1000)  # the looks back, too
        lost = acme.delete(f"/v1/resources/{resource['id']}")
        assert (lost.status_code, lost.json()["code"]) == (503, "database_unavailable")
        assert proxy.cuts > 1
        proxy.cut("after", "nothing that anybody asks")
        again = acme.delete(f"/v1/resources/{resource['id']}")
        assert (again.status_code, again.json()["already_deleted"]) == (200, True)
        until(acme, resource, "deleted")
        assert told(env, resource)["deprovision"] == list(zip(DELETED_ONCE, [0, 1, 1, 1], strict=True))
        assert servers.pg.drops_of(resource["manifest"]) == 1


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_delete_whose_answer_the_client_lost_is_the_same_job_when_sent_again(
    env: dict[str, str], acme: httpx.Client, system: System, servers: Servers, moment: Moment
) -> None:
    system.worker()
    resource = until(acme, create(acme), "active")
    way = Proxy(int(acme.base_url.port or 0))
    with httpx.Client(base_url=f"http://127.0.0.1:{way.port}", headers=acme.headers) as far:
        way.cut(moment, "DELETE /v1/resources/")
        with pytest.raises(httpx.TransportError):
            far.delete(f"/v1/resources/{resource['id']}")
        if moment == "during":
            eventually(lambda: told(env, resource).get("deprovision"), what="the API has it by now")
        again = far.delete(f"/v1/resources/{resource['id']}")
        assert again.status_code == (202 if moment == "before" else 200)
    way.close()
    until(acme, resource, "deleted")
    story = acme.get(again.json()["job"]["url"]).json()
    assert [e["event"] for e in story["events"]] == DELETED_ONCE
    assert servers.pg.drops_of(resource["manifest"]) == 1
