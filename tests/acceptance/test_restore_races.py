"""Restores that meet the end of their grace, on real servers: each resource ends whole or gone."""

import threading
import uuid
from collections import Counter

import psycopg2
import pytest
import redis

from outbox.errors import TeardownStarted
from tests.support.parallel_installs import installs
from tests.support.scenario import Scenario
from tests.support.servers import Servers
from tests.support.witness import eventually

SHORT_GRACE = 0.1
PAIRS = 25  # a database and a namespace each


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_fifty_restores_meet_the_end_of_their_grace_and_each_resource_ends_whole_or_gone(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with installs(servers, template, tmp_path_factory.mktemp("races")) as new_install:
        scenario = Scenario(new_install(), servers)
        made = {scenario.install.born(kind): kind for kind in ("postgres", "redis") for _ in range(PAIRS)}
        for resource, kind in made.items():
            scenario.fill(kind, resource)
        try:
            for _ in range(2):
                scenario.rescuer()
            _race(scenario, made)
        finally:
            for worker in scenario.workers:
                worker.kill()


def _race(scenario: Scenario, made: dict[uuid.UUID, str]) -> None:
    answers: dict[uuid.UUID, bool] = {}
    moments = dict(zip(made, ["at once", "at wait", "at its end"] * len(made), strict=False))

    def take_back(resource: uuid.UUID) -> None:
        scenario.install.deleted(resource, SHORT_GRACE)
        asked = "SELECT step = 'wait' OR state <> 'pending' FROM outbox WHERE resource_id = %s AND kind = 'deprovision'"
        if moments[resource] == "at its end":
            asked = "SELECT purge_at <= now() FROM resources WHERE id = %s"
        if moments[resource] != "at once":
            eventually(lambda: scenario.control.query(asked, str(resource)) == [(True,)], every=0.005)
        try:
            scenario.install.restore(resource)
        except TeardownStarted:
            answers[resource] = False
        else:
            answers[resource] = True

    threads = [threading.Thread(target=take_back, args=(resource,)) for resource in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == set(made)
    for resource, kind in made.items():
        manifest = scenario.until(resource, "active" if answers[resource] else "deleted")
        events = Counter(scenario.events(resource))
        dropped = scenario.servers.pg.drops_of(manifest) if kind == "postgres" else events["completed"]
        if answers[resource]:
            scenario.serves(kind, resource)
            assert (events["cancelled"], events["restored"], events["completed"], dropped) == (1, 1, 0, 0)
        else:
            with pytest.raises((psycopg2.OperationalError, redis.AuthenticationError, TypeError)):
                scenario.serves(kind, resource)
            assert (events["cancelled"], events["restored"], events["completed"], dropped) == (0, 0, 1, 1)
            assert not (scenario.servers.pg if kind == "postgres" else scenario.servers.redis).bears(manifest)
    assert any(answers.values()), "none was in time"
    scenario.check(*(resource for resource, back in answers.items() if not back))
