"""What the account's buckets are told as: ours, copies of ours, and others."""

import uuid
from typing import Any

import pytest

from outbox.errors import OutOfService
from outbox.rows import Json
from tests.support.s3_server import REGION, SERVICE_BUCKET, S3Server
from tests.support.subjects import s3
from worker.backends import MarkedObject
from worker.backends.fleet import unmarked
from worker.backends.s3 import S3, policy


def _told(backend: S3, generation: str) -> MarkedObject:
    (one,) = [one for one in backend.objects() if one.generation == generation]
    return one


def test_a_mark_that_two_buckets_bear_is_told_once_and_as_a_contradiction(
    backend: S3, made: Json, subject: s3.Subject
) -> None:
    given, _ = subject.made_by_hand()
    subject.tag(given["bucket"], deprovisioner=f"deprovisioner gen={made['generation']}")
    one = _told(backend, made["generation"])
    assert one.contradictory
    assert one.names["bucket"] is None
    assert set(one.parts) == {f"bucket {made['bucket']!r}", f"bucket {given['bucket']!r}"}


def test_a_tag_that_is_no_mark_of_ours_is_a_contradiction(backend: S3, subject: s3.Subject) -> None:
    for tag in ("deprovisioner gen=42", "yes"):
        given, _ = subject.made_by_hand()
        subject.tag(given["bucket"], deprovisioner=tag)
        (one,) = [one for one in backend.objects() if one.names["bucket"] == given["bucket"]]
        assert one.contradictory
        assert "not a mark as we write it" in one.why


def test_a_bucket_whose_destruction_has_begun_is_told_so(backend: S3, made: Json) -> None:
    session = backend._server.session()
    policy.write(session, made["bucket"], policy.for_teardown(session, made["bucket"]))
    one = _told(backend, made["generation"])
    assert (one.quarantined, one.contradictory, one.why) == (False, False, "its destruction has begun")


def test_what_bears_no_mark_is_told_but_for_the_service_s_own(backend: S3, made: Json, subject: s3.Subject) -> None:
    given, _ = subject.made_by_hand()
    found = {one.names["bucket"]: one for one in unmarked(backend)}
    assert given["bucket"] in found
    assert found[given["bucket"]].created_at is not None
    assert not {made["bucket"], SERVICE_BUCKET} & found.keys()
    assert backend.adopt(found[given["bucket"]].names, uuid.uuid4())["bucket"] == given["bucket"]


def test_an_empty_list_counts_only_where_the_endpoint_has_an_identity(s3_server: S3Server, root: Any) -> None:
    s3_server.make_user(name := f"all-{uuid.uuid4()}", {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]})
    bucket = f"new-{uuid.uuid4()}"
    root.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    fresh = S3(s3_server.dsn(name, bucket=bucket))
    for read in (fresh.objects, fresh.unmarked):
        with pytest.raises(OutOfService, match="no identity yet"):
            list(read())
    root.delete_bucket(Bucket=bucket)
