"""What a caller may ask for, one function each. The HTTP API and the command translate, and add no rule of their own.

An edge (the API, the command) makes a `Caller`, calls a function here, and shows the answer or the error. Reading needs
no function here: an edge calls `queries` with the tenant of its caller.

- `caller`       who asks; what only operators may ask for; which tenant is meant
- `resources`    create, change, delete, show credentials
- `undo`         restore, purge; release out of management
- `jobs`         observe, redrive, resolve; alone or by two operators
- `holds`        hold, release
- `operations`   preview, begin and stop bulk work
- `backends`     compare and rebind a backend whose server moved
- `reconcile`    what reconciliations found; adopt or delete an object that no row knows
- `retirement`   retire a backend whose server is gone, abandon its teardowns, take that back
- `recovery`     survey and recover after a rewind, announce a restore

Transactions are the edges'. An action that needs one session takes it as `db`. An action that needs several, one after
the other, or that wakes the workers after a commit, takes an `Edge`, which lends it both.
"""

from outbox.actions.backends import Comparison, Move, Rebound, compare, rebind
from outbox.actions.caller import Ask, Caller, Edge, Operator, caller, operator, operator_at_a_shell
from outbox.actions.holds import hold, release
from outbox.actions.jobs import Proposed, observe, redrive, resolve, within
from outbox.actions.operations import (
    BulkFilter,
    RestoreFilter,
    begin_adopt,
    begin_offboard,
    begin_redrive,
    begin_restore,
    chosen,
    preview_adopt,
    preview_offboard,
    preview_redrive,
    preview_restore,
    previewed_adopt,
    stop,
    taken_back,
)
from outbox.actions.reconcile import (
    ADOPT,
    DELETE,
    Chosen,
    Done,
    Preview,
    carry_out,
    left_behind,
    object_findings,
    preview_findings,
    reconciled,
)
from outbox.actions.recovery import Places, Recovered, Rewind, announce, recover, rewind, survey
from outbox.actions.recovery import wanted as wanted_recovery
from outbox.actions.resources import (
    change,
    create,
    delete,
    delete_alone,
    delete_batch,
    show_credentials,
    wanted_delete,
)
from outbox.actions.retirement import abandon, abandon_all, retire, unretire
from outbox.actions.undo import purge, release_resource, restore
from outbox.jobs import Delete, Enqueued, Released, Restored
from outbox.moves import At
from outbox.operations import DIGEST, DeleteFilter, words
from outbox.reconcile import ObjectFinding, Reconciliation
from outbox.recovery import CLASSES, Look, Looked, Seen, Survey
from outbox.resources import NewResource

__all__ = [
    "ADOPT",
    "CLASSES",
    "DELETE",
    "DIGEST",
    "Ask",
    "At",
    "BulkFilter",
    "Caller",
    "Chosen",
    "Comparison",
    "Delete",
    "DeleteFilter",
    "Done",
    "Edge",
    "Enqueued",
    "Look",
    "Looked",
    "Move",
    "NewResource",
    "ObjectFinding",
    "Operator",
    "Places",
    "Preview",
    "Proposed",
    "Rebound",
    "Reconciliation",
    "Recovered",
    "Released",
    "RestoreFilter",
    "Restored",
    "Rewind",
    "Seen",
    "Survey",
    "abandon",
    "abandon_all",
    "announce",
    "begin_adopt",
    "begin_offboard",
    "begin_redrive",
    "begin_restore",
    "caller",
    "carry_out",
    "change",
    "chosen",
    "compare",
    "create",
    "delete",
    "delete_alone",
    "delete_batch",
    "hold",
    "left_behind",
    "object_findings",
    "observe",
    "operator",
    "operator_at_a_shell",
    "preview_adopt",
    "preview_findings",
    "preview_offboard",
    "preview_redrive",
    "preview_restore",
    "previewed_adopt",
    "purge",
    "rebind",
    "reconciled",
    "recover",
    "redrive",
    "release",
    "release_resource",
    "resolve",
    "restore",
    "retire",
    "rewind",
    "show_credentials",
    "stop",
    "survey",
    "taken_back",
    "unretire",
    "wanted_delete",
    "wanted_recovery",
    "within",
    "words",
]
