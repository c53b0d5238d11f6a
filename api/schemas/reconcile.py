"""What reconciliations found."""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from api.schemas.fields import Cursor, Limit, Word, _In
from outbox.actions import Reconciliation
from outbox.states import Difference


class ReconciliationOut(BaseModel):
    """A backend's last good run, and `found` by code what stands.

    `tried_at` and `error` are of the last run: if `error` is not null, it failed, and the findings are those of the
    good one before. `others`: objects that no row knows, on a server that other installations use too; they are no
    findings.
    """

    backend: str
    compared_at: dt.datetime | None
    ended_at: dt.datetime | None
    objects: int | None
    resources: int | None
    others: int | None
    found: dict[Difference, int]
    tried_at: dt.datetime | None
    actor: str | None
    error: str | None


class LeftBehindOut(BaseModel):
    """The objects that no resource manages (`unknown`, `survives`); `unsized`: how many of them have no known size.

    `abandoned`: how many objects were given up with servers that are gone.
    """

    objects: int
    bytes: int
    unsized: int
    abandoned: int


class ReconciliationsOut(BaseModel):
    """All backends that workers serve, and what is left behind on them."""

    backends: list[ReconciliationOut]
    left_behind: LeftBehindOut

    @classmethod
    def of(cls, runs: Sequence[Reconciliation], behind: dict[str, int]) -> "ReconciliationsOut":
        """From what the database has."""
        return cls(backends=[ReconciliationOut(**vars(run)) for run in runs], left_behind=LeftBehindOut(**behind))


class ObjectFindingOut(BaseModel):
    """A difference between a backend and the resources. It keeps its id as long as it stands."""

    id: int
    backend: str
    code: Difference
    resource_id: uuid.UUID | None
    tenant: str | None
    name: str | None
    parts: list[str]
    why: str
    size_bytes: int | None
    created_at: dt.datetime | None
    last_used_at: dt.datetime | None
    found_at: dt.datetime
    seen_at: dt.datetime
    closed_at: dt.datetime | None
    adopted_as: uuid.UUID | None


class ObjectFindingPage(BaseModel):
    """A page of differences."""

    items: list[ObjectFindingOut]
    next_cursor: str | None


class FindingListing(_In):
    """Which differences: all of them, of a backend, of a code; with `closed` also those that do not stand any more."""

    backend: Word | None = None
    code: Difference | None = None
    closed: Annotated[bool, Field(description="also those that do not stand any more")] = False
    cursor: Cursor = None
    limit: Limit = 50

    def meant(self) -> dict[str, Any]:
        """As the listing takes them."""
        return self.model_dump()
