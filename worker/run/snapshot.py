"""A teardown's snapshot: recorded, streamed into the store, read back, restored, compared."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from outbox import db, settings, snapshots
from outbox.errors import BackendError, Refused
from outbox.rows import Json
from outbox.settings import BackendConfig
from outbox.snapshots import Snapshot
from worker import backends
from worker.backends import Still
from worker.intake import Intake
from worker.snapshots import stores
from worker.snapshots.sealed import Sealer, Unsealer

if TYPE_CHECKING:
    from worker.run import Run

# How often the stored bytes are recorded.
PROGRESS_SECONDS = 5.0


def snapshot(run: "Run", manifest: Json) -> Json:
    """Take a snapshot of an object in quarantine, and prove it; what shows that, as evidence.

    Raises ClaimLost as soon as a restore has taken the object.
    """
    claim = run.claim
    config = settings.backends()[claim.backend]
    if config.snapshot_store is None:
        raise Refused(f"backend {claim.backend!r} has no 'snapshot_store' in the backends file: set it, then re-drive")
    place = config.snapshot_store
    store = stores.of(place)
    for earlier in run.transact(lambda session: snapshots.of_job(session, claim.id)):
        if earlier.verified_at is not None:  # the attempt died before it could say so
            return (earlier.detail or {}) | {"snapshot": earlier.id}
        if earlier.fence < claim.fence:  # a zombie leaves alone what its successor has begun
            _remove(run, earlier)
    # A resource that was restored meanwhile has a second teardown, and its fences begin anew.
    name = f"{config.kind}-{claim.resource_id}-{claim.generation}-{claim.id}.{claim.fence}.snapshot"
    id = run.transact(lambda session: snapshots.begin(session, claim, stores.located(place, name)))
    about = {"resource_id": str(claim.resource_id), "generation": str(claim.generation), "kind": config.kind}
    with store.writing(name) as write:
        sealer = Sealer(write, about)
        source = run.backend.snapshot(manifest, sealer.write, _still(run, lambda: _progress(run, id, sealer.written)))
        sealer.finish()
        run.still()  # the last moment at which a restore may have come before the object has its name
    with store.reading(name) as read:
        restored = _prover(run, config).verify_snapshot(
            manifest, Unsealer(read).read, source, _still(run, lambda: None)
        )
    detail = {"bytes": sealer.written, "restored": restored}
    run.transact(
        lambda session: snapshots.verified(
            session, claim, id, size=sealer.written, detail=detail, keep=config.snapshot_keep
        )
    )
    return detail | {"snapshot": id}


def _remove(run: "Run", earlier: Snapshot) -> None:
    """Where its store fails, the attempt goes on, since the file may name another one by now."""
    reason = "it was never verified, and another attempt takes a new one"
    try:
        store, name = stores.at(earlier.location)
        store.remove(name)
    except BackendError as error:  # it is tried again once the job has ended
        run.log.warning("snapshot_removal_failed", snapshot_id=earlier.id, error=str(error))
    else:
        run.transact(lambda session: snapshots.removed(session, earlier.id, actor=run.worker, reason=reason))


def _progress(run: "Run", id: int, size: int) -> None:
    run.transact(lambda session: snapshots.progress(session, id, size))


def _still(run: "Run", progress: Callable[[], None]) -> Still:
    last = time.monotonic()

    def still() -> None:
        nonlocal last
        run.still()
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            progress()

    return still


def _prover(run: "Run", config: BackendConfig) -> Intake:
    """The backend that the snapshot is restored on."""
    if config.snapshot_server is None:
        return run.backend
    protected = frozenset(name for name in (db.control_url().database,) if name)
    return Intake(backends.build(settings.backends()[config.snapshot_server], protected=protected))
