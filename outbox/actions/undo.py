"""Take a deletion back, let the destruction begin before its time, or let go of what stays as it is."""

import uuid

from outbox import jobs, queries, settings
from outbox.actions.caller import Caller, Edge, Operator, named_operator, request_of
from outbox.actions.jobs import Proposed, proposed
from outbox.approvals import Approval
from outbox.jobs import Released, Restored
from outbox.rows import Job, Resource


def restore(
    edge: Edge,
    who: Caller,
    resource_id: uuid.UUID,
    *,
    reason: str,
    version: int | None = None,
    idempotency_key: str | None = None,
) -> Restored:
    """Give a deleted resource back; one that is active, or being restored, stays as it is.

    Raises NotFound, IdempotencyKeyReused, VersionMismatch, TeardownStarted, NothingToRestore.
    """
    request = request_of(who, "restore", resource_id, idempotency_key)
    done = edge.transact(
        lambda db: jobs.restore(
            db, resource_id, actor=who.actor, tenant=who.tenant, reason=reason, version=version, request_id=request
        )
    )
    if done.won:
        edge.ring()
    return done


def purge(
    edge: Edge,
    who: Operator,
    resource_id: uuid.UUID,
    *,
    reason: str,
    version: int | None = None,
    idempotency_key: str | None = None,
) -> tuple[Resource, Job] | Proposed:
    """Let the destruction begin before `purge_at`; on some backends that takes two operators.

    Raises NotFound, IdempotencyKeyReused, NotDeleting, VersionMismatch, FenceMismatch, Forbidden.
    """
    request = request_of(who, "purge", resource_id, idempotency_key)
    backend = edge.ask(lambda db: queries.resource(db, resource_id)).backend
    two = (settings.backends().get(backend) or settings.strictest()).purge == settings.TWO
    if two:
        named_operator(who)
    done = edge.transact(
        lambda db: jobs.purge(
            db, resource_id, actor=who.actor, reason=reason, version=version, two=two, request_id=request
        )
    )
    if isinstance(done, Approval):
        return proposed(edge, done)
    edge.ring()
    return done


def release_resource(
    edge: Edge,
    who: Operator,
    resource_id: uuid.UUID,
    *,
    reason: str,
    version: int | None = None,
    idempotency_key: str | None = None,
) -> Released:
    """Take a resource out of management: a worker takes the mark off its object, which stays as it is.

    Raises NotFound, IdempotencyKeyReused, VersionMismatch, DeletionProtected, NotActive.
    """
    request = request_of(who, "release", resource_id, idempotency_key)
    done = edge.ask(
        lambda db: jobs.release(db, resource_id, actor=who.actor, reason=reason, version=version, request_id=request)
    )
    if done.won:
        edge.ring()
    return done
