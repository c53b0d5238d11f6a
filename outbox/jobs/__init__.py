"""Every transition of a job, with its SQL above its function. Nothing else writes a job's state.

In the order of a job's life:

- `enqueue`    () -> pending, by a DELETE
- `expire`     () -> pending, because `expires_at` has passed
- `claim`      pending -> running, and the heartbeat
- `start`      running -> running, with the durable start mark
- `finish`     running -> succeeded, cancelled, stuck, or pending again
- `restore`    any -> cancelled while nothing was destroyed, and () -> pending for what gives it back; an earlier purge
- `release`    () -> pending for what goes out of management, and running -> succeeded once its mark is off
- `operators`  stuck -> pending, succeeded, cancelled
- `abandon`    pending, stuck -> abandoned, on a backend whose server is gone
- `recovery`   pending -> stuck, and () -> succeeded, after the control database went back in time
- `rebind`     moves no job: the identity of objects whose server moved
- `_sql`       what the statements share

Each transition is one statement: its guard is in WHERE, and it writes its event in the same transaction. On
`db.statement()` it takes one round trip. Functions take `db` first and never commit. Zero rows mean that the guard
did not hold; `_sql._confirm_landed` then tells a lost answer from a lost claim.
"""

from outbox.jobs.abandon import abandon
from outbox.jobs.claim import CROWDED, LANES, claim, claimed_before, heartbeat, lanes_from, still
from outbox.jobs.enqueue import Delete, Enqueued, enqueue, enqueue_all, enqueue_unheld, enqueued_before
from outbox.jobs.expire import DUE_ROWS, Due, expire, last_due
from outbox.jobs.finish import (
    WAKE_BATCH,
    activate,
    advance,
    complete,
    complete_all,
    defer,
    give_back,
    note_late,
    retry,
    rollback,
    stick,
    sweep,
    wake,
)
from outbox.jobs.operators import FRESH, redrive, redrive_all, redrive_forced, resolve, resolve_forced, stuck_or_refuse
from outbox.jobs.rebind import rebind
from outbox.jobs.recovery import close, set_aside
from outbox.jobs.release import Released, let_go, release
from outbox.jobs.restore import NOT_STARTED, Restored, purge, restore, restore_all
from outbox.jobs.start import may_undo, start, start_all, start_provision

__all__ = [
    "CROWDED",
    "DUE_ROWS",
    "FRESH",
    "LANES",
    "NOT_STARTED",
    "WAKE_BATCH",
    "Delete",
    "Due",
    "Enqueued",
    "Released",
    "Restored",
    "abandon",
    "activate",
    "advance",
    "claim",
    "claimed_before",
    "close",
    "complete",
    "complete_all",
    "defer",
    "enqueue",
    "enqueue_all",
    "enqueue_unheld",
    "enqueued_before",
    "expire",
    "give_back",
    "heartbeat",
    "lanes_from",
    "last_due",
    "let_go",
    "may_undo",
    "note_late",
    "purge",
    "rebind",
    "redrive",
    "redrive_all",
    "redrive_forced",
    "release",
    "resolve",
    "resolve_forced",
    "restore",
    "restore_all",
    "retry",
    "rollback",
    "set_aside",
    "start",
    "start_all",
    "start_provision",
    "stick",
    "still",
    "stuck_or_refuse",
    "sweep",
    "wake",
]
