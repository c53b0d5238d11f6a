"""What the endpoint shows under a manifest's name, and whether it is the manifest's bucket."""

import uuid

from outbox import foreign
from outbox.errors import OutOfService, Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same, mark
from worker.backends.s3.session import DENIED, Server, Session

TAG = "deprovisioner"
SERVER = "deprovisioner/server"  # the object of the service's own bucket that names the endpoint
_BIRTHS = "deprovisioner/births/"
_NO_TAGS = ("NoSuchTagSet", "NoSuchTagSetError")
_ID_CHARACTERS = 100


class AnotherAccountsError(Refused):
    """The name belongs to a bucket of another account."""


def inspect(server: Server, manifest: Json) -> Observation:
    """See the Protocol."""
    return judge(server.session(), manifest)


def locate(server: Server, manifest: Json) -> Observation:
    """See `worker.backends.fleet.locate`."""
    session = server.session()
    here = manifest | {"server": identify(session), "owner": session.endpoint.account}
    match judge(session, here):
        case Same(seen=seen):
            return Same(seen | {"manifest": here})
        case other:
            return other


def judge(session: Session, manifest: Json) -> Observation:
    """Read the bucket's tags and the endpoint's identity, and say: absent, the same, or a different one.

    A 404 may come from a proxy or from another endpoint. So a bucket is absent only where the account's own list lacks
    it too, and the endpoint showed its identity after that.
    """
    bucket = manifest["bucket"]
    try:
        found = tags(session, bucket)
    except AnotherAccountsError as error:
        return Different({"bucket": bucket}, str(error))
    listed = found is None and is_listed(session, bucket)
    server = server_id(session)
    shown = None if found is None else foreign.line(found.get(TAG, ""), 100)
    seen: Json = {"bucket": bucket, "server": server, "mark": shown}
    ours = found is not None and found.get(TAG) == mark(manifest["generation"])
    if server is None or server != manifest["server"]:
        return Different(seen, f"this is endpoint {server}, and the bucket is one of {manifest['server']}", marked=ours)
    if manifest["owner"] != session.endpoint.account:
        return Different(seen, f"the bucket is one of account {manifest['owner']}, not of the dsn's", marked=ours)
    if listed:
        raise Transient(f"the endpoint lists bucket {bucket!r}, and says that there is none; trying again")
    if found is None:
        return Absent(seen | {"listed": False})
    if ours:
        return Same(seen)
    if not found and born(session, bucket) == manifest["generation"]:
        return Same(seen | {"unfinished": True})
    return Different(seen, f"bucket {bucket!r} does not bear this resource's mark: its tag `{TAG}` is {shown!r}")


def tags(session: Session, bucket: str) -> dict[str, str] | None:
    """The bucket's tags; None where there is no such bucket. Raises AnotherAccountsError."""
    found = session.call("get_bucket_tagging", bucket, expects=(*_NO_TAGS, "NoSuchBucket", *DENIED))
    if found.get("Code") in DENIED:
        if not is_listed(session, bucket):
            raise AnotherAccountsError(f"bucket {bucket!r} belongs to another account: the dsn's own has none")
        found = session.call("get_bucket_tagging", bucket)
    if found.get("Code") == "NoSuchBucket":
        return None
    return {one["Key"]: one["Value"] for one in found.get("TagSet", [])}


def write_tags(session: Session, bucket: str, new: dict[str, str]) -> None:
    """Replace all tags of a bucket; S3 has no way to change one."""
    if not new:
        session.call("delete_bucket_tagging", bucket)
        return
    pairs = [{"Key": key, "Value": value} for key, value in new.items()]
    session.call("put_bucket_tagging", bucket, Tagging={"TagSet": pairs})


def is_listed(session: Session, bucket: str) -> bool:
    """Whether the account's own list of buckets has it."""
    return any(one["Name"] == bucket for one in session.buckets(bucket))


def server_id(session: Session) -> str | None:
    """The endpoint's identity; None where it has none yet.

    Raises OutOfService without the service's own bucket, and where something else answers in its place.
    """
    if (found := session.read(SERVER, _ID_CHARACTERS)[0]) is None:
        return None
    try:
        return str(uuid.UUID(found))
    except ValueError:
        what = f"object {SERVER!r} of bucket {session.endpoint.service_bucket!r} is no identity that was put there"
        raise OutOfService(f"{what}: {foreign.line(repr(found), _ID_CHARACTERS)}") from None


def identify(session: Session) -> str:
    """The endpoint's identity, made where there is none; of two workers that make one, the first counts."""
    if (found := server_id(session)) is None:
        session.write(SERVER, str(uuid.uuid4()), IfNoneMatch="*")
        found = server_id(session)
    if found is None:
        raise Transient("the endpoint's identity was removed while it was made; trying again")
    return found


def must_be_right_server(session: Session, manifest: Json) -> None:
    """Raises Refused on another endpoint, or for another account, than the manifest's."""
    if (server := server_id(session)) is None or server != manifest["server"]:
        raise Refused(f"this is endpoint {server}, and the bucket is one of {manifest['server']}")
    if manifest["owner"] != session.endpoint.account:
        raise Refused(f"the bucket is one of account {manifest['owner']}, not of the dsn's")


def must_not_be_protected(server: Server, manifest: Json) -> None:
    """Raises Refused for a bucket that is never adopted or torn down."""
    if manifest["bucket"] in server.protected:
        raise Refused(f"bucket {manifest['bucket']!r} is protected: it is never adopted or torn down")


def born(session: Session, bucket: str) -> str | None:
    """The generation of a provision that was begun: S3 makes a bucket and its tag in two steps."""
    return session.read(f"{_BIRTHS}{bucket}", _ID_CHARACTERS)[0]


def begin_birth(session: Session, manifest: Json) -> None:
    """Record that this bucket is about to be made. Raises Refused where another resource's provision has begun."""
    key = f"{_BIRTHS}{manifest['bucket']}"
    first = session.write(key, manifest["generation"], IfNoneMatch="*")
    if not first and born(session, manifest["bucket"]) != manifest["generation"]:
        raise Refused(f"bucket {manifest['bucket']!r} is being made for another resource")


def end_birth(session: Session, manifest: Json) -> None:
    """The bucket bears its mark, so the record says nothing more."""
    session.remove(f"{_BIRTHS}{manifest['bucket']}")


def finish_birth(session: Session, manifest: Json) -> None:
    """Mark a bucket that a provision has made, and end the record."""
    found = tags(session, manifest["bucket"]) or {}
    if TAG not in found:
        write_tags(session, manifest["bucket"], found | {TAG: mark(manifest["generation"])})
    end_birth(session, manifest)
