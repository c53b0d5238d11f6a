"""What a package needs to bring a kind of backend of its own; nothing else of this project needs to be imported.

A kind is two objects, each under the kind's name in an entry point group of the package:

    [project.entry-points."deprovisioner.backends"]     # loaded by workers
    mainframe = "acme_mainframe.backend:Mainframe"
    [project.entry-points."deprovisioner.kinds"]        # loaded by API and workers; optional
    mainframe = "acme_mainframe.kind:KIND"

The first is a class whose instances satisfy `Backend`, called as `Mainframe(dsn, protected=names)` once for each
configured backend of the kind; it raises SettingsError for a dsn that it cannot use, and does not connect yet. Threads
share the instance. The second is a `Kind`: the fields of the kind's manifests. The API loads it too, so its module
imports no client of the server.

**Options.** A class that names keys of the backends file in a class attribute, such as `options =
frozenset({"public_host", "public_port", "sslmode"})`, is called with those that the backend's table has as keyword
arguments, already checked: `Mainframe(dsn, protected=names, public_host="db.example.com")`. Its `plan` puts them into
the credentials. For a class without `options`, such a key in the table is an error.

**Names and identity.** `plan` makes names from the resource's UUID, whole. A manifest has what identifies the object
and its server, and `generation`, which the object carries on the server (`mark`). Every verb but `plan` checks both.

**Quarantine.** A deleted resource with a grace is cut off by `quarantine(manifest, still)`, and can be given back by
`release(manifest, still)` until its destruction starts. Both may be repeated, after any death half-way. Both call
`still()` just before they change the object: it raises where the worker's claim was lost, and then nothing may change.
A worker can be stopped between `still()` and the change, for hours. So each of the two must first make sure that a
worker that is still at the other one does not come to its end: it takes over the lock that both hold, or changes what
both compare. `release` brings back what was there before: it opens nothing that `quarantine` found closed.

**Prove.** A backend may have a method `prove(manifest, credentials) -> dict`. After a `release` it logs in as the
customer, with the stored credentials (None for an adopted object: then it shows that the object is not locked), and
returns what it saw; it raises `Transient` where the login fails. The password is in no error. Without the method, an
`inspect` that answers `Same` is enough.

**Snapshots.** A backend may have three methods, all or none. `snapshot(manifest, write, still) -> dict` writes a
snapshot of a quarantined object, piece by piece, and returns what it holds. `verify_snapshot(manifest, read, source,
still) -> dict` restores it beside its source, compares it with what `snapshot` returned, removes it again, and raises
`Transient` where they differ. `restore_snapshot(manifest, credentials, read, still) -> dict` fills a new object.
`read(size)` gives at most so many bytes, and none at the end. Each calls `still()` every few seconds. A snapshot is a
customer's code: it must never run with the service's rights. Without the methods, a teardown that requires a snapshot
is refused.

**Login attempts.** A backend may have a method `login_attempts(manifest, since) -> LoginAttempts | None`: who tried to
log in to the quarantined object after `since`, as far as the server tells; None where it does not tell. Workers call it
about once a minute, and show the sum on the resource.

**Errors.** A verb raises `Unavailable` when the server cannot be reached (before its start the job loses no attempt),
`OutOfService` when the server answers that it does no work now, since it is read-only or full (the job never loses an
attempt), `Transient` when the work failed and may succeed later (it is tried again), `Refused` when it must not be done
(an operator decides). Any other exception after the start counts as an unknown outcome.

**Caller.** In a verb, `caller()` is the job and the fence of the attempt that calls it; None where a person looks. The
pair rises with each attempt at a resource: a server that keeps the greatest one of an object can refuse a worker that
stood still. `observable` may be a property: a worker asks for it once an attempt.

**Progress.** A verb that takes long calls `tell(done, total, what)` after each batch: it is shown with the attempt.

**Size.** The worker cuts what `inspect` and `teardown` return to 4,000 characters of JSON, an error's words to 1,000. A
manifest is never cut: one of more than 16,000 bytes, or that PostgreSQL cannot store, is `Refused`.

**Check.** A backend may have a method `check() -> list[Finding]`: what is not as it should be on the server, each with
what mends it. Workers call it when they start, and `deprovisioner backends check` for a person. It changes nothing.
What is so with every server of the kind, and no operator can mend, is `inherent`: it is told, and fails no check.

**Objects.** A backend may have a method `objects() -> Iterator[MarkedObject]`: all on its server that bears a mark of
ours, whichever installation made it, the parts of one generation as one object. Whatever stops the reading raises, so
that an end without an error is the end of what there is. Parts that contradict each other are told as such, never as
one whole. `adopt(names, generation)` takes an object that bears the mark of this generation already, so that a resource
whose row was lost comes back. It refuses what is in quarantine: an adoption does not give back what was deleted.
Without the method, what a lost row has left on the server is found by hand, and `deprovisioner reconcile` says that the
backend cannot be reconciled. `unmarked() -> Iterator[UnmarkedObject]` tells what bears no mark, for adoption, and
`measured(names) -> Measured` the size and age of one object; both are optional, and change nothing.

**A fleet.** Further optional methods, each for one command. `adoptable(manifest) -> list[Finding]` says beforehand why
`adopt` would refuse, with the codes `not_there`, `refused` and `right_missing`. `pinned(manifest) -> dict` adds what
tells this object from one that takes its name later, as far as the server shows it: a preview keeps it.
`unmark(manifest) -> dict` takes the mark off an object that goes out of management, and changes nothing else.
`locate(manifest) -> Observation` finds an object by its mark and generation on whatever server this is, for servers
that have moved: its `Same.seen["manifest"]` is the object's manifest there.

**Memory.** A backend may have three methods, all or none: `remember(memory, least) -> Memory | None`,
`recall(installation) -> Memory | None` and `installations() -> list[UUID]`. With them its server keeps a record of the
control database, an installation each: one that was restored from a backup lacks what the record says, and is noticed
before it destroys anything. `offered(there, new, least)` says what is kept. Reading, deciding and writing are one step
for all workers, and a write that is answered with None must survive a restart. No customer may read or change the
record. `Memory.as_json()` and `Memory.read(json)` have it as JSON, 64 kB at most; a record of more than `LONGEST`
characters is not read at all. A record that cannot be read raises `OutOfService`: None says that nothing was ever kept.
An account that may not read or keep it raises `MemoryForbidden`. A fourth method, `server_identity() -> str | None`,
tells what the server is known by: a wrong address is then not taken for a server that lost its memory.
`remember` comes before each destruction, so it must be cheap. Without the methods the backend keeps nothing, and
`backends check` says so (`no_memory`).

**The suite.** `pytest --pyargs deprovisioner.conformance --backend=acme_mainframe.conformance:subject` shows whether a
backend behaves as it must. `deprovisioner/conformance/subject.py` says what the suite must know of the kind, and
`examples/deprovisioner-directory` is a whole package with its Subject.
"""

from outbox.errors import (
    BackendError,
    ClaimLost,
    MemoryForbidden,
    OutOfService,
    Refused,
    SettingsError,
    Transient,
    Unavailable,
)
from outbox.kinds import Check, Field, Kind, text, uuid_text, whole_number
from outbox.memory import LONGEST, Memory, Moment, Note, nothing, offered, parsed
from outbox.rows import Json
from worker.backends import (
    IN_QUARANTINE,
    Absent,
    Backend,
    Different,
    Finding,
    LoginAttempts,
    MarkedObject,
    Observation,
    Plan,
    Read,
    Same,
    Still,
    Write,
    always,
    mark,
    objects,
    prove,
)
from worker.backends.caller import Caller, caller
from worker.backends.fleet import Measured, UnmarkedObject, pinned, tell

__all__ = [
    "IN_QUARANTINE",
    "LONGEST",
    "Absent",
    "Backend",
    "BackendError",
    "Caller",
    "Check",
    "ClaimLost",
    "Different",
    "Field",
    "Finding",
    "Json",
    "Kind",
    "LoginAttempts",
    "MarkedObject",
    "Measured",
    "Memory",
    "MemoryForbidden",
    "Moment",
    "Note",
    "Observation",
    "OutOfService",
    "Plan",
    "Read",
    "Refused",
    "Same",
    "SettingsError",
    "Still",
    "Transient",
    "Unavailable",
    "UnmarkedObject",
    "Write",
    "always",
    "caller",
    "mark",
    "nothing",
    "objects",
    "offered",
    "parsed",
    "pinned",
    "prove",
    "tell",
    "text",
    "uuid_text",
    "whole_number",
]
