"""Reconciliations: how a backend and this database differ, found without a change to either.

A run reads all objects of a backend into this database, compares them with the rows page by page, has each difference
inspected once more, and stores what stands as findings, in one transaction at its end. A run that fails stores nothing
but why it failed. `docs/design.md`, "Reconciliation", has the rules.

- `runs`      whose turn it is; the begin and the end of a run
- `compare`   what is read, and what may differ
- `shown`     runs and findings, as commands, the API and the doctor's readers see them
"""

from outbox.reconcile.compare import Item, Looked, Seen, compare, keep, looked, waiting
from outbox.reconcile.runs import EVERY, YOUNG, Run, adopted, begin, conclude, due, fail
from outbox.reconcile.shown import ObjectFinding, Reconciliation, chosen, findings, ledger, results

__all__ = [
    "EVERY",
    "YOUNG",
    "Item",
    "Looked",
    "ObjectFinding",
    "Reconciliation",
    "Run",
    "Seen",
    "adopted",
    "begin",
    "chosen",
    "compare",
    "conclude",
    "due",
    "fail",
    "findings",
    "keep",
    "ledger",
    "looked",
    "results",
    "waiting",
]
