"""The two state machines as data: tests try every arrow, and compare `docs/design.md` with it."""

from dataclasses import dataclass
from enum import StrEnum


class ResourceStatus(StrEnum):
    """The life of a customer's resource.

    `provisioning` until the backend has its object, `active` while it serves, `deleting` from the accepted DELETE on,
    `deleted` only after a worker saw the backend without the object. `restoring` from an accepted restore on, until a
    worker has given the object back. `releasing` until a worker has taken our mark off the object, then `released`:
    out of management, for good, and the object stays as it is. `abandoned`: its server is gone for good, said two
    operators, and nobody saw the object absent; final.
    """

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    DELETING = "deleting"
    DELETED = "deleted"
    RESTORING = "restoring"
    RELEASING = "releasing"
    RELEASED = "released"
    ABANDONED = "abandoned"


class JobState(StrEnum):
    """The life of a row in the outbox.

    `pending` waits for `available_at`. `running` belongs to one worker, until its lease passes. `stuck` waits for an
    operator. `succeeded`, `cancelled` and `abandoned` are final, and a trigger keeps them so. `abandoned`: a teardown
    whose server is gone.
    """

    PENDING = "pending"
    RUNNING = "running"
    STUCK = "stuck"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"


class JobKind(StrEnum):
    """What a job does to its resource."""

    PROVISION = "provision"
    DEPROVISION = "deprovision"
    RESTORE = "restore"
    RELEASE = "release"


class Step(StrEnum):
    """What a teardown does next; other jobs have no steps.

    `quarantine` and `snapshot` act, and can be taken back; `wait` lasts until `purge_at`; `destroy` acts, and its start
    is the point of no return.
    """

    QUARANTINE = "quarantine"
    SNAPSHOT = "snapshot"
    WAIT = "wait"
    DESTROY = "destroy"


# In their order. A teardown without grace and without a snapshot has the last one alone.
STEPS = tuple(Step)


class SnapshotPolicy(StrEnum):
    """Whether a teardown first takes a snapshot, and sees it restored."""

    REQUIRED = "required"
    OFF = "off"


class StuckReason(StrEnum):
    """Why only an operator may move the job on."""

    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    REFUSED = "refused"
    OUTCOME_UNKNOWN = "outcome_unknown"
    SNAPSHOT_FAILED = "snapshot_failed"


class ForcedAction(StrEnum):
    """What two operators may do with a job where one may not."""

    RESOLVE = "resolve"
    REDRIVE = "redrive"
    PURGE = "purge"
    ABANDON = "abandon"


class HoldScope(StrEnum):
    """What a hold stops: all jobs, or those of one backend, tenant or kind."""

    GLOBAL = "global"
    BACKEND = "backend"
    TENANT = "tenant"
    KIND = "kind"


class HoldCause(StrEnum):
    """Who engaged a hold. An operator's hold stops all jobs in its scope but restores, a brake's only teardowns.

    `rewound`: a worker found that the control database went back in time. It stops everything, and only a recovery
    ends it. `rebind`: `backends rebind` is at work; it stops all jobs of its backend, restores too. `retired`: the
    backend's server is gone; the same.
    """

    OPERATOR = "operator"
    BRAKE = "brake"
    REWOUND = "rewound"
    REBIND = "rebind"
    RETIRED = "retired"


class OperationKind(StrEnum):
    """What an operation does to each of its items."""

    REDRIVE = "redrive"
    OFFBOARD = "offboard"
    RESTORE = "restore"
    ADOPT_PREVIEW = "adopt_preview"
    ADOPT = "adopt"


class OperationState(StrEnum):
    """Life of an operation.

    `running` until a worker or an operator ends it; `succeeded` when it ended without an error, `stopped` with one: a
    canary failed, or an operator stopped it.
    """

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"


class ItemOutcome(StrEnum):
    """The outcome of one item of an operation; NULL while the item waits.

    `redriven`, `enqueued`, `restoring`: done. `failed`: a canary that did not succeed. `stopped`: left alone, because
    its backend's canary failed or an operator stopped the operation. `skipped`: its job or resource had changed before
    its turn. `protected`: its resource is protected from deletion. `adoptable`, `refused`: what an inspection found.
    """

    REDRIVEN = "redriven"
    FAILED = "failed"
    STOPPED = "stopped"
    ENQUEUED = "enqueued"
    PROTECTED = "protected"
    SKIPPED = "skipped"
    RESTORING = "restoring"
    ADOPTABLE = "adoptable"
    REFUSED = "refused"


class BreakerState(StrEnum):
    """An open breaker lets no job of its backend start; a half-open one lets one start, the probe."""

    OPEN = "open"
    HALF_OPEN = "half_open"


class TokenRole(StrEnum):
    """What a bearer token opens: one tenant's resources and jobs, or everything."""

    TENANT = "tenant"
    OPERATOR = "operator"


class Decision(StrEnum):
    """What a person decides about one class of what a recovery found.

    `confirm`: jobs of this database go on, and lost changes are made again. `cancel`: jobs are taken back, and lost
    changes stay lost. `leave`: nothing is done, and jobs that would go on by themselves are set aside as stuck.
    """

    CONFIRM = "confirm"
    CANCEL = "cancel"
    LEAVE = "leave"


class Difference(StrEnum):
    """How a backend and this database differ about one object: what a reconciliation finds.

    `unknown`: it bears our mark, and no row knows it. `survives`: its resource is deleted (released, abandoned).
    `missing`: its resource is active, and it is gone. `differs`: its resource is active, and it is another one, a part
    of it, or in quarantine.
    `unmarked`: it bears no mark of ours, and no resource has its name; only found where that was asked for.
    """

    UNKNOWN = "unknown"
    SURVIVES = "survives"
    MISSING = "missing"
    DIFFERS = "differs"
    UNMARKED = "unmarked"


class Found(StrEnum):
    """What a worker found when it inspected a stuck job's backend.

    `absent`, `same` and `different` are what the server answered. `unavailable`: it could not be asked.
    `unobservable`: backends of this kind cannot be inspected.
    """

    ABSENT = "absent"
    SAME = "same"
    DIFFERENT = "different"
    UNAVAILABLE = "unavailable"
    UNOBSERVABLE = "unobservable"


@dataclass(frozen=True)
class Transition:
    """One arrow: `source` is None where the transition inserts the job."""

    name: str
    source: JobState | None
    target: JobState
    guard: str
    by: str


TRANSITIONS = (
    Transition("enqueue", None, JobState.PENDING, "resource is active or provisioning, not protected", "API, CLI"),
    Transition(
        "expire", None, JobState.PENDING, "resource is active, past expires_at, not protected; no hold", "worker"
    ),
    Transition("claim", JobState.PENDING, JobState.RUNNING, "due, not held, breaker closed; SKIP LOCKED", "worker"),
    Transition(
        "start",
        JobState.RUNNING,
        JobState.RUNNING,
        "fence; lease alive by the database's clock; resource still wants it; no other job of it running; "
        "no hold; brake not hit; at destroy: purge_at has passed, and a snapshot that is required is verified",
        "worker",
    ),
    Transition(
        "advance", JobState.RUNNING, JobState.PENDING, "fence; quarantine or snapshot, started under it", "worker"
    ),
    Transition("complete", JobState.RUNNING, JobState.SUCCEEDED, "fence; deprovision; absence was seen", "worker"),
    Transition("activate", JobState.RUNNING, JobState.SUCCEEDED, "fence; provision; identity was seen", "worker"),
    Transition("retry", JobState.RUNNING, JobState.PENDING, "fence; attempts left", "worker"),
    Transition("defer", JobState.RUNNING, JobState.PENDING, "fence; not started under this fence", "worker"),
    Transition("stick", JobState.RUNNING, JobState.STUCK, "fence", "worker"),
    Transition("give_back", JobState.RUNNING, JobState.SUCCEEDED, "fence; restore; a login was seen to work", "worker"),
    Transition("let_go", JobState.RUNNING, JobState.SUCCEEDED, "fence; release; the mark was taken off", "worker"),
    Transition("rollback", JobState.RUNNING, JobState.CANCELLED, "fence; provision of a created resource", "worker"),
    Transition("sweep", JobState.RUNNING, JobState.PENDING, "lease passed; SKIP LOCKED", "worker, beat"),
    Transition("sweep", JobState.RUNNING, JobState.STUCK, "lease passed; attempts spent; a teardown", "worker, beat"),
    Transition(
        "restore", None, JobState.PENDING, "resource is deleting, and its teardown was just cancelled", "API, CLI"
    ),
    Transition("release", None, JobState.PENDING, "resource is active, not protected", "operator"),
    *(
        Transition("cancel", state, JobState.CANCELLED, "deprovision; never started at destroy", "API, CLI")
        for state in (JobState.PENDING, JobState.RUNNING, JobState.STUCK)
    ),
    *(
        Transition("set_aside", state, JobState.STUCK, guard, "operator, in a recovery")
        for state, guard in (
            (JobState.PENDING, "fence as the survey saw it"),
            (JobState.RUNNING, "fence as the survey saw it; lease passed"),
        )
    ),
    Transition(
        "close",
        None,
        JobState.SUCCEEDED,
        "resource is active; its object was just seen absent",
        "operator, in a recovery",
    ),
    Transition("redrive", JobState.STUCK, JobState.PENDING, "fence as the operator saw it; actor, reason", "operator"),
    Transition(
        "resolve",
        JobState.STUCK,
        JobState.SUCCEEDED,
        "fence as the operator saw it; deprovision; just seen absent, or forced by two operators; actor, reason",
        "operator",
    ),
    Transition(
        "resolve",
        JobState.STUCK,
        JobState.SUCCEEDED,
        "fence as the operator saw it; release; actor, reason",
        "operator",
    ),
    Transition(
        "resolve",
        JobState.STUCK,
        JobState.CANCELLED,
        "fence as the operator saw it; provision of what is deleted or being deleted; actor, reason",
        "operator",
    ),
    *(
        Transition(
            "abandon",
            state,
            JobState.ABANDONED,
            "fence as the operator saw it; deprovision; its backend is retired; two operators; actor, reason",
            "operator",
        )
        for state in (JobState.PENDING, JobState.STUCK)
    ),
)

FINAL = (JobState.SUCCEEDED, JobState.CANCELLED, JobState.ABANDONED)
