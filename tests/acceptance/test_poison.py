"""A job that kills its worker each time: it ends stuck, and takes no neighbour with it."""

from collections.abc import Iterator

import pytest

from outbox import jobs
from outbox.states import StuckReason
from tests.support.crash_cells import DOOMED, RESCUER, Lane
from tests.support.final_checks import all_is_well
from tests.support.forked import Fork, Kept
from tests.support.parallel_installs import lanes
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually

ATTEMPTS = 4
# Far enough apart for a teardown on a busy machine.
APART = {"DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.7"}


@pytest.fixture
def lane(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with lanes(servers, template, tmp_path_factory.mktemp("poison")) as opened:
        yield opened()


def test_a_job_that_kills_its_worker_each_time_ends_stuck_and_starves_nobody(lane: Lane, servers: Servers) -> None:
    born = [lane.born(kind) for kind in ("postgres",) * 5 + ("redis",) * 3]
    poison, neighbours = born[2], born[:2] + born[3:]
    for resource in born:
        jobs.enqueue(lane.db, resource, actor="test")
    lane.ask("UPDATE outbox SET max_attempts = :most WHERE kind = 'deprovision'", most=ATTEMPTS)
    manifest = lane.ask("SELECT manifest FROM resources WHERE id = :id", id=poison)[0][0]
    doom = {"CRASH_AT": "before:DROP DATABASE", "CRASH_ONLY": f"zz_del_{manifest['generation']}"}
    kept = Kept("worker", lane.env | DOOMED | APART | doom, lane.folder / "kept.log")
    try:
        open_jobs = "SELECT resource_id FROM outbox WHERE state IN ('pending', 'running')"
        eventually(lambda: not lane.ask(open_jobs), what="every job has ended", every=0.2)
        eventually(lambda: kept.deaths == ATTEMPTS, what="once for each attempt")
    finally:
        kept.stop()
    asked = "SELECT * FROM outbox WHERE kind = 'deprovision' AND state <> 'succeeded'"
    told = [(job.resource_id, job.stuck_reason, job.attempts) for job in lane.ask(asked)]
    assert told == [(poison, StuckReason.ATTEMPTS_EXHAUSTED, ATTEMPTS)]
    control = PgServer(lane.env["DEPROVISIONER_DATABASE_URL"], servers.control.log)
    witnesses = {"pg": servers.pg, "cache": servers.redis, "deletions": lane.deletions}
    all_is_well(control, map(str, neighbours), **witnesses)
    assert servers.pg.drops_of(manifest) == 0, "it died before each time"
    job = lane.ask(asked)[0]
    jobs.redrive(lane.db, job.id, fence=job.fence, actor="test", reason="the cause was mended")
    healthy = Fork("worker", lane.env | RESCUER, lane.folder / "healthy.log")
    try:
        eventually(lambda: not lane.ask(asked), what="it ends well", every=0.1)
    finally:
        healthy.kill()
    all_is_well(control, map(str, born), **witnesses)
