"""Tear a bucket down with all that is in it, which cannot be undone."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

from outbox.errors import BackendError, Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same
from worker.backends.fleet import tell
from worker.backends.s3 import identity, locks, policy, turns
from worker.backends.s3.session import DENIED, MEANS, Server, Session, granted

BATCH = 1000  # keys that one DeleteObjects takes, and versions that one page of a listing has
PASSES = 20  # each ends with an empty listing; what is there again was written meanwhile
ENDS = 20  # how often in one pass the last page is deleted, and there is another one
GONE_SECONDS = 10.0
_POLL_SECONDS = 0.5
_NO_BUCKET = "NoSuchBucket"
_NO_VERSION = ("NoSuchVersion", "NoSuchKey")
# Characters that a key may have, and XML not: DeleteObjects cannot name such a key.
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass
class _Done:
    """What this attempt has destroyed, and of the versions that it could not the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    left: list[Json] = field(default_factory=list)  # at most a batch of {Key, VersionId, Code}
    left_count: int = 0

    def tell(self) -> None:
        tell(self.counts.total(), None, "object versions and uploads")


def teardown(server: Server, manifest: Json) -> Json:
    """Writers first, then uploads and versions until none is left, then the bucket; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    session, bucket, done = server.session(), manifest["bucket"], _Done()
    if (seen := _ours(session, manifest)) is None:
        return {}
    if seen.get("unfinished"):
        identity.finish_birth(session, manifest)
    policy.write(session, bucket, policy.for_teardown(session, bucket))
    for _ in range(PASSES):
        for emptied in (_abort_uploads, _delete_versions):
            if not emptied(session, manifest, done):
                return dict(done.counts)  # another worker has finished this teardown
        if done.left:
            raise _why_left(session, bucket, done)
        turns.end(session, manifest)
        if not _is_ours(session, manifest):
            return dict(done.counts)
        answer = session.call("delete_bucket", bucket, expects=("BucketNotEmpty", _NO_BUCKET))
        if answer.get("Code") != "BucketNotEmpty":
            _must_be_gone(session, manifest)
            return dict(done.counts) | {"bucket": bucket}
    raise Transient(f"objects keep appearing in bucket {bucket!r}: another client writes them")


def _ours(session: Session, manifest: Json) -> Json | None:
    """What is seen of the manifest's own bucket; None where nothing of the resource is there.

    Raises Refused for a bucket that merely bears its name.
    """
    match identity.judge(session, manifest):
        case Absent():
            return None
        case Different(why=why):
            raise Refused(why)
        case Same(seen=seen):
            return seen


def _is_ours(session: Session, manifest: Json) -> bool:
    return _ours(session, manifest) is not None


def _abort_uploads(session: Session, manifest: Json, done: _Done) -> bool:
    """Abort every multipart upload; False where the bucket is gone."""
    bucket = manifest["bucket"]
    for _ in range(PASSES * BATCH):
        page = session.call(
            "list_multipart_uploads", bucket, MaxUploads=BATCH, EncodingType="url", expects=(_NO_BUCKET,)
        )
        if "Code" in page:
            return _is_ours(session, manifest)
        if not (uploads := page.get("Uploads", [])):
            return True
        if not _is_ours(session, manifest):
            return False
        for upload in uploads:
            key = unquote_plus(upload["Key"]) if page.get("EncodingType") == "url" else upload["Key"]
            which = {"Key": key, "UploadId": upload["UploadId"]}
            answer = session.call("abort_multipart_upload", bucket, expects=("NoSuchUpload",), **which)
            done.counts["uploads_aborted"] += "Code" not in answer
        done.tell()
    raise Transient(f"uploads keep appearing in bucket {bucket!r}: another client makes them")


def _delete_versions(session: Session, manifest: Json, done: _Done) -> bool:
    """Delete every version and delete marker, a page at a time; False where the bucket is gone.

    A page whose versions are all deleted is not passed by: the listing begins again where it began. What cannot be
    deleted is passed by, and kept in `done.left`.
    """
    bucket, ends = manifest["bucket"], 0
    after: dict[str, str] = {}
    done.left, done.left_count = [], 0
    while ends <= ENDS:
        page = session.call("list_object_versions", bucket, MaxKeys=BATCH, expects=(_NO_BUCKET,), **after)
        if "Code" in page:
            return _is_ours(session, manifest)
        if not (found := _versions(page)):
            return True
        # Before each batch: a person may have removed the bucket meanwhile, and made another one of its name.
        if not _is_ours(session, manifest):
            return False
        survivors = _delete(session, bucket, found, done)
        done.left_count += len(survivors)
        done.left = [*done.left, *survivors][:BATCH]
        done.tell()
        if not page.get("IsTruncated"):
            if survivors:
                return True
            ends += 1
        elif survivors:
            after = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
    raise Transient(f"objects keep appearing in bucket {bucket!r}: another client writes them")


def _versions(page: Json) -> list[Json]:
    """The versions and delete markers of a page."""
    return [
        {"Key": one["Key"], "VersionId": one.get("VersionId") or "null", "marker": marker}
        for kind, marker in (("Versions", False), ("DeleteMarkers", True))
        for one in page.get(kind, [])
    ]


def _delete(session: Session, bucket: str, found: list[Json], done: _Done) -> list[Json]:
    """Delete these, and return those that were not, each with its `Code`."""
    bypass = {"BypassGovernanceRetention": True} if session.endpoint.bypass_governance else {}
    survivors = []
    for one, code in _answers(session, bucket, found, bypass):
        if code is None:
            done.counts["delete_markers" if one["marker"] else "versions"] += 1
        elif code not in _NO_VERSION:
            survivors.append(one | {"Code": code})
    return survivors


def _answers(session: Session, bucket: str, found: list[Json], bypass: Json) -> Iterator[tuple[Json, str | None]]:
    """Each with the code of its error, None where it was deleted: the answer as a whole is 200 all the same."""
    together = [one for one in found if not _NO_XML.search(one["Key"])]
    if together:
        which = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in together]
        answer = session.call("delete_objects", bucket, Delete={"Objects": which, "Quiet": True}, **bypass)
        errors = {(one["Key"], one.get("VersionId")): str(one.get("Code")) for one in answer.get("Errors", [])}
        for one in together:  # a store may leave the version out of an error
            yield one, errors.get((one["Key"], one["VersionId"]), errors.get((one["Key"], None)))
    for one in found:
        if _NO_XML.search(one["Key"]):
            which_one = {"Key": one["Key"], "VersionId": one["VersionId"]}
            expects = (*_NO_VERSION, *DENIED)
            yield one, session.call("delete_object", bucket, expects=expects, **which_one, **bypass).get("Code")


def _why_left(session: Session, bucket: str, done: _Done) -> BackendError:
    """What keeps the versions that could not be deleted."""
    others = sorted({one["Code"] for one in done.left} - DENIED)
    if others:
        error = MEANS.get(others[0], Transient)
        return error(f"{done.left_count} versions of bucket {bucket!r} could not be deleted: {', '.join(others)}")
    if (locked := locks.words(session, bucket, done.left, done.left_count)) is not None:
        return Refused(locked)
    return Refused(
        f"the endpoint forbids to delete {done.left_count} versions of bucket {bucket!r}, and shows no lock on them: "
        f"{granted('DeleteObjects', bucket)}; where the bucket has MFA Delete, switch that off"
    )


def _must_be_gone(session: Session, manifest: Json) -> None:
    """Wait until the endpoint shows it nowhere: a list may lag behind."""
    until = time.monotonic() + GONE_SECONDS
    while True:
        try:
            if not _is_ours(session, manifest):
                return
            still = f"bucket {manifest['bucket']!r} was deleted, and still shows"
        except Transient as error:
            still = str(error)
        if time.monotonic() > until:
            raise Transient(still)
        time.sleep(_POLL_SECONDS)
