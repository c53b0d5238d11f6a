"""What workers find when they check the backends: the last answer for each backend, which the doctor shows."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from outbox import foreign
from outbox.rows import Json

MOST = 50
_KEPT = ("code", "what", "mend")

_RECORD = text("""
    INSERT INTO backend_checks (backend, worker, findings, error)
    VALUES (:backend, :worker, CAST(:findings AS jsonb), :error)
        ON CONFLICT (backend) DO UPDATE
       SET checked_at = now(), worker = :worker, findings = CAST(:findings AS jsonb), error = :error""")


def record(db: Connection, backend: str, findings: Sequence[Json], *, worker: str, error: str | None = None) -> None:
    """Keep what a check of the backend found (`code`, `what`, `mend`), in place of what an earlier one did."""
    kept = [{name: foreign.line(str(finding[name])) for name in _KEPT} for finding in findings[:MOST]]
    bounded = None if error is None else foreign.line(error)
    db.execute(_RECORD, {"backend": backend, "worker": worker, "findings": json.dumps(kept), "error": bounded})
