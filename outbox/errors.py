"""Every error this project raises on purpose.

DeprovisionerError
├── SettingsError            a variable or the backends file is wrong; the message names which
├── NotFound                 no such resource, job or token (or it is another tenant's)
├── BadRequest               the request is malformed, or names what does not exist
│   ├── UnknownBackend       the backends file has no such backend
│   ├── UnknownKind          no backend has this kind, or this backend has another
│   └── BadCursor            the cursor was not issued by this listing
├── Forbidden                this caller may not do it; another may
├── QuotaExceeded            the tenant has as much as it may have; a DELETE is never refused for that
├── Conflict                 the request is well formed, but the current state forbids it
│   ├── DeletionProtected    the resource is protected
│   ├── VersionMismatch      the resource has changed since the caller read it (If-Match)
│   ├── Restoring            the resource is being restored
│   ├── OutOfManagement      the resource is being released, or was
│   ├── TeardownStarted      what has started to destroy cannot be restored
│   ├── NothingToRestore     the resource was never active
│   ├── NotDeleting          the resource is not being deleted, so there is nothing to purge
│   ├── NotActive            credentials are shown only while the resource is active
│   ├── NoCredentials        the resource was adopted: its credentials were never stored
│   ├── IdempotencyKeyReused the key came before, with another body
│   ├── AlreadyManaged       the object of the manifest belongs to another resource that is not deleted
│   ├── ExternalIdTaken      another resource of the tenant has this external id
│   ├── BackendRetired       the backend's server is gone: nothing is made, restored or shown there
│   ├── NotRetired           the backend is not retired, so nothing on it is abandoned
│   ├── HasAbandoned         objects of the backend were abandoned: it stays retired
│   ├── AlreadyReleased      the hold was released before
│   ├── AlreadyRunning       an operation on the same set is running
│   ├── DigestMismatch       the set of a bulk action is not the one that was previewed
│   ├── AlreadyFinished      the operation has ended
│   ├── JobNotStuck          only a stuck job can be re-driven or resolved
│   ├── FenceMismatch        the job has moved on since the operator read it
│   ├── StillThere           the last inspection found the object, or another one under its name
│   ├── NotObserved          no worker has just seen the backend without the object
│   ├── NotATeardown         the job is a provision: there is no absence to inspect
│   ├── StillWanted          the job is a provision, and its resource is not being deleted
│   └── NothingToForce       only an unknown outcome can be forced
├── StartRefused             the job may not act now; nothing was done
│   ├── ClaimLost            the worker has lost its fence or its lease
│   ├── Busy                 another job of the resource is running
│   ├── Held                 a hold in force covers the job
│   ├── Early                the resource must not be destroyed yet
│   ├── BrakeHit             too many teardowns have started; an operator must decide
│   └── Unwanted             the resource's status no longer asks for this job
├── Rewound                  the control database went back in time: only reads are answered
├── Unconfirmed              a commit that no synchronous standby confirmed: it may be taken back
└── BackendError             raised by backends, handled by the runner
    ├── Unavailable          the server cannot be reached: wait, and use up no attempt
    ├── Transient            the call failed and may work later: retry
    └── Refused              the call must not be made: the job is stuck for an operator
"""

import datetime as dt
from typing import Any


class DeprovisionerError(Exception):
    """The root; its text may be shown to the caller."""


class SettingsError(DeprovisionerError):
    """A setting is missing, unknown or malformed."""


class NotFound(DeprovisionerError):
    """The caller may see nothing under that id."""


class BadRequest(DeprovisionerError):
    """The request is malformed, or names what does not exist."""


class UnknownBackend(BadRequest):
    """No backend of that name is configured."""


class UnknownKind(BadRequest):
    """No configured backend is of that kind."""


class BadCursor(BadRequest):
    """The cursor was not issued by this listing."""


class Forbidden(DeprovisionerError):
    """The caller may not do this; another one could."""


class QuotaExceeded(DeprovisionerError):
    """The tenant has as much as it may have: `quota` is the setting that limits it, `limit` its value."""

    def __init__(self, message: str, quota: str, limit: int) -> None:
        super().__init__(message)
        self.quota = quota
        self.limit = limit


class Conflict(DeprovisionerError):
    """The current state forbids the request."""


class DeletionProtected(Conflict):
    """The resource is protected from deletion."""


class VersionMismatch(Conflict):
    """The resource has changed since the caller read it; its version is another one now."""

    def __init__(self, resource_id: object, version: int) -> None:
        super().__init__(f'resource {resource_id} has changed: its ETag is "{version}" now; read it again')


class Restoring(Conflict):
    """The resource is being restored."""


class OutOfManagement(Conflict):
    """The resource is being released, or was: this service no longer tears it down."""


class TeardownStarted(Conflict):
    """The destruction has started: the resource cannot be restored any more."""


class NothingToRestore(Conflict):
    """The resource was never active."""


class NotDeleting(Conflict):
    """The resource is not being deleted."""


class NotActive(Conflict):
    """The resource is not active."""


class NoCredentials(Conflict):
    """The resource was adopted: its credentials were never stored."""


class IdempotencyKeyReused(Conflict):
    """The Idempotency-Key came before with another body."""


class AlreadyManaged(Conflict):
    """The object of the manifest belongs to another resource that is not deleted."""


class ExternalIdTaken(Conflict):
    """Another resource of the tenant that is not deleted or released has this external id."""


class JobNotStuck(Conflict):
    """Only a stuck job can be re-driven or resolved."""


class FenceMismatch(Conflict):
    """The job has moved on since the operator read it."""


class BackendRetired(Conflict):
    """The backend is retired: its server is gone, so nothing is made, restored or shown there."""


class NotRetired(Conflict):
    """The backend is not retired: its teardowns may still be carried out."""


class HasAbandoned(Conflict):
    """Objects of the backend were abandoned: it stays retired."""


class AlreadyReleased(Conflict):
    """The hold was released before."""


class AlreadyRunning(Conflict):
    """An operation on the same set is running."""


class DigestMismatch(Conflict):
    """The set of a bulk action is not the one that was previewed."""


class AlreadyFinished(Conflict):
    """The operation has ended: it succeeded or was stopped."""


class StillThere(Conflict):
    """A worker saw the object, or another one under its name; `seen` is what the inspection saw."""

    def __init__(self, message: str, seen: object) -> None:
        super().__init__(message)
        self.seen = seen


class NotObserved(Conflict):
    """No worker has just seen the backend without the object."""


class NotATeardown(Conflict):
    """The job is a provision: workers inspect the backend only for teardowns."""


class StillWanted(Conflict):
    """The job is a provision, and its resource is not being deleted."""


class NothingToForce(Conflict):
    """The job's outcome is not unknown: its worker inspects before it acts, so nothing needs force."""


class StartRefused(DeprovisionerError):
    """The job may not act now."""


class ClaimLost(StartRefused):
    """The worker has lost its fence, or its lease has passed."""


class Busy(StartRefused):
    """Another job of the same resource is running."""


class Held(StartRefused):
    """A hold in force covers the job; `hold_id` says which."""

    def __init__(self, message: str, hold_id: int) -> None:
        super().__init__(message)
        self.hold_id = hold_id


class Early(StartRefused):
    """`purge_at` has not come: it is `seconds` away."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class BrakeHit(StartRefused):
    """At `judged_at`, the brake on this `scope` (`backend` or `tenant`) and `subject` let no more teardowns start."""

    def __init__(self, scope: str, subject: str, judged_at: dt.datetime, message: str) -> None:
        super().__init__(message)
        self.scope = scope
        self.subject = subject
        self.judged_at = judged_at


class Unwanted(StartRefused):
    """The resource's status no longer asks for this job."""


class Rewound(DeprovisionerError):
    """The control database went back in time: nothing is written until an operator has recovered it."""

    def __init__(self) -> None:
        super().__init__(
            "the control database went back in time, so only reads are answered until an operator has run "
            "`deprovisioner recover` and decided; ask again after that"
        )


class Unconfirmed(DeprovisionerError):
    """The commit is there, and no synchronous standby confirmed it: do not act on it."""


class BackendError(DeprovisionerError):
    """What a backend may raise.

    `did`: what the verb had done before, as evidence; None where the backend does not tell.
    """

    did: dict[str, Any] | None = None


class Unavailable(BackendError):
    """The server cannot be reached."""


class OutOfService(Unavailable):
    """The server answered that it does no work now, for any object: it is read-only, its disk is full or fails."""


class MemoryForbidden(OutOfService):
    """The service's account may not read or keep what the server remembers of the control database."""


class Transient(BackendError):
    """The call failed and may work later."""


class Refused(BackendError):
    """The call must not be made: identity differs, the name is protected, or the server forbids it."""
