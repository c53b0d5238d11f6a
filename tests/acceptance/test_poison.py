"""A job that kills its worker each time: it ends stuck, and the other jobs end well."""

from collections.abc import Iterator

import pytest

from outbox import jobs
from outbox.states import StuckReason
from tests.support.crash_cells import LONG_LEASE, SHORT_LEASE, Install
from tests.support.final_checks import all_is_well
from tests.support.forked import Fork, Kept
from tests.support.parallel_installs import installs
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually

ATTEMPTS = 4
# Between two crashes a neighbour's teardown must have time to end, on a busy machine too.
LONG_BACKOFF = {"DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.7"}


@pytest.fixture
def install(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    with installs(servers, template, tmp_path_factory.mktemp("poison")) as opened:
        yield opened()


@pytest.mark.proof
def test_a_job_that_kills_its_worker_each_time_gets_stuck_and_the_others_succeed(
    install: Install, servers: Servers
) -> None:
    born = [install.born(kind) for kind in ("postgres",) * 5 + ("redis",) * 3]
    poison, neighbours = born[2], born[:2] + born[3:]
    for resource in born:
        jobs.enqueue(install.db, resource, actor="test")
    install.ask("UPDATE outbox SET max_attempts = :most WHERE kind = 'deprovision'", most=ATTEMPTS)
    manifest = install.ask("SELECT manifest FROM resources WHERE id = :id", id=poison)[0][0]
    crash = {"CRASH_AT": "before:DROP DATABASE", "CRASH_ONLY": f"zz_del_{manifest['generation']}"}
    kept = Kept("worker", install.env | SHORT_LEASE | LONG_BACKOFF | crash, install.folder / "kept.log")
    try:
        open_jobs = "SELECT resource_id FROM outbox WHERE state IN ('pending', 'running')"
        eventually(lambda: not install.ask(open_jobs), what="every job has ended", every=0.2)
        eventually(lambda: kept.deaths == ATTEMPTS, what="once for each attempt")
    finally:
        kept.stop()
    asked = "SELECT * FROM outbox WHERE kind = 'deprovision' AND state <> 'succeeded'"
    told = [(job.resource_id, job.stuck_reason, job.attempts) for job in install.ask(asked)]
    assert told == [(poison, StuckReason.ATTEMPTS_EXHAUSTED, ATTEMPTS)]
    control = PgServer(install.env["DEPROVISIONER_DATABASE_URL"], servers.control.log)
    witnesses = {"pg": servers.pg, "cache": servers.redis, "deletions": install.deletions}
    all_is_well(control, map(str, neighbours), **witnesses)
    assert servers.pg.drops_of(manifest) == 0, "it died before each time"
    job = install.ask(asked)[0]
    jobs.redrive(install.db, job.id, fence=job.fence, actor="test", reason="the cause was mended")
    healthy = Fork("worker", install.env | LONG_LEASE, install.folder / "healthy.log")
    try:
        eventually(lambda: not install.ask(asked), what="it ends well", every=0.1)
    finally:
        healthy.kill()
    all_is_well(control, map(str, born), **witnesses)
