"""What a job costs the control database: a change that adds to it fails a test. The witness is the server's log.

One message of a client is one round trip, and what stands outside of BEGIN and COMMIT is a commit by itself. What a
connection prepares once is not counted: it is not asked again for the next job.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection

from outbox import db as database
from outbox import jobs
from outbox.rows import Claim
from tests.support.factories import a_job, a_resource, status_of
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.shelf import Remembering, Shelf
from tests.support.witness import Said, commits
from worker.memory import Memories
from worker.run import Run

Heard = Callable[[Callable[[], object]], list[Said]]
N = 5


@pytest.fixture
def heard(servers: Servers, env: dict[str, str]) -> Heard:
    """What the test's control database is asked while something happens."""
    name = env["DEPROVISIONER_DATABASE_URL"].rsplit("/", 1)[1]
    servers.control.query(f"ALTER DATABASE {name} SET log_statement = 'all'")  # of each session from now on

    def listen(act: Callable[[], object]) -> list[Said]:
        since = servers.control.log.stat().st_size
        act()
        return servers.control.said(since, name)

    return listen


def costs(said: list[Said]) -> tuple[int, int]:
    """Round trips and commits."""
    return len(said), commits(said)


def claim() -> Claim:
    with database.statement() as db:
        (claimed,) = jobs.claim(db, {"pg-main": 1}, slots=1, worker="w")
    return claimed


def a_warm_connection() -> None:
    """The pool's one connection has met the server, and has lived through all that a job takes."""
    with database.statement() as db:
        for _ in range(2):
            a_job(db)
    Run(claim(), Shelf(), worker="w")()


def test_a_teardown_is_claimed_started_and_completed_in_a_round_trip_each(heard: Heard, settled: dict) -> None:
    a_warm_connection()
    claims: list[Claim] = []
    assert costs(heard(lambda: claims.append(claim()))) == (1, 1)
    backend = Shelf()
    said = heard(Run(claims[0], backend, worker="w"))
    assert backend.torn == [1]
    assert costs(said) == (2, 2)


def test_a_start_under_a_brake_takes_turns_and_costs_seven_more(heard: Heard, settled: dict) -> None:
    backends = Path(settled["DEPROVISIONER_BACKENDS"])
    backends.write_text(backends.read_text().replace('kind = "postgres"\n', 'kind = "postgres"\nbrake = "50/10m"\n'))
    a_warm_connection()
    backend, claimed = Shelf(), claim()
    said = heard(Run(claimed, backend, worker="w"))
    assert backend.torn == [1]
    # To change the isolation level, BEGIN, may it start, holds, turn, count, start, COMMIT; and complete.
    assert costs(said) == (9, 3)


def test_a_delete_that_wins_is_one_round_trip_and_one_that_loses_two(
    heard: Heard, db: Connection, system: System, tenant: str
) -> None:
    made = [a_resource(db, tenant="acme") for _ in range(N + 1)]
    with client(system.api(), tenant) as api:

        def delete_all(status: int) -> None:
            for id in made[1:]:
                assert api.delete(f"/v1/resources/{id}").status_code == status

        assert api.delete(f"/v1/resources/{made[0]}").status_code == 202  # its connection, its token
        for status, trips in ((202, 1), (200, 2)):
            began = time.monotonic()
            said = heard(lambda status=status: delete_all(status))
            lookups = [one for one in said if "FROM tokens" in one.sql]
            assert costs([one for one in said if one not in lookups]) == (N * trips, N * trips)
            # Who calls is asked once in two seconds, not once a request; on a slow machine that is more than once.
            assert len(lookups) <= 1 + (time.monotonic() - began) / 2
    assert {status_of(db, id) for id in made} == {"deleting"}


def test_a_comparison_that_finds_nothing_due_is_one_round_trip(heard: Heard, db: Connection) -> None:
    a_warm_connection()
    memories = Memories({"pg-main": Remembering()}, worker="w")
    memories.compare()
    memories.compare()
    assert costs(heard(memories.compare)) == (1, 1)


def test_a_memory_adds_no_statement_to_a_job_at_the_control_database(heard: Heard, db: Connection) -> None:
    a_warm_connection()
    backend = Remembering()
    memories = Memories({"pg-main": backend}, worker="w")
    memories.compare()
    a_job(db)
    alone = costs(heard(Run(claim(), Shelf(), worker="w")))
    a_job(db)
    writes = backend.writes
    assert costs(heard(Run(claim(), backend, worker="w", memories=memories))) == alone
    assert backend.writes == writes + 1, "the one write before the destruction"
