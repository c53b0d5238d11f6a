"""Resources: what a caller sends, and how a resource is shown."""

import datetime as dt
import hashlib
import uuid
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.fields import Cursor, Label, Labels, Limit, Span, Time, Word, _In
from api.schemas.jobs import JobOut, JobRef
from outbox import actions, kinds, labels, settings
from outbox.logins import LoginAttempts
from outbox.queries import ResourceFilter as ListedFilter
from outbox.rows import Job, Json, Resource
from outbox.states import ResourceStatus, SnapshotPolicy


class CreateResource(_In):
    """A resource to provision, or with a `manifest` an object to adopt. An operator must name the `tenant`.

    `grace` and `snapshot`: how it will be deleted, instead of as its backend has it.
    """

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
    grace: Span = None
    snapshot: SnapshotPolicy | None = None
    external_id: Word | None = None
    labels: Labels = Field(default_factory=dict)

    def digest(self) -> str:
        """What another request with the same Idempotency-Key must have, too."""
        # Left out where they say nothing: else older keys would differ.
        newer = {name for name in ("grace", "snapshot", "external_id", "labels") if not getattr(self, name)}
        newer -= {"grace"} if self.grace == 0 else set()
        return hashlib.sha256(self.model_dump_json(exclude=newer).encode()).hexdigest()


class ChangeResource(_In):
    """What may change until the resource is deleted. A field that is left out stays as it is.

    `null` for `grace` and `snapshot`: as its backend has it.
    """

    protected: bool | None = None
    expires_at: Time | None = None
    grace: Span = None
    snapshot: SnapshotPolicy | None = None

    def changes(self) -> Json:
        """The fields that it has, as the outbox names them."""
        return {"grace_seconds" if name == "grace" else name: getattr(self, name) for name in self.model_fields_set}


class DeleteResource(_In):
    """How to delete: `grace` and `snapshot` instead of the resource's own. `on_behalf_of`: for whom you ask."""

    grace: Span = None
    snapshot: SnapshotPolicy | None = None
    reason: Word | None = None
    on_behalf_of: Word | None = None


class ResourceFilter(_In):
    """Which resources to list. An unknown filter is an error: a filter that is ignored lists too much."""

    status: ResourceStatus | None = None
    kind: Word | None = None
    tenant: Word | None = None
    backend: Word | None = None
    name: Word | None = None
    label: Annotated[list[Label], Field(max_length=labels.MOST)] = Field(default_factory=list)
    external_id: Word | None = None
    adopted: bool | None = None
    protected: bool | None = None
    cursor: Cursor = None
    limit: Limit = 50

    def meant(self) -> ListedFilter:
        """As a query takes it."""
        asked = self.model_dump(exclude={"label", "cursor", "limit"})
        return ListedFilter(**asked, labels=tuple(labels.pair(one) for one in self.label))


class LoginAttemptsOut(BaseModel):
    """Who tried to log in since the resource was deleted; `looked_at` is when its server was asked last."""

    model_config = ConfigDict(from_attributes=True)

    count: int
    last_at: dt.datetime | None
    addresses: list[str]
    looked_at: dt.datetime


class ResourceOut(BaseModel):
    """A resource. Until `purge_at` a deleted one is not destroyed, and can be restored.

    `grace` and `snapshot` are null where its backend's count. `version` rises with each change; the ETag says it, too.
    `login_attempts` is there where one resource is shown, once a worker has asked its server for them.
    """

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
    purge_at: dt.datetime | None
    grace: str | None
    snapshot: SnapshotPolicy | None
    version: int
    external_id: str | None
    labels: dict[str, str]
    adopted: bool
    login_attempts: LoginAttemptsOut | None

    @classmethod
    def of(cls, row: Resource, attempts: LoginAttempts | None = None) -> "ResourceOut":
        """From its row; what is secret in its manifest is not shown."""
        manifest = None if row.manifest is None else kinds.redacted(row.kind, row.manifest)
        grace = None if row.grace_seconds is None else settings.spell(row.grace_seconds)
        return cls(**vars(row) | {"manifest": manifest, "grace": grace, "login_attempts": attempts})


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


class Restored(BaseModel):
    """The answer to a restore. `job` gives the resource back; null where it is active and was never restored."""

    resource: ResourceOut
    job: JobOut | None

    @classmethod
    def of(cls, done: actions.Restored) -> "Restored":
        """From the action's answer."""
        return cls(resource=ResourceOut.of(done.resource), job=None if done.job is None else JobOut.of(done.job))


class Released(BaseModel):
    """The answer to a release. `job` takes the mark off the object, which stays as it is."""

    resource: ResourceOut
    job: JobOut

    @classmethod
    def of(cls, done: actions.Released) -> "Released":
        """From the action's answer."""
        return cls(resource=ResourceOut.of(done.resource), job=JobOut.of(done.job))


class Purged(BaseModel):
    """The answer to a purge: `purge_at` has come, and the teardown goes on."""

    resource: ResourceOut
    job: JobOut

    @classmethod
    def of(cls, resource: Resource, job: Job) -> "Purged":
        """From their rows."""
        return cls(resource=ResourceOut.of(resource), job=JobOut.of(job))


class ResourcePage(BaseModel):
    """One page of resources."""

    items: list[ResourceOut]
    next_cursor: str | None
