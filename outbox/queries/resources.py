"""Listings of resources."""

import datetime as dt
import uuid
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy import Connection

from outbox import resources, tables
from outbox.queries.pages import Page, decode_cursor, page_of, select_columns
from outbox.rows import Resource, read
from outbox.states import FINAL, JobKind, ResourceStatus, Step


def resource(db: Connection, resource_id: uuid.UUID, *, tenant: str | None = None) -> Resource:
    """One resource; `tenant` None means an operator asks. Raises NotFound."""
    return resources.find(db, resource_id, tenant=tenant)[0]


@dataclass(frozen=True)
class ResourceFilter:
    """Selects resources; a field that is None does not filter. Of `labels`, each pair must be the resource's."""

    status: ResourceStatus | None = None
    kind: str | None = None
    tenant: str | None = None
    backend: str | None = None
    name: str | None = None
    external_id: str | None = None
    adopted: bool | None = None
    protected: bool | None = None
    labels: tuple[tuple[str, str], ...] = ()

    def clauses(self) -> list["sa.ColumnElement[bool]"]:
        """The conditions on `tables.resources`; each index of the filters is one of these conditions."""
        column = tables.resources.c
        equal = ("status", "kind", "tenant", "backend", "name", "external_id")
        asked = [column[name] == value for name in equal if (value := getattr(self, name)) is not None]
        for flag, wanted in ((column.adopted, self.adopted), (column.protected, self.protected)):
            if wanted is not None:
                asked.append(flag if wanted else sa.not_(flag))
        if self.labels:
            # The second is implied; it lets the planner use the index, which has no resource without labels.
            asked += [column.labels.contains(dict([pair])) for pair in self.labels] + [column.labels != sa.text("'{}'")]
        return asked


EVERY_RESOURCE = ResourceFilter()


def list_resources(
    db: Connection, wanted: ResourceFilter = EVERY_RESOURCE, *, cursor: str | None = None, limit: int = 50
) -> Page:
    """Resources, newest first. Raises BadCursor."""
    table = tables.resources
    query = select_columns(Resource, table, "resource").where(*wanted.clauses())
    query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        at, last = decode_cursor(cursor, lambda at, last: (_utc(at), uuid.UUID(last)))
        query = query.where(sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(sa.literal(at), sa.literal(last)))
    rows = [read(Resource, "resource", row) for row in db.execute(query)]
    return page_of(rows, limit, lambda r: [r.created_at.isoformat(), str(r.id)])


@dataclass(frozen=True)
class ListedResource(Resource):
    """A resource and the step of its teardown, None while there is none that goes on."""

    step: Step | None


def with_steps(db: Connection, page: Page) -> Page:
    """The same page of resources, each with the step of its teardown."""
    job, ids = tables.outbox.c, {each.id for each in page.items}
    asked = sa.select(job.resource_id, job.step).where(
        job.resource_id.in_(ids), job.kind == JobKind.DEPROVISION, job.state.not_in(FINAL)
    )
    steps = {row.resource_id: row.step and Step(row.step) for row in db.execute(asked)}
    return replace(page, items=[ListedResource(**vars(each), step=steps.get(each.id)) for each in page.items])


def _utc(at: str) -> dt.datetime:
    """In UTC, since PostgreSQL knows fewer offsets than Python. Raises ValueError, OverflowError."""
    read = dt.datetime.fromisoformat(at)
    if read.tzinfo is None:
        raise ValueError("a cursor's time has an offset")
    return read.astimezone(dt.UTC)
