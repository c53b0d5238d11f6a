"""Bulk work of operators as rows that workers advance: it goes on when the operator's laptop or the API is down.

A preview counts the rows and gives a digest of exactly these rows. `begin_…` stores the same rows as items, or refuses
when they have changed since. `advance` does one step of one operation in one short transaction, which locks the
operation's row: workers take turns, and no step is done twice.

- `redrive`, `offboard`, `restore`, `adopt`   preview, begin and one step of each kind of operation
- `advance`     does the next step, and ends or stops an operation
- `canaries`    the items that go first, and what follows them
- `selection`   the rows that an operation works on, and their digest
"""

from outbox.operations.adopt import AdoptPreview, begin_adopt, begin_preview, previewed
from outbox.operations.advance import advance, stop
from outbox.operations.offboard import OffboardPreview, begin_offboard, preview_offboard
from outbox.operations.redrive import MAX_RATE, RATE, Preview, begin_redrive, preview_redrive, words
from outbox.operations.restore import DeleteFilter, RestorePreview, begin_restore, preview_restore
from outbox.operations.selection import BATCH, DIGEST, POLL_SECONDS, SAMPLE

__all__ = [
    "BATCH",
    "DIGEST",
    "MAX_RATE",
    "POLL_SECONDS",
    "RATE",
    "SAMPLE",
    "AdoptPreview",
    "DeleteFilter",
    "OffboardPreview",
    "Preview",
    "RestorePreview",
    "advance",
    "begin_adopt",
    "begin_offboard",
    "begin_preview",
    "begin_redrive",
    "begin_restore",
    "preview_offboard",
    "preview_redrive",
    "preview_restore",
    "previewed",
    "stop",
    "words",
]
