"""The guards, each as the change that takes it out, with the tests that should notice: data for `support/mutants.py`.

A name begins with what is guarded: a transition's name, a constraint's, a part of the product. The first test that is
named is the quickest that should notice.
"""

from tests.mutations.acts import GUARDS_OF_ACTS
from tests.mutations.adoptions import GUARDS_OF_ADOPTIONS
from tests.mutations.api import GUARDS_OF_API
from tests.mutations.audit import GUARDS_OF_AUDIT
from tests.mutations.claims import CLAIMS
from tests.mutations.conformance import GUARDS_OF_CONFORMANCE
from tests.mutations.cut import Mutant, Stale, cut
from tests.mutations.edges import GUARDS_OF_EDGES
from tests.mutations.memory import GUARDS_OF_MEMORY
from tests.mutations.mysql import GUARDS_OF_MYSQL
from tests.mutations.objects import GUARDS_OF_OBJECTS
from tests.mutations.operations import GUARDS_OF_OPERATIONS
from tests.mutations.operators import OPERATORS
from tests.mutations.outcomes import OUTCOMES
from tests.mutations.postgres import GUARDS_OF_POSTGRES
from tests.mutations.rabbitmq import GUARDS_OF_RABBITMQ
from tests.mutations.rebind import GUARDS_OF_REBIND
from tests.mutations.reconcile import GUARDS_OF_RECONCILE
from tests.mutations.recoveries import GUARDS_OF_RECOVERIES
from tests.mutations.redis import GUARDS_OF_REDIS
from tests.mutations.restores import GUARDS_OF_RESTORES
from tests.mutations.rewinds import GUARDS_OF_REWINDS
from tests.mutations.roads import GUARDS_OF_ROADS
from tests.mutations.runner import GUARDS_OF_RUNNER
from tests.mutations.s3 import GUARDS_OF_S3
from tests.mutations.schema import GUARDS_OF_MANIFESTS, GUARDS_OF_SCHEMA
from tests.mutations.snapshots import GUARDS_OF_SNAPSHOTS
from tests.mutations.undo import GUARDS_OF_UNDO
from tests.mutations.webhook import GUARDS_OF_WEBHOOK

__all__ = ["EQUIVALENT", "MUTANTS", "Mutant", "Stale"]
TRANSITIONS, MOVES = "outbox/jobs", "tests/outbox/test_transitions.py"

MUTANTS = (
    *CLAIMS,
    *OUTCOMES,
    *OPERATORS,
    *GUARDS_OF_SCHEMA,
    *GUARDS_OF_MANIFESTS,
    *GUARDS_OF_RESTORES,
    *GUARDS_OF_RUNNER,
    *GUARDS_OF_POSTGRES,
    *GUARDS_OF_REDIS,
    *GUARDS_OF_MYSQL,
    *GUARDS_OF_RABBITMQ,
    *GUARDS_OF_S3,
    *GUARDS_OF_MEMORY,
    *GUARDS_OF_ADOPTIONS,
    *GUARDS_OF_API,
    *GUARDS_OF_OPERATIONS,
    *GUARDS_OF_AUDIT,
    *GUARDS_OF_ACTS,
    *GUARDS_OF_EDGES,
    *GUARDS_OF_UNDO,
    *GUARDS_OF_SNAPSHOTS,
    *GUARDS_OF_OBJECTS,
    *GUARDS_OF_REWINDS,
    *GUARDS_OF_RECOVERIES,
    *GUARDS_OF_RECONCILE,
    *GUARDS_OF_ROADS,
    *GUARDS_OF_CONFORMANCE,
    *GUARDS_OF_REBIND,
    *GUARDS_OF_WEBHOOK,
)

# Nobody can see that these are gone, since something else always answers first.
EQUIVALENT: dict[Mutant, str] = {
    mutant: why
    for why, mutants in {
        "the CHECK outbox_stuck_has_reason gives a reason to stuck jobs only": cut(
            TRANSITIONS,
            "_REDRIVE_FORCED = text(",
            "tests/outbox/test_resolve.py",
            (
                "redrive by two: state",
                " AND state = 'stuck'",
                "",
                "test_a_proposal_does_not_count_once_its_job_has_changed",
            ),
        ),
        "the CHECK outbox_running_has_lease gives a lease to running jobs only": cut(
            TRANSITIONS,
            "_SWEEP = text(",
            MOVES,
            (
                "sweep: state again",
                "outbox.id = placed.id AND state = 'running' AND",
                "outbox.id = placed.id AND",
                "test_a_row_that_changed_after_it_was_picked_is_not_moved_again[_SWEEP]",
            ),
        ),
    }.items()
    for mutant in mutants
}
