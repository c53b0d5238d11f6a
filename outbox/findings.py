"""What workers find when they check the backends: the last answer for each backend, which the doctor shows."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from outbox.rows import Json, storable

# Words of a backend of a third party may be long. The doctor shows them in a line.
MAX_CHARACTERS = 500
MOST = 50

_RECORD = text("""
    INSERT INTO backend_checks (backend, worker, findings, error)
    VALUES (:backend, :worker, CAST(:findings AS jsonb), :error)
        ON CONFLICT (backend) DO UPDATE
       SET checked_at = now(), worker = :worker, findings = CAST(:findings AS jsonb), error = :error""")


def record(db: Connection, backend: str, findings: Sequence[Json], *, worker: str, error: str | None = None) -> None:
    """Keep what a check of the backend found (`code`, `what`, `mend`), in place of what an earlier one did."""
    kept = [{name: _bounded(str(words)) for name, words in finding.items()} for finding in findings[:MOST]]
    bounded = None if error is None else _bounded(error)
    db.execute(_RECORD, {"backend": backend, "worker": worker, "findings": json.dumps(kept), "error": bounded})


def _bounded(words: str) -> str:
    kept = words[:MAX_CHARACTERS]
    return kept if storable(kept) else kept.encode("ascii", "backslashreplace").decode().replace("\0", "")
