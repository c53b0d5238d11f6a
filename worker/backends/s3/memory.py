"""The memory of the control database: for each installation an object of the service's own bucket.

A write names the ETag that was read, or that nothing was there (If-Match, If-None-Match: conditional writes of S3), so
none lowers what another worker has written. No customer's account may enter that bucket.
"""

import json
import uuid

from outbox.errors import MemoryForbidden, OutOfService, Refused, Transient
from outbox.memory import LONGEST, Memory, Moment, nothing, offered, parsed
from outbox.rows import Json
from worker.backends.s3 import identity
from worker.backends.s3.session import Server, Session

OURS = "deprovisioner/memory/"
TRIES = 100  # each is lost to a write of another worker


def remember(server: Server, memory: Memory, least: Moment | None = None) -> Memory | None:
    """See `worker.backends.remember`."""
    session = server.session()
    try:
        must_compare(session)
        for _ in range(TRIES):
            written, etag = _read(session, memory.installation)
            there = None if written is None else _memory(session, memory.installation, written)
            left, kept = offered(there, memory, least)
            answer = None if kept else left or nothing(memory.installation)
            if left is None or left == there:
                return answer
            condition = {"IfMatch": etag} if there is not None else {"IfNoneMatch": "*"}
            if session.write(f"{OURS}{memory.installation}", json.dumps(left.as_json()), **condition):
                return answer
    except Refused as error:
        raise MemoryForbidden(str(error)) from None
    raise Transient("other workers write at this moment what the control database has; trying again")


def recall(server: Server, installation: uuid.UUID) -> Memory | None:
    """See `worker.backends.recall`."""
    session = server.session()
    try:
        written, _ = _read(session, installation)
    except Refused as error:
        raise MemoryForbidden(str(error)) from None
    return None if written is None else _memory(session, installation, written)


def installations(server: Server) -> list[uuid.UUID]:
    """See `worker.backends.installations`."""
    session, found = server.session(), []
    more: Json = {}
    try:
        while True:
            page = session.call("list_objects_v2", session.endpoint.service_bucket, Prefix=OURS, **more)
            found += [_uuid(one["Key"].removeprefix(OURS)) for one in page.get("Contents", [])]
            if not page.get("IsTruncated"):
                return sorted(one for one in found if one)
            more = {"ContinuationToken": page["NextContinuationToken"]}
    except Refused as error:
        raise MemoryForbidden(str(error)) from None


def must_compare(session: Session) -> None:
    """Raises MemoryForbidden for an endpoint that ignores the condition of a write; asked once a process."""
    if not (session.server.compares or compares(session)):
        raise MemoryForbidden("the endpoint ignores If-None-Match, so it keeps no memory of the control database")
    session.server.compares = True


def compares(session: Session) -> bool:
    """Whether the endpoint refuses to write the endpoint's identity where there is one: the same over itself."""
    return not session.write(identity.SERVER, identity.identify(session), IfNoneMatch="*")


def _read(session: Session, installation: uuid.UUID) -> tuple[str | None, str]:
    return session.read(f"{OURS}{installation}", LONGEST)


def _memory(session: Session, installation: uuid.UUID, written: str) -> Memory:
    try:
        return Memory.read(parsed(written))
    except ValueError as error:
        place = f"s3://{session.endpoint.service_bucket}/{OURS}{installation}"
        raise OutOfService(
            f"{place} is no memory: {error}; find out who wrote it, then remove it: aws s3 rm {place}"
        ) from None


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
