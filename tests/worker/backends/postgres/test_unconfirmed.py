"""A synchronous standby of a backend that is missing: what is not confirmed is not believed, and not waited for."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from deprovisioner.conformance.verbs import every_verb
from outbox.errors import OutOfService
from tests.support import standby
from tests.support.witness import PgServer, eventually, slowness
from worker.backends import Absent, Same
from worker.backends.postgres import Postgres, waits

pytestmark = pytest.mark.parametrize(
    "anywhere", ["18-service", pytest.param("15-service", marks=pytest.mark.proof)], indirect=True
)
WAITS = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
LEFT = f"SELECT 1 {WAITS} UNION ALL SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"
CANCEL = f"SELECT pg_cancel_backend(pid) {WAITS}"


@pytest.fixture
def require(anywhere: tuple[Postgres, PgServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets which standbys must confirm a commit; none does. The end resets it."""
    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(waits, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(waits, "CONFIRM_SECONDS", 0.3)
    yield lambda names: standby.require(anywhere[1], names)
    standby.require(anywhere[1], "")


def test_no_verb_believes_what_no_standby_confirms_nor_waits_for_it(
    anywhere: tuple[Postgres, PgServer], require: Callable[[str], None]
) -> None:
    backend, pg = anywhere
    plan, later = (backend.plan(uuid.uuid4(), uuid.uuid4()) for _ in range(2))
    manifest = backend.provision(plan.manifest, plan.credentials)
    require("*")
    provision = lambda: backend.provision(later.manifest, later.credentials)  # noqa: E731
    for verb in (provision, *every_verb(backend, manifest, plan.credentials)):
        began = time.monotonic()
        with pytest.raises(OutOfService, match=r"no synchronous standby confirms it .*= '\*'\): repair the standby"):
            verb()
        assert time.monotonic() - began < 5 * slowness()
    assert pg.bears(manifest)
    eventually(lambda: not pg.query(LEFT), what="no lock is left, and no session that waits")
    require("")
    assert isinstance(backend.inspect(manifest), Same)
    born = provision()
    for each in (manifest, born):
        backend.teardown(each, 1)
        assert isinstance(backend.inspect(each), Absent)


def test_an_absence_that_an_administrator_s_cancels_have_made_is_not_believed(
    anywhere: tuple[Postgres, PgServer], require: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait is cancelled from outside, so that each commit succeeds with a warning."""
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    raised: list[BaseException] = []

    def teardown() -> None:
        try:
            backend.teardown(manifest, 1)
        except OutOfService as error:
            raised.append(error)

    require("*")
    with monkeypatch.context() as patch:
        patch.setattr(waits, "CONFIRM_SECONDS", 60)  # the watch ends none of them
        caller = threading.Thread(target=teardown)
        caller.start()
        while caller.is_alive():
            pg.query(CANCEL)
    assert len(raised) == 1
    assert not pg.bears(manifest), "everybody sees what may be taken back"
    with pytest.raises(OutOfService, match="no synchronous standby confirms it"):
        backend.inspect(manifest)
    require("")
    assert isinstance(backend.inspect(manifest), Absent)
