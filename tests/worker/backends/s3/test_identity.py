"""Which bucket a manifest means: owner, endpoint and mark, on every request that can say so."""

import uuid
from typing import Any

import pytest

from outbox.errors import OutOfService, Refused, Transient
from outbox.rows import Json
from tests.support import s3_server as servers
from tests.support.s3_server import SERVICE_BUCKET, S3Server
from tests.support.subjects import s3
from worker.backends import Absent, Different, Same
from worker.backends.fleet import locate
from worker.backends.s3 import S3, identity
from worker.backends.s3.session import Session


def test_every_request_for_a_bucket_names_the_owner_that_it_expects(
    s3_server: S3Server, backend: S3, subject: s3.Subject
) -> None:
    given, _ = subject.made_by_hand()
    before = len(s3_server.requests())
    manifest = backend.adopt(given, uuid.uuid4())
    backend.quarantine(manifest)
    backend.release(manifest)
    backend.unmark(manifest)
    backend.adopt(given, uuid.UUID(manifest["generation"]))
    backend.teardown(manifest, 1)
    backend.installations()
    asked = [one for one in s3_server.requests()[before:] if one["path"] != "/"]
    assert len(asked) > 40
    assert [one for one in asked if one["owner"] != servers.ACCOUNT] == []


def test_a_bucket_of_another_account_is_not_touched(s3_server: S3Server, backend: S3, made: Json, root: Any) -> None:
    other = S3(s3_server.dsn(account="210987654321"))
    root.put_object(Bucket=made["bucket"], Key="k", Body=b"x")
    for act in (other.quarantine, lambda manifest: other.teardown(manifest, 1), other.inspect):
        with pytest.raises(Refused, match="forbids"):
            act(made)
    assert isinstance(backend.inspect(made | {"owner": "210987654321"}), Different)
    assert root.head_object(Bucket=made["bucket"], Key="k")


def test_a_name_that_another_account_has_is_different(backend: S3, made: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint forbids the bucket, and the account's own list does not have it."""
    honest = Session.call

    def forbidden(self: Session, operation: str, bucket: str | None = None, **words: Any) -> Json:
        if operation == "get_bucket_tagging":
            return {"Code": "AccessDenied"}
        if operation == "list_buckets":
            return {"Buckets": []}
        return honest(self, operation, bucket, **words)

    monkeypatch.setattr(Session, "call", forbidden)
    seen = backend.inspect(made)
    assert isinstance(seen, Different)
    assert "another account" in seen.why


def test_an_endpoint_without_the_service_s_bucket_says_nothing_of_absence(
    s3_server: S3Server, backend: S3, subject: s3.Subject
) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    assert isinstance(backend.inspect(plan.manifest), Absent)
    s3_server.make_user(name := f"all-{uuid.uuid4()}", {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]})
    elsewhere = S3(s3_server.dsn(name, bucket="not-made-yet"))
    for act in (elsewhere.inspect, lambda manifest: elsewhere.teardown(manifest, 1)):
        with pytest.raises(OutOfService, match="no bucket 'not-made-yet'"):
            act(plan.manifest)
    del subject


def test_a_bucket_that_is_listed_is_not_absent(backend: S3, made: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "tags", lambda *_: None)  # as an endpoint whose parts do not agree
    with pytest.raises(Transient, match="lists bucket"):
        backend.inspect(made)


def test_a_bucket_whose_endpoint_has_moved_is_found_by_its_mark(backend: S3, made: Json) -> None:
    moved = made | {"server": str(uuid.uuid4())}
    assert isinstance(backend.inspect(moved), Different)
    with pytest.raises(Refused):
        backend.teardown(moved, 1)
    found = locate(backend, moved)
    assert isinstance(found, Same)
    assert found.seen["manifest"] == made
    assert isinstance(locate(backend, moved | {"generation": str(uuid.uuid4())}), Different)
    assert isinstance(locate(backend, moved | {"bucket": f"bkt-{uuid.uuid4()}"}), Absent)


def test_two_workers_that_make_an_identity_agree(s3_server: S3Server, root: Any, made: Json) -> None:
    assert S3(s3_server.dsn()).server_identity() == made["server"]
    with root.get_object(Bucket=SERVICE_BUCKET, Key=identity.SERVER)["Body"] as body:
        assert body.read().decode() == made["server"]
    session = S3(s3_server.dsn())._server.session()
    assert not session.write(identity.SERVER, "another", IfNoneMatch="*")
    assert identity.identify(session) == made["server"]
