"""What a decision does with the items of a batch: each calls the door that an operator or a worker would call.

An act returns what it refused, by the item's number, and why. What it did is done in the caller's transaction.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import holds, jobs, kinds, operations, resources, settings, tokens
from outbox.errors import BadRequest, Conflict, DeprovisionerError
from outbox.jobs.enqueue import abandon as abandon_stuck
from outbox.resources import NewResource
from outbox.rows import Json
from outbox.states import Found, HoldScope

Item = Row[Any]


@dataclass(frozen=True)
class Look:
    """What an inspection found just now, and the evidence."""

    found: Found
    seen: Json


@dataclass(frozen=True)
class By:
    """The decision's actor, reason and recovery; the tenant for objects without one; the inspections by item."""

    recovery: int
    actor: str
    reason: str
    tenant: str | None = None
    looks: Mapping[int, Look] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The reason, for events and rows that tell of the recovery by words alone."""
        return f"recovery {self.recovery}: {self.reason}"


Refusals = dict[int, str]
Act = Callable[[Connection, By, Sequence[Item]], Refusals]


def nothing(db: Connection, by: By, items: Sequence[Item]) -> Refusals:  # noqa: ARG001 - as any act
    """Leave the items as they are: what this database says of them stands."""
    return {}


def _each(act: Callable[[Connection, By, Item], object]) -> Act:
    """An act on one item after the other; what a door refuses is undone, and refused."""

    @wraps(act)
    def acts(db: Connection, by: By, items: Sequence[Item]) -> Refusals:
        refused: Refusals = {}
        for item in items:
            try:
                with db.begin_nested():
                    act(db, by, item)
            except DeprovisionerError as error:
                refused[item.n] = str(error)
        return refused

    return acts


@_each
def engage(db: Connection, by: By, item: Item) -> None:
    """Engage a hold again; a brake's too, since only an operator may end what it saw."""
    scope, subject = HoldScope(item.detail["scope"]), item.detail.get("subject")
    if subject is not None and not holds.known(db, scope, subject):
        raise BadRequest(
            f"there is no {scope} {subject!r} here yet: when there is one, set the hold with `deprovisioner hold set`"
        )
    holds.engage(db, scope, subject, actor=by.actor, reason=f"{by.why} (it was hold {item.detail.get('hold')})")


@_each
def revoke(db: Connection, by: By, item: Item) -> None:
    """Revoke a token again."""
    tokens.revoke(db, int(item.detail["token"]), actor=by.actor, reason=by.why)


@_each
def change(db: Connection, by: By, item: Item) -> None:
    """Set a resource's fields as a lost change had set them. An expiry that has passed meanwhile is lifted."""
    changes = {name: value for name, value in item.detail["set"].items() if name in resources.CHANGEABLE}
    if expires := changes.get("expires_at"):
        moment = dt.datetime.fromisoformat(expires)
        if moment <= db.execute(text("SELECT now()")).scalar_one():
            raise BadRequest(f"`expires_at` was set to {expires}, which has passed: decide it as one of `expiries_due`")
        changes["expires_at"] = moment
    resources.change(db, item.resource_id, changes=changes, actor=by.actor)


@_each
def lift(db: Connection, by: By, item: Item) -> None:
    """Clear `expires_at`."""
    resources.change(db, item.resource_id, changes={"expires_at": None}, actor=by.actor)


@_each
def protect(db: Connection, by: By, item: Item) -> None:
    """Protect a resource: it neither expires nor can it be deleted until the protection is lifted."""
    resources.change(db, item.resource_id, changes={"protected": True}, actor=by.actor)


@_each
def stop(db: Connection, by: By, item: Item) -> None:
    """Stop an operation."""
    operations.stop(db, int(item.detail["operation"]), actor=by.actor, reason=by.why)


def set_aside(db: Connection, by: By, items: Sequence[Item]) -> Refusals:
    """Make the jobs stuck, for a person to decide about each."""
    moved = _set_aside(db, by, items)
    return {item.n: f"job {item.job_id} has moved on" for item in items if item.job_id not in moved}


def _set_aside(db: Connection, by: By, items: Sequence[Item]) -> set[int]:
    words = f"set aside by {by.why}"
    listed = [(item.job_id, item.fence) for item in items]
    return jobs.set_aside(db, listed, actor=by.actor, reason=words, detail={"recovery": by.recovery})


def take_back(db: Connection, by: By, items: Sequence[Item]) -> Refusals:
    """Restore the resources of teardowns. What cannot be taken back any more is set aside: it must not go on."""
    asked = [(item.resource_id, uuid.uuid4()) for item in items]
    back = jobs.restore_all(db, asked, actor=by.actor, reason=by.why, detail={"recovery": by.recovery})
    rest = [item for item in items if item.resource_id not in back]
    aside = _set_aside(db, by, rest) if rest else set()
    why = "cannot be taken back: its destruction had started, or its resource was never active"
    return {
        item.n: f"job {item.job_id} {why}; it {'was set aside' if item.job_id in aside else 'stays as it is'}"
        for item in rest
    }


def roll_back(db: Connection, by: By, items: Sequence[Item]) -> Refusals:
    """Delete resources whose object was never made. If the object is or may be there, the job is set aside."""
    doubtful = {item.n for item in items if item.detail["there"] or item.detail["adopted"] or not item.detail["read"]}
    refused = dict.fromkeys(
        doubtful,
        "its object exists or is adopted, or its backend was not read: it is not rolled back, and was set aside",
    )
    _set_aside(db, by, [item for item in items if item.n in doubtful])
    asked = [
        jobs.Delete(item.resource_id, actor=by.actor, reason=by.why, detail={"recovery": by.recovery})
        for item in items
        if item.n not in doubtful
    ]
    won = {done.resource.id for done in jobs.enqueue_all(db, asked).values()}
    lost = [item for item in items if item.n not in doubtful and item.resource_id not in won]
    _set_aside(db, by, lost)
    return refused | {item.n: "its resource is protected, or is not being provisioned any more" for item in lost}


def abandon(db: Connection, by: By, items: Sequence[Item]) -> Refusals:
    """Give up restores: their resources are deleted again. What cannot be given up stays set aside."""
    _set_aside(db, by, items)
    return _abandon(db, by, items)


@_each
def _abandon(db: Connection, by: By, item: Item) -> None:
    if abandon_stuck(db, item.job_id, fence=item.fence, actor=by.actor, reason=by.why) is None:
        raise Conflict(f"resource {item.resource_id} is protected, or is not being restored any more")


@_each
def close(db: Connection, by: By, item: Item) -> None:
    """Close resources as deleted whose object an inspection has just found absent."""
    look = by.looks[item.n]
    if look.found is not Found.ABSENT:
        raise Conflict(f"an inspection found it {look.found}, so its resource stays: {look.seen}")
    detail = {"recovery": by.recovery}
    if jobs.close(db, item.resource_id, actor=by.actor, reason=by.why, seen=look.seen, detail=detail) is None:
        raise Conflict(f"resource {item.resource_id} is not active any more, or a job of it is not done")


@_each
def adopt(db: Connection, by: By, item: Item) -> None:
    """Make a resource of an object that no row knows; where its names tell the resource's id, it has that id."""
    known = item.resource_id is not None and db.execute(_IS_THERE, {"id": item.resource_id}).scalar_one()
    _register(db, by, item, resource_id=None if known else item.resource_id)


@_each
def adopt_deleted(db: Connection, by: By, item: Item) -> None:
    """Make a new resource of an object whose own is deleted."""
    _register(db, by, item, resource_id=None, again=True)


_IS_THERE = text("SELECT EXISTS (SELECT FROM resources WHERE id = :id)")


def _register(db: Connection, by: By, item: Item, *, resource_id: uuid.UUID | None, again: bool = False) -> None:
    """An adoption as any other: a worker verifies the object by its mark, and keeps its generation."""
    told: Json = item.detail
    if told["why"]:
        raise Conflict(f"it cannot be adopted as it stands: {told['why']}")
    if not (tenant := told.get("tenant") or by.tenant):
        raise BadRequest("no note names its tenant: survey again, and confirm it with --tenant")
    kind = told.get("kind") or _kind_of(item.backend)
    new = NewResource(
        tenant=tenant,
        kind=kind,
        backend=item.backend,
        name=told.get("name") or _named(told["names"]),
        manifest=kinds.check(kind, told["names"]),
    )
    resources.register(db, new, actor=by.actor, resource_id=resource_id, again=again)


def _kind_of(backend: str) -> str:
    return settings.backends()[backend].kind


def _named(names: Json) -> str:
    """A name for what has none: its first name on the server."""
    return next(str(value) for value in names.values() if value)
