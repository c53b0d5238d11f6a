"""Removes snapshots from their stores: those past their time, and those that no attempt has verified."""

import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from outbox import db, snapshots
from outbox.errors import DeprovisionerError
from outbox.events import Event, emit
from outbox.logs import log
from outbox.snapshots import Snapshot
from worker.snapshots import stores

# A snapshot's time is counted in days; what an attempt that was called off has left takes room for so long.
EVERY_SECONDS = 60.0
# More than one worker removes; each takes a few at a time.
BATCH = 20


def keep_removing(*, worker: str) -> None:
    """Remove what has expired, again and again, in a thread that ends with the process: a slow store delays no job."""
    threading.Thread(target=_keep_removing, args=(worker,), name="snapshots", daemon=True).start()


def _keep_removing(worker: str) -> None:
    while True:
        try:
            while remove_expired(worker=worker) == BATCH:
                pass
        except (SQLAlchemyError, DeprovisionerError) as error:
            log.warning("snapshot_removal_failed", actor=worker, error=str(error))
        time.sleep(EVERY_SECONDS)


def remove_expired(*, worker: str) -> int:
    """Remove a batch of what has expired from its stores; how many. A store that fails is asked again later."""
    with db.statement() as session:
        found = snapshots.expired(session, limit=BATCH)
    return sum(_remove(one, worker) for one in found)


def _remove(one: Snapshot, worker: str) -> bool:
    with db.statement() as session:
        if not snapshots.expired(session, limit=1, id=one.id):
            return False  # another worker has removed it, or a hold covers it now: those before it may have taken long
    try:
        store, name = stores.at(one.location)
        store.remove(name)
    except DeprovisionerError as error:
        log.warning("snapshot_removal_failed", snapshot_id=one.id, actor=worker, error=str(error))
        return False
    reason = "its time has passed" if one.verified_at else "it was never verified"
    with db.statement() as session:
        if snapshots.removed(session, one.id, actor=worker, reason=reason):
            emit(Event.SNAPSHOT_REMOVED, log, snapshot_id=one.id, resource_id=str(one.resource_id), actor=worker)
    return True
