"""Resources: what a caller sends, and how a resource is shown."""

import datetime as dt
import uuid
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.fields import Cursor, Limit, Time, Word, _In
from api.schemas.jobs import JobOut, JobRef
from outbox import kinds
from outbox.rows import Json, Resource
from outbox.states import ResourceStatus


class CreateResource(_In):
    """A resource to provision, or with a `manifest` an object to adopt. An operator must name the `tenant`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"kind": "postgres", "backend": "pg-main", "name": "orders"}]},
    )

    kind: Word
    backend: Word
    name: Word
    tenant: Word | None = None
    manifest: Annotated[Json | None, Field(max_length=20)] = None
    protected: bool = False
    expires_at: Time | None = None


class ChangeResource(_In):
    """What may change until the resource is deleted. A field that is left out stays as it is."""

    protected: bool | None = None
    expires_at: Time | None = None


class ResourceFilter(_In):
    """Which resources to list. An unknown filter is an error: a filter that is ignored lists too much."""

    status: ResourceStatus | None = None
    kind: Word | None = None
    cursor: Cursor = None
    limit: Limit = 50


class ResourceOut(BaseModel):
    """A resource."""

    id: uuid.UUID
    tenant: str
    kind: str
    backend: str
    name: str
    status: ResourceStatus
    protected: bool
    manifest: Json | None
    created_at: dt.datetime
    deleted_at: dt.datetime | None
    purged_at: dt.datetime | None
    expires_at: dt.datetime | None

    @classmethod
    def of(cls, row: Resource) -> "ResourceOut":
        """From its row; what is secret in its manifest is not shown."""
        manifest = None if row.manifest is None else kinds.redacted(row.kind, row.manifest)
        return cls(**vars(row) | {"manifest": manifest})


class Created(BaseModel):
    """The answer to a POST: the resource, and the job that will provision it."""

    resource: ResourceOut
    job: JobOut


class Deleted(BaseModel):
    """The answer to a DELETE. All DELETEs of one resource name the same job."""

    ok: bool = True
    already_deleted: bool
    resource: ResourceOut
    job: JobRef


class ResourcePage(BaseModel):
    """One page of resources."""

    items: list[ResourceOut]
    next_cursor: str | None
