"""Tables, indexes and CHECKs. Alembic's migrations create them; `alembic check` compares the two.

- `resources`, `jobs`   the customers' resources, and the outbox
- `evidence`            events, checkpoints
- `control`             tokens, breakers, holds, brakes, observations, approvals
- `installation`        its identity, and what places outside remember of it
- `operations`          bulk work
- `recovery`            recoveries after a rewind: what was found, and what was decided
- `reconciliation`      what backends have and this database does not know, or the other way round
- `snapshots`           final snapshots, and attempts to log in
"""

from outbox.tables.control import approvals, brake_starts, breakers, holds, observations, tokens
from outbox.tables.evidence import audit_checkpoints, audit_heads, events
from outbox.tables.installation import installation, memories
from outbox.tables.jobs import outbox
from outbox.tables.metadata import metadata
from outbox.tables.operations import adoptions, operation_items, operations
from outbox.tables.reconciliation import (
    object_findings,
    reconciliation_items,
    reconciliation_objects,
    reconciliations,
)
from outbox.tables.recovery import recoveries, recovery_items, recovery_objects
from outbox.tables.resources import resources
from outbox.tables.snapshots import login_attempts, snapshots

__all__ = [
    "adoptions",
    "approvals",
    "audit_checkpoints",
    "audit_heads",
    "brake_starts",
    "breakers",
    "events",
    "holds",
    "installation",
    "login_attempts",
    "memories",
    "metadata",
    "object_findings",
    "observations",
    "operation_items",
    "operations",
    "outbox",
    "reconciliation_items",
    "reconciliation_objects",
    "reconciliations",
    "recoveries",
    "recovery_items",
    "recovery_objects",
    "resources",
    "snapshots",
    "tokens",
]
