"""A bucket is made closed, adopted with all that it has, and let go as it was."""

import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from outbox.errors import Refused
from outbox.kinds.s3 import KIND
from outbox.rows import Json
from tests.support import s3_server as servers
from tests.support.s3_server import SERVICE_BUCKET, S3Server
from tests.support.subjects import s3
from worker.backends import Same
from worker.backends.fleet import adoptable, unmark
from worker.backends.s3 import S3


def _tags(root: Any, bucket: str) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in root.get_bucket_tagging(Bucket=bucket)["TagSet"]}


def test_a_bucket_is_made_with_the_resource_s_whole_uuid_its_mark_and_no_public_access(
    backend: S3, root: Any, subject: s3.Subject
) -> None:
    resource_id, generation = uuid.uuid4(), uuid.uuid4()
    plan = backend.plan(resource_id, generation)
    backend.provision(plan.manifest, plan.credentials)
    bucket = plan.credentials["bucket"]
    assert bucket == f"bkt-{resource_id}"
    assert _tags(root, bucket) == {"deprovisioner": f"deprovisioner gen={generation}"}
    closed = root.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert set(closed.values()) == {True}
    assert subject.bears(plan.manifest)


def test_an_adoption_keeps_the_tags_and_letting_go_takes_only_ours(backend: S3, root: Any, subject: s3.Subject) -> None:
    given, _ = subject.made_by_hand()
    manifest = backend.adopt(given, uuid.uuid4())
    mark = f"deprovisioner gen={manifest['generation']}"
    assert _tags(root, given["bucket"]) == {"team": "billing", "deprovisioner": mark}
    for removed in (True, False):
        assert unmark(backend, manifest) == {"bucket": given["bucket"], "unmarked": removed}
        assert _tags(root, given["bucket"]) == {"team": "billing"}
    assert backend.adopt(given, uuid.uuid4())["bucket"] == given["bucket"]
    with pytest.raises(Refused, match="not the one of this resource"):
        unmark(backend, manifest)


def test_a_bucket_without_other_tags_has_none_when_it_is_let_go(backend: S3, root: Any, made: Json) -> None:
    unmark(backend, made)
    with pytest.raises(ClientError, match="NoSuchTagSet"):
        root.get_bucket_tagging(Bucket=made["bucket"])


def test_what_is_in_quarantine_is_not_let_go(backend: S3, made: Json) -> None:
    backend.quarantine(made)
    with pytest.raises(Refused, match="in quarantine"):
        unmark(backend, made)
    assert isinstance(backend.inspect(made), Same)


def test_what_cannot_be_adopted_is_told_beforehand(backend: S3, s3_server: S3Server, subject: s3.Subject) -> None:
    given, _ = subject.made_by_hand()
    assert adoptable(backend, given) == []
    missing = KIND.manifest(bucket=f"hand-{uuid.uuid4()}")
    assert [one.code for one in adoptable(backend, missing)] == ["not_there"]
    weak = f"weak-{uuid.uuid4()}"
    s3_server.make_user(weak, *servers.documented(lacking="s3:ListBucketVersions"))
    (found,) = adoptable(S3(s3_server.dsn(weak)), given)
    assert found.code == "right_missing"
    assert '"Action": ["s3:ListBucketVersions"]' in found.mend
    assert f'"arn:aws:s3:::{given["bucket"]}"' in found.mend
    manifest = backend.adopt(given, uuid.uuid4())
    assert [one.code for one in adoptable(backend, given)] == ["refused"], "it has another's mark"
    backend.quarantine(manifest)
    assert [one.code for one in adoptable(backend, manifest)] == ["refused"], "it is in quarantine"


def test_a_protected_bucket_and_the_service_s_own_are_neither_adopted_nor_torn_down(
    s3_server: S3Server, backend: S3, root: Any, made: Json
) -> None:
    own = made | {"bucket": SERVICE_BUCKET}
    before = root.list_objects_v2(Bucket=SERVICE_BUCKET)["KeyCount"]
    for kind, manifest in ((backend, own), (S3(s3_server.dsn(), protected=frozenset({made["bucket"]})), made)):
        assert [one.code for one in adoptable(kind, manifest)] == ["refused"]
        for act in (
            lambda kind=kind, manifest=manifest: kind.adopt(manifest, uuid.uuid4()),
            lambda kind=kind, manifest=manifest: kind.quarantine(manifest),
            lambda kind=kind, manifest=manifest: kind.teardown(manifest, 1),
        ):
            with pytest.raises(Refused, match="protected"):
                act()
    assert root.list_objects_v2(Bucket=SERVICE_BUCKET)["KeyCount"] == before
    assert isinstance(backend.inspect(made), Same)


def test_a_bucket_that_somebody_made_under_the_name_is_not_taken(backend: S3, root: Any, subject: s3.Subject) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    subject.make(plan.manifest["bucket"])
    with pytest.raises(Refused, match="does not bear this resource's mark"):
        backend.provision(plan.manifest, plan.credentials)
    assert _tags(root, plan.manifest["bucket"]) == {"team": "billing"}
