"""Bulk work of operators as rows that workers advance: a closed laptop or a dead API stops nothing.

A preview tells how many there are, and a digest of exactly which. `begin_…` writes that very set down, or refuses when
it is another by now. `advance` makes one step of one operation in one short transaction; it holds the operation's row
meanwhile, so that workers take turns and none does a step twice.

- `redrive`, `offboard`   preview, begin and a step of each
- `advance`               whose step is next, and the end of an operation
- `selection`                what both write down, and its digest
"""

from outbox.operations.advance import advance, stop
from outbox.operations.offboard import OffboardPreview, begin_offboard, preview_offboard
from outbox.operations.redrive import MAX_RATE, RATE, Preview, begin_redrive, preview_redrive, words
from outbox.operations.selection import BATCH, DIGEST, POLL_SECONDS, SAMPLE

__all__ = [
    "BATCH",
    "DIGEST",
    "MAX_RATE",
    "POLL_SECONDS",
    "RATE",
    "SAMPLE",
    "OffboardPreview",
    "Preview",
    "advance",
    "begin_offboard",
    "begin_redrive",
    "preview_offboard",
    "preview_redrive",
    "stop",
    "words",
]
