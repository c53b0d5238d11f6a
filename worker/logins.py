"""Asks the servers who still tries to log in to what is in quarantine."""

import threading
import time
from collections.abc import Mapping

from sqlalchemy.exc import SQLAlchemyError

from outbox import db, logins
from outbox.errors import BackendError, DeprovisionerError, Unavailable
from outbox.logins import Turn
from outbox.logs import log
from worker.backends import Backend
from worker.intake import Intake

BATCH = 50
# Of one round. Those that are left have waited longest in the next one.
MOST = 1_000


def keep_looking(served: Mapping[str, Backend], *, worker: str) -> None:
    """Look each minute, in a thread that ends with the process; not where no server tells."""
    telling = {name: backend for name, backend in served.items() if hasattr(backend, "login_attempts")}
    if telling:
        threading.Thread(target=_keep_looking, args=(telling, worker), name="logins", daemon=True).start()


def _keep_looking(served: Mapping[str, Backend], worker: str) -> None:
    while True:
        time.sleep(logins.EVERY.total_seconds())
        look(served, worker=worker)


def look(served: Mapping[str, Backend], *, worker: str) -> None:
    """One round: each resource in quarantine that no worker has looked at for a minute, up to MOST. Never raises."""
    reached = dict(served)
    try:
        for _ in range(MOST // BATCH):
            with db.statement() as session:
                turns = logins.take(session, [*reached], batch=BATCH)
            for turn in turns:
                if turn.backend in reached and not _ask(turn, reached[turn.backend], worker):
                    del reached[turn.backend]  # until the next round
            if len(turns) < BATCH:
                return
    except (SQLAlchemyError, DeprovisionerError) as error:
        log.warning("login_attempts_not_recorded", actor=worker, error=type(error).__name__)


def _ask(turn: Turn, backend: Backend, worker: str) -> bool:
    """Add what the server tells; False where it cannot be reached."""
    about = {"resource_id": str(turn.resource_id), "backend": turn.backend, "actor": worker}
    try:
        found = Intake(backend).login_attempts(turn.manifest, turn.since)
    except BackendError as error:
        log.info("login_attempts_unread", error=str(error), **about)
        return not isinstance(error, Unavailable)
    except Exception:  # noqa: BLE001 - a bug of a kind must not end the thread; its words may hold secrets
        log.exception("login_attempts_failed", **about)
        return True
    if found is not None:
        with db.statement() as session:
            logins.record(session, turn, **vars(found))
    return True
