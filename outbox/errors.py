"""Every error this project raises on purpose.

DeprovisionerError
├── SettingsError            a variable or the backends file is wrong; the message names which
├── NotFound                 no such resource, job or token (or it is another tenant's)
├── BadRequest               the caller's words cannot be taken
│   ├── UnknownBackend       not in the backends file
│   ├── UnknownKind          no backend of that kind, or not this backend's kind
│   └── BadCursor            a cursor that no listing gave out
├── Forbidden                this caller may not, another could
├── Conflict                 well said, but the state forbids it
│   ├── DeletionProtected    the resource is protected
│   ├── NotActive            credentials are given out only while active
│   ├── NoCredentials        an adopted resource: we never knew them
│   ├── IdempotencyKeyReused the key came before, with another body
│   ├── AlreadyManaged       that very object belongs to a living resource
│   ├── AlreadyReleased      a hold ends once
│   ├── AlreadyRunning       an operation on the very same set goes on
│   ├── DigestMismatch       a bulk action's set is not what its preview told of
│   ├── AlreadyFinished      an operation ends once
│   ├── JobNotStuck          only a stuck job can be re-driven or resolved
│   ├── FenceMismatch        the job has moved since the operator looked
│   ├── StillThere           the last look at the backend found the object, or another under its name
│   ├── NotObserved          no worker has just seen the backend without the object
│   ├── NotATeardown         a birth leaves nothing to look for
│   ├── StillWanted          a birth whose resource nobody has deleted
│   └── NothingToForce       only an unknown outcome is forced
├── StartRefused             the job may not act now; nothing was done
│   ├── ClaimLost            the fence or the lease is no longer ours
│   ├── Busy                 another job of the resource is running
│   ├── Held                 a hold is in force over it
│   ├── BrakeHit             so many teardowns have started that a person must look
│   └── Unwanted             the resource no longer wants this
└── BackendError             raised by backends, handled by the runner
    ├── Unavailable          the server cannot be reached: wait, burn no attempt
    ├── Transient            it failed, and may work later: retry
    └── Refused              it must not be done: stick for a person
"""

import datetime as dt


class DeprovisionerError(Exception):
    """The root; its text is fit to be shown to the person who asked."""


class SettingsError(DeprovisionerError):
    """A setting is missing, unknown or malformed."""


class NotFound(DeprovisionerError):
    """Nothing under that id that the caller may see."""


class BadRequest(DeprovisionerError):
    """The caller's words cannot be taken."""


class UnknownBackend(BadRequest):
    """No backend of that name is configured."""


class UnknownKind(BadRequest):
    """No configured backend is of that kind."""


class BadCursor(BadRequest):
    """The cursor was not given out by this listing."""


class Forbidden(DeprovisionerError):
    """The caller may not do this; another one could."""


class Conflict(DeprovisionerError):
    """The state forbids it."""


class DeletionProtected(Conflict):
    """The resource is protected from deletion."""


class NotActive(Conflict):
    """The resource is not active."""


class NoCredentials(Conflict):
    """There are no credentials to give."""


class IdempotencyKeyReused(Conflict):
    """The Idempotency-Key came before with another body."""


class AlreadyManaged(Conflict):
    """The object of the manifest belongs to another living resource."""


class JobNotStuck(Conflict):
    """Only a stuck job can be re-driven or resolved."""


class FenceMismatch(Conflict):
    """The job has moved since it was looked at."""


class AlreadyReleased(Conflict):
    """The hold was released before."""


class AlreadyRunning(Conflict):
    """An operation on the very same set is running."""


class DigestMismatch(Conflict):
    """The set of a bulk action is not the one that was previewed."""


class AlreadyFinished(Conflict):
    """The operation has ended, well or not."""


class StillThere(Conflict):
    """The backend was seen with the object, or with something else under its name; `seen` is what a look saw."""

    def __init__(self, message: str, seen: object) -> None:
        super().__init__(message)
        self.seen = seen


class NotObserved(Conflict):
    """The backend was not just seen without the object."""


class NotATeardown(Conflict):
    """Only a teardown's backend is looked at."""


class StillWanted(Conflict):
    """The resource of the birth is not being deleted."""


class NothingToForce(Conflict):
    """The job's outcome is not unknown: it looks before it acts, and needs no force."""


class StartRefused(DeprovisionerError):
    """The job may not act now."""


class ClaimLost(StartRefused):
    """The fence is no longer ours, or the lease has passed."""


class Busy(StartRefused):
    """Another job of the same resource is running."""


class Held(StartRefused):
    """A hold is in force over the job; `hold_id` says which."""

    def __init__(self, message: str, hold_id: int) -> None:
        super().__init__(message)
        self.hold_id = hold_id


class BrakeHit(StartRefused):
    """A brake of `scope` (`backend` or `tenant`) `subject` let nothing more start, when that was judged."""

    def __init__(self, scope: str, subject: str, judged_at: dt.datetime, message: str) -> None:
        super().__init__(message)
        self.scope = scope
        self.subject = subject
        self.judged_at = judged_at


class Unwanted(StartRefused):
    """The resource's status no longer asks for this job."""


class BackendError(DeprovisionerError):
    """What a backend may raise."""


class Unavailable(BackendError):
    """The server cannot be reached."""


class Transient(BackendError):
    """The call failed and may work later."""


class Refused(BackendError):
    """The call must not be made: identity differs, the name is protected, or the server forbids it."""
