"""All buckets of the account, with a mark of ours and without."""

import re
import uuid
from collections.abc import Iterator

from outbox.errors import OutOfService
from outbox.kinds.s3 import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, MarkedObject, mark
from worker.backends.fleet import UnmarkedObject
from worker.backends.s3 import identity, policy
from worker.backends.s3.session import Server, Session

_OF_A_RESOURCE = re.compile(r"bkt-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


def objects(server: Server) -> Iterator[MarkedObject]:
    """A request for each bucket; memory grows with the marked ones, by their names. See `worker.backends.objects`."""
    session = server.session()
    by_mark: dict[str, list[str]] = {}
    for bucket, found, _ in _all(session):
        if identity.TAG in found:
            by_mark.setdefault(found[identity.TAG], []).append(bucket)
    server_id = _must_have_identity(session)
    for text, buckets in by_mark.items():
        yield _object(session, server_id, text, buckets)


def unmarked(server: Server) -> Iterator[UnmarkedObject]:
    """See `worker.backends.fleet.unmarked`; S3 tells no bucket's size but by a listing of all its objects."""
    session = server.session()
    for bucket, found, listed in _all(session):
        if identity.TAG not in found and bucket != session.endpoint.service_bucket:
            names = KIND.manifest(bucket=bucket, owner=session.endpoint.account)
            yield UnmarkedObject(names, created_at=listed.get("CreationDate"))
    _must_have_identity(session)


def _all(session: Session) -> Iterator[tuple[str, dict[str, str], Json]]:
    """Name, tags and entry in the list of every bucket; one that went meanwhile is left out."""
    _must_have_identity(session)
    for listed in session.buckets():
        found = identity.tags(session, listed["Name"])
        if found is not None:
            yield listed["Name"], found, listed


def _must_have_identity(session: Session) -> str:
    """An empty list counts only from an endpoint that shows who it is."""
    if (found := identity.server_id(session)) is None:
        raise OutOfService("the endpoint has no identity yet: nothing was provisioned or adopted there")
    return found


def _object(session: Session, server_id: str, text: str, buckets: list[str]) -> MarkedObject:
    generation = text.removeprefix(mark(""))
    against = []
    if not _is_ours(generation, text):
        against.append(f"the tag `{identity.TAG}` is {text!r}, which is not a mark as we write it")
    if len(buckets) > 1:
        against.append(f"several buckets bear this mark ({', '.join(map(repr, buckets[:3]))}): the tag was copied")
    quarantined, why = False, "; ".join(against)
    for bucket in buckets:
        now = policy.read(session, bucket)
        quarantined |= policy.has(now, policy.QUARANTINE)
        if not why and policy.has(now, policy.TEARDOWN):
            why = "its destruction has begun"
    sole = buckets[0] if len(buckets) == 1 else None
    values: Json = {
        "bucket": sole,
        "owner": session.endpoint.account,
        "generation": generation,
        "server": server_id,
    }
    made = _OF_A_RESOURCE.fullmatch(sole or "")
    return MarkedObject(
        generation=generation,
        names={field.name: values[field.name] for field in KIND.fields},
        parts=tuple(f"bucket {bucket!r}" for bucket in buckets),
        resource_id=uuid.UUID(made[1]) if made else None,
        quarantined=quarantined,
        contradictory=bool(against),
        why=why or (IN_QUARANTINE if quarantined else ""),
    )


def _is_ours(generation: str, text: str) -> bool:
    try:
        return mark(str(uuid.UUID(generation))) == text
    except ValueError:
        return False
