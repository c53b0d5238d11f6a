"""What a person does about findings: adopt an object, or adopt and delete it, through the doors of any resource."""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from outbox import kinds, queries, reconcile, settings
from outbox.actions.caller import Edge, Operator
from outbox.actions.jobs import POLL_SECONDS
from outbox.actions.resources import create, delete, wanted_delete
from outbox.errors import BadRequest, DeprovisionerError, DigestMismatch
from outbox.queries import Page
from outbox.reconcile import ObjectFinding, Reconciliation
from outbox.resources import NewResource
from outbox.rows import Json
from outbox.states import Difference, ResourceStatus

Tell = Callable[[str], object]
ADOPT, DELETE = "adopt", "delete"
# Which findings each takes. What bears no mark is adopted first, and only then may be deleted as a resource.
_TAKES = {
    ADOPT: (Difference.UNKNOWN, Difference.SURVIVES, Difference.UNMARKED),
    DELETE: (Difference.UNKNOWN, Difference.SURVIVES),
}
# Why not, and what else there is to do.
_INSTEAD = {
    Difference.MISSING: "its object is gone, so there is nothing to adopt: end its row with "
    "`deprovisioner resources delete {0.resource_id}`",
    Difference.DIFFERS: "its resource is active: mend the object as docs/runbook.md says, or delete the resource with "
    "`deprovisioner resources delete {0.resource_id}`",
    Difference.UNMARKED: "it bears no mark of ours: adopt it first, and delete the resource that it becomes",
}


@dataclass(frozen=True)
class Chosen:
    """A finding, the resource that would be made of its object, and why it would not be made; empty where it would."""

    finding: ObjectFinding
    tenant: str | None
    name: str
    refused: str


@dataclass(frozen=True)
class Preview:
    """What `adopt` or `delete` would do, and the digest of exactly that."""

    does: str
    items: list[Chosen]
    digest: str


@dataclass(frozen=True)
class Done:
    """What became of a finding. `resource_id`: the resource that was made; `said`: why it went no further."""

    finding: int
    resource_id: uuid.UUID | None
    deleted: bool
    said: str


def reconciled(db: Connection, who: Operator) -> list[Reconciliation]:  # noqa: ARG001 - operators only
    """What the runs of each backend found."""
    return reconcile.results(db)


def object_findings(
    db: Connection,
    who: Operator,  # noqa: ARG001 - operators only
    *,
    backend: str | None = None,
    code: Difference | None = None,
    closed: bool = False,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """A page of findings, the oldest first. Raises BadCursor."""
    return reconcile.findings(db, backend=backend, code=code, closed=closed, cursor=cursor, limit=limit)


def left_behind(db: Connection, who: Operator, *, backend: str | None = None) -> dict[str, int]:  # noqa: ARG001
    """How many objects no resource manages, and their size."""
    return reconcile.ledger(db, backend=backend)


def preview_findings(
    db: Connection, who: Operator, does: str, ids: Sequence[int], *, tenant: str | None, name: str | None
) -> Preview:
    """What `does` would do with these findings. `tenant`: of what no row knows; `name`: of the one finding.

    Raises NotFound, BadRequest.
    """
    return _previewed(db, who, does, ids, tenant, name)[0]


def _previewed(
    db: Connection,
    who: Operator,  # noqa: ARG001 - operators only
    does: str,
    ids: Sequence[int],
    tenant: str | None,
    name: str | None,
) -> tuple[Preview, list[NewResource | None]]:
    if name is not None and len(set(ids)) > 1:
        raise BadRequest("--name is for one finding: leave it out, and each resource has its object's name")
    items: list[Chosen] = []
    made: list[NewResource | None] = []
    for finding, names in reconcile.chosen(db, ids):
        new, refused = _new(finding, names, does, tenant, name)
        made.append(new)
        called = name or finding.name or _named(finding.backend, names)
        items.append(Chosen(finding, finding.tenant or tenant, called, refused))
    content = [[one.finding.id, one.finding.code, one.tenant, one.name, one.refused] for one in items]
    digest = hashlib.sha256(json.dumps([does, content]).encode()).hexdigest()
    return Preview(does, items, f"{len(items)}-{digest}"), made


def _new(
    finding: ObjectFinding, names: Json, does: str, tenant: str | None, name: str | None
) -> tuple[NewResource | None, str]:
    """The resource that the object becomes, or None and why not."""
    if finding.code not in _TAKES[does]:
        return None, _INSTEAD[finding.code].format(finding)
    if finding.why:
        return None, f"it cannot be adopted as it stands: {finding.why}"
    config = settings.backends().get(finding.backend)
    if config is None:
        return None, f"backend {finding.backend!r} is not in the backends file"
    if not (whose := finding.tenant or tenant):
        raise BadRequest(f"no row says whose finding {finding.id} is: name its tenant with --tenant")
    if tenant not in (None, whose):
        return None, f"its resource was of tenant {whose!r}: leave --tenant out"
    try:
        manifest = kinds.check(config.kind, names)
    except BadRequest as error:
        return None, f"its names are not complete: {error}"
    called = name or finding.name or _named(finding.backend, names)
    return NewResource(tenant=whose, kind=config.kind, backend=finding.backend, name=called, manifest=manifest), ""


def _named(backend: str, names: Json) -> str:
    """What the object is called on its server: by the first field that its kind requires and its names have."""
    config = settings.backends().get(backend)
    known = kinds.find(config.kind) if config else None
    wanted = [field.name for field in known.fields if field.required and not field.secret] if known else []
    return next((str(names[field]) for field in (*wanted, *names) if names.get(field)), "unnamed")


def carry_out(
    edge: Edge,
    who: Operator,
    does: str,
    ids: Sequence[int],
    *,
    digest: str,
    reason: str,
    tenant: str | None,
    name: str | None,
    seconds: float,
    tell: Tell,
) -> list[Done]:
    """Adopt the objects of exactly these findings, and with `delete` then delete the resources that they become.

    A worker verifies each object before its resource is active; `delete` waits for that, at most `seconds` for each, so
    that the grace of its backend counts. Raises NotFound, BadRequest, DigestMismatch.
    """
    preview, made = edge.ask(lambda db: _previewed(db, who, does, ids, tenant, name))
    if preview.digest != digest:
        raise DigestMismatch(
            f"this is not the digest of these findings: look again, with `deprovisioner reconcile {does} …` without "
            "--digest"
        )
    done = []
    for chosen, new in zip(preview.items, made, strict=True):
        one = _adopt(edge, who, chosen, new, does, reason)
        if does == DELETE and one.resource_id is not None:
            one = _delete(edge, who, one, reason, seconds, tell)
        done.append(one)
    return done


def _adopt(edge: Edge, who: Operator, chosen: Chosen, new: NewResource | None, does: str, reason: str) -> Done:
    """Register the object, and close its finding with an event, in one transaction."""
    finding = chosen.finding
    if new is None:
        return Done(finding.id, None, deleted=False, said=chosen.refused)

    def act(db: Connection) -> uuid.UUID:
        inside = Edge(lambda ask: ask(db), lambda ask: ask(db), lambda: None)
        resource, _ = create(inside, who, new, again=finding.code is Difference.SURVIVES)
        detail = {"code": finding.code, "backend": finding.backend, "does": does}
        if finding.resource_id is not None:
            detail["deleted"] = str(finding.resource_id)
        reconcile.adopted(db, finding.id, resource.id, actor=who.actor, reason=reason, detail=detail)
        return resource.id

    try:
        made = edge.transact(act)
    except DeprovisionerError as error:
        return Done(finding.id, None, deleted=False, said=str(error))
    edge.ring()
    return Done(finding.id, made, deleted=False, said="")


def _delete(edge: Edge, who: Operator, one: Done, reason: str, seconds: float, tell: Tell) -> Done:
    """Wait until a worker has verified the object, then delete its resource."""
    assert one.resource_id is not None  # noqa: S101 - the caller has seen that
    id = one.resource_id
    tell(f"finding {one.finding} is resource {id}: waiting for a worker to verify the object, at most {seconds:g} s")
    until = time.monotonic() + seconds
    while edge.ask(lambda db: queries.resource(db, id)).status is ResourceStatus.PROVISIONING:
        if time.monotonic() > until:
            return Done(
                one.finding,
                id,
                deleted=False,
                said=f"no worker has adopted it within {seconds:g} s, so it was not deleted: see why in "
                f"`deprovisioner resources show {id}`, then run `deprovisioner resources delete {id}`",
            )
        time.sleep(POLL_SECONDS)
    try:
        delete(edge, wanted_delete(who, id, reason=reason))
    except DeprovisionerError as error:
        return Done(one.finding, id, deleted=False, said=str(error))
    return Done(one.finding, id, deleted=True, said="")
