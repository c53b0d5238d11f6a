"""Plan, provision and adopt a bucket; and let go of one."""

import uuid

from outbox.errors import Refused, Transient
from outbox.kinds.s3 import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Absent, Different, Finding, Plan, Same, mark
from worker.backends.s3 import identity, policy, rights, turns
from worker.backends.s3.session import Server, Session

# Stores that have no such thing answer so.
_UNKNOWN_THERE = ("NotImplemented", "MethodNotAllowed", "MalformedXML", "InvalidRequest", "501", "405")
_EXISTS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
_NOT_PUBLIC = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)


def plan(server: Server, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
    """A name from the resource's UUID, whole; see the Protocol."""
    session = server.session()
    manifest = KIND.manifest(
        bucket=f"bkt-{resource_id}",
        owner=session.endpoint.account,
        generation=str(generation),
        server=identity.identify(session),
    )
    return Plan(manifest, session.endpoint.credentials(manifest["bucket"]))


def provision(server: Server, manifest: Json) -> Json:
    """Bucket, no public access, mark: S3 makes them in three steps; see the Protocol."""
    session, bucket = server.session(), manifest["bucket"]
    identity.must_be_right_server(session, manifest)
    if isinstance(identity.judge(session, manifest), Absent):
        identity.begin_birth(session, manifest)
        region = session.endpoint.region  # of us-east-1, S3 takes no name
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        session.call("create_bucket", bucket, expects=_EXISTS, **where)
    match identity.judge(session, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            raise Transient(f"bucket {bucket!r} was made, and does not show yet; trying again")
        case Same():
            pass
    session.call("put_public_access_block", bucket, PublicAccessBlockConfiguration=_NOT_PUBLIC, expects=_UNKNOWN_THERE)
    identity.finish_birth(session, manifest)
    return manifest


def adopt(server: Server, manifest: Json, generation: uuid.UUID) -> Json:
    """Add our mark to the bucket's tags; see the Protocol."""
    session = server.session()
    full = _full(session, manifest, str(generation))
    identity.must_be_right_server(session, full)
    if found := _refusals(session, full):
        raise Refused("; ".join(one.what for one in found))
    before = identity.tags(session, full["bucket"]) or {}
    ours = {identity.TAG: mark(full["generation"])}
    if before.items() >= ours.items():
        return full
    identity.write_tags(session, full["bucket"], before | ours)
    if not isinstance(identity.judge(session, full), Same):
        raise Transient(f"bucket {full['bucket']!r} got other tags while it was adopted; trying again")
    return full


def adoptable(server: Server, manifest: Json) -> list[Finding]:
    """See `worker.backends.fleet.adoptable`."""
    session = server.session()
    full = _full(session, manifest, manifest.get("generation") or "")
    if found := _refusals(session, full):
        return found
    return list(rights.missing(session, full["bucket"]))


def pinned(server: Server, manifest: Json) -> Json:
    """See `worker.backends.fleet.pinned`; a bucket has no number, so it is the endpoint and the account."""
    full = _full(server.session(), manifest, "")
    return manifest | {"owner": full["owner"], "server": full["server"]}


def unmark(server: Server, manifest: Json) -> Json:
    """Take our tag away, and leave every other; see `worker.backends.fleet.unmark`."""
    session, bucket = server.session(), manifest["bucket"]
    identity.must_be_right_server(session, manifest)
    found = identity.tags(session, bucket)
    if found is None or found.get(identity.TAG, mark(manifest["generation"])) != mark(manifest["generation"]):
        raise Refused(f"bucket {bucket!r} is not the one of this resource, or no longer there")
    if policy.has(policy.read(session, bucket), policy.QUARANTINE):
        raise Refused(f"bucket {bucket!r} is in quarantine: release it first")
    if identity.TAG in found:
        identity.write_tags(session, bucket, {key: value for key, value in found.items() if key != identity.TAG})
    turns.end(session, manifest)
    identity.end_birth(session, manifest)
    return {"bucket": bucket, "unmarked": identity.TAG in found}


def _full(session: Session, manifest: Json, generation: str) -> Json:
    return {
        "bucket": manifest["bucket"],
        "owner": manifest.get("owner") or session.endpoint.account,
        "generation": generation,
        "server": manifest.get("server") or identity.identify(session),
    }


def _refusals(session: Session, manifest: Json) -> list[Finding]:
    """Why this bucket cannot be adopted, whatever the account's rights."""
    bucket = manifest["bucket"]

    def finding(code: str, what: str, mend: str = "") -> list[Finding]:
        return [Finding(code, what, mend)]

    if bucket in session.server.protected:
        return finding("refused", f"bucket {bucket!r} is protected: it is never adopted or torn down")
    found = identity.tags(session, bucket)
    if found is None:
        return finding("not_there", f"there is no bucket {bucket!r} to adopt")
    if identity.TAG in found and found[identity.TAG] != mark(manifest["generation"]):
        return finding("refused", f"bucket {bucket!r} belongs to another resource already: {found[identity.TAG]!r}")
    now = policy.read(session, bucket)
    if policy.has(now, policy.TEARDOWN):
        return finding("refused", f"bucket {bucket!r} cannot be adopted: its destruction has begun")
    if policy.has(now, policy.QUARANTINE):
        return finding("refused", f"bucket {bucket!r} cannot be adopted: {IN_QUARANTINE}")
    return []
