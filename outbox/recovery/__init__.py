"""Recoveries: what an operator decides after the control database, or a backend, went back in time.

A survey compares this database with what the backends and their memories know, and stores what it found as items, by
class, with a digest. Then an operator decides each class, and `decide` works off exactly these items, batch by
batch, while a hold stops everything else. An event for each item says who decided it, and in which recovery.

- `classes`   the classes as data: what belongs to each, and what each decision calls
- `acts`      what a decision does with the items of a batch
- `survey`    stores what was seen, and compares
- `decide`    begins, works off, and ends a recovery
- `shown`     the last survey, as commands and the API show it
"""

from outbox.recovery.acts import Look
from outbox.recovery.classes import CLASSES, HORIZON_MINUTES, ItemClass
from outbox.recovery.decide import (
    BATCH,
    Wanted,
    announce,
    begin,
    finish,
    memory,
    one_at_a_time,
    revoke_tokens,
    step,
    waiting,
)
from outbox.recovery.shown import Survey, last, refusals, state
from outbox.recovery.survey import SAMPLE, Looked, Seen, begin_survey, end_survey, expected, keep_objects

__all__ = [
    "BATCH",
    "CLASSES",
    "HORIZON_MINUTES",
    "SAMPLE",
    "ItemClass",
    "Look",
    "Looked",
    "Seen",
    "Survey",
    "Wanted",
    "announce",
    "begin",
    "begin_survey",
    "end_survey",
    "expected",
    "finish",
    "keep_objects",
    "last",
    "memory",
    "one_at_a_time",
    "refusals",
    "revoke_tokens",
    "state",
    "step",
    "waiting",
]
