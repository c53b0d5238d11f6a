"""A teardown ends with nothing left, destroys nothing that merely bears the name, and says what keeps it."""

import datetime as dt
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from outbox.errors import Refused, Transient
from outbox.rows import Json
from tests.support import s3_server as servers
from tests.support.s3_server import REGION, S3Server
from tests.support.subjects import s3
from worker.backends import Absent, Same
from worker.backends.fleet import Progress, hearing
from worker.backends.s3 import S3, destroy, turns

ROOT = Path(__file__).parents[4]
UNTIL = dt.datetime(2031, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
# A teardown in a process of its own; it tells the peak of its memory in kB before and after.
_TEARDOWN = """
import json, resource, sys
from worker.backends.fleet import hearing
from worker.backends.s3 import S3
backend, manifest, told = S3(sys.argv[1]), json.loads(sys.argv[2]), []
backend.inspect(manifest)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with hearing(lambda progress: told.append(progress.done)):
    done = backend.teardown(manifest, 1)
print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, told, done]))
"""


def test_versions_markers_uploads_and_odd_keys_all_go(
    s3_server: S3Server, backend: S3, root: Any, customer: Any, adopted: Json, subject: s3.Subject
) -> None:
    bucket = adopted["bucket"]
    s3_server.fill(bucket, 1500)
    keys = ("a b+c&<d>/", "k\x01\uffff", "k\x01\uffff", "\N{SNOWMAN}", "deprovisioner-probe")
    for key in keys:
        root.put_object(Bucket=bucket, Key=key, Body=b"x")
    for n in range(3):
        customer.create_multipart_upload(Bucket=bucket, Key=f"up+{n} %")
    told: list[Progress] = []
    before = len(s3_server.requests())
    with hearing(told.append):
        done = backend.teardown(adopted, 1)
    assert done == {
        "uploads_aborted": 3,
        "versions": 1500 + len(keys),
        "delete_markers": 150,
        "bucket": bucket,
    }
    assert not subject.bears(adopted)
    assert isinstance(backend.inspect(adopted), Absent)
    assert [one.done for one in told] == sorted({one.done for one in told})
    assert told[-1].done == 1653 + len(keys)
    asked = s3_server.requests()[before:]
    batches = [n for n, one in enumerate(asked) if one["method"] == "POST"]
    assert len(batches) == 2, "1,000 keys a request, and 656 in the last one"
    first_tag = min(n for n, one in enumerate(asked) if one["query"] == "tagging")
    assert first_tag < batches[0], "the mark is read before the first object"
    assert any(one["query"] == "tagging" for one in asked[batches[0] : batches[1]]), "and before each batch"


def test_customers_are_shut_out_before_the_first_object_goes(
    s3_server: S3Server, backend: S3, customer: Any, made: Json
) -> None:
    customer.put_object(Bucket=made["bucket"], Key="k", Body=b"x")
    before, seen = len(s3_server.requests()), []

    def hear(_: Progress) -> None:
        with pytest.raises(ClientError, match="403"):
            customer.put_object(Bucket=made["bucket"], Key="late", Body=b"x")
        seen.append(1)

    with hearing(hear):
        backend.teardown(made, 1)
    assert seen
    changed = [one for one in s3_server.requests()[before:] if one["method"] in ("PUT", "POST", "DELETE")]
    assert (changed[0]["method"], changed[0]["query"]) == ("PUT", "policy")


def test_a_bucket_made_again_under_the_name_between_two_batches_is_not_emptied(
    s3_server: S3Server, backend: S3, root: Any, adopted: Json, subject: s3.Subject
) -> None:
    s3_server.fill(adopted["bucket"], 1500)

    def replaced(_: Progress) -> None:
        s3.destroy(root, adopted["bucket"])
        subject.make(adopted["bucket"])
        root.put_object(Bucket=adopted["bucket"], Key="theirs", Body=b"x")

    with hearing(replaced), pytest.raises(Refused, match="does not bear this resource's mark"):
        backend.teardown(adopted, 1)
    assert root.head_object(Bucket=adopted["bucket"], Key="theirs")


def test_a_bucket_made_again_under_the_name_before_the_last_request_is_not_deleted(
    backend: S3, root: Any, made: Json, subject: s3.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(*_: object) -> None:
        s3.destroy(root, made["bucket"])
        subject.make(made["bucket"])

    monkeypatch.setattr(turns, "end", replaced)
    with pytest.raises(Refused, match="does not bear this resource's mark"):
        backend.teardown(made, 1)
    assert root.head_bucket(Bucket=made["bucket"])


def test_an_object_that_comes_before_the_last_request_is_deleted_too(
    backend: S3, root: Any, made: Json, subject: s3.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = turns.end

    def comes(*words: Any) -> None:
        monkeypatch.setattr(turns, "end", honest)
        root.delete_bucket_policy(Bucket=made["bucket"])
        root.put_object(Bucket=made["bucket"], Key="late", Body=b"x")

    monkeypatch.setattr(turns, "end", comes)
    assert backend.teardown(made, 1)["versions"] == 1
    assert not subject.bears(made)


def test_a_bucket_that_is_filled_all_the_while_is_given_up_and_tried_again(
    backend: S3, root: Any, made: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destroy, "ENDS", 3)
    root.put_object(Bucket=made["bucket"], Key="k", Body=b"x")

    def filled(_: Progress) -> None:
        root.delete_bucket_policy(Bucket=made["bucket"])
        root.put_object(Bucket=made["bucket"], Key="k", Body=b"x")

    with hearing(filled), pytest.raises(Transient, match="keep appearing"):
        backend.teardown(made, 1)
    backend.teardown(made, 2)


@pytest.fixture
def locked(root: Any, backend: S3, subject: s3.Subject) -> Json:
    """A bucket with object lock, three versions in it; nothing is locked yet."""
    bucket = f"hand-{uuid.uuid4()}"
    place = {"LocationConstraint": REGION}
    root.create_bucket(Bucket=bucket, CreateBucketConfiguration=place, ObjectLockEnabledForBucket=True)
    for key in ("a", "b", "c"):
        root.put_object(Bucket=bucket, Key=key, Body=b"x")
    del subject
    return backend.adopt({"bucket": bucket}, uuid.uuid4())


def _lock(root: Any, bucket: str, key: str, mode: str, until: dt.datetime) -> None:
    retention = {"Mode": mode, "RetainUntilDate": until}
    root.put_object_retention(Bucket=bucket, Key=key, Retention=retention)


def _left(root: Any, bucket: str) -> set[str]:
    return {one["Key"] for one in root.list_object_versions(Bucket=bucket).get("Versions", [])}


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_retention_is_refused_with_the_latest_date(backend: S3, root: Any, locked: Json, mode: str) -> None:
    _lock(root, locked["bucket"], "a", mode, UNTIL - dt.timedelta(days=1))
    _lock(root, locked["bucket"], "c", mode, UNTIL)
    with pytest.raises(Refused, match=f"keeps 2 versions .*{mode} until 2031-05-06T07:08:09Z at the latest"):
        backend.teardown(locked, 1)
    assert _left(root, locked["bucket"]) == {"a", "c"}
    assert isinstance(backend.inspect(locked), Same)


def test_a_legal_hold_is_refused_and_when_it_is_off_the_teardown_ends(
    backend: S3, root: Any, locked: Json, subject: s3.Subject
) -> None:
    root.put_object_legal_hold(Bucket=locked["bucket"], Key="b", LegalHold={"Status": "ON"})
    with pytest.raises(Refused, match="1 have a legal hold"):
        backend.teardown(locked, 1)
    assert _left(root, locked["bucket"]) == {"b"}
    root.delete_bucket_policy(Bucket=locked["bucket"])
    root.put_object_legal_hold(Bucket=locked["bucket"], Key="b", LegalHold={"Status": "OFF"})
    backend.teardown(locked, 2)
    assert not subject.bears(locked)


def test_governance_is_bypassed_only_where_the_dsn_says_so(
    s3_server: S3Server, backend: S3, root: Any, locked: Json, subject: s3.Subject
) -> None:
    _lock(root, locked["bucket"], "a", "GOVERNANCE", UNTIL)
    with pytest.raises(Refused, match="bypass_governance=true"):
        backend.teardown(locked, 1)
    assert S3(s3_server.dsn(bypass_governance="true")).teardown(locked, 2)["versions"] == 1
    assert not subject.bears(locked)


@pytest.mark.parametrize("right", ["s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucketMultipartUploads"])
def test_a_right_that_is_missing_is_named_and_nothing_counts_as_deleted(
    s3_server: S3Server, backend: S3, root: Any, made: Json, right: str
) -> None:
    root.put_object(Bucket=made["bucket"], Key="k", Body=b"x")
    root.create_multipart_upload(Bucket=made["bucket"], Key="up")
    name = f"weak-{uuid.uuid4()}"
    s3_server.make_user(name, *servers.documented(lacking=right))
    with pytest.raises(Refused, match=right):
        S3(s3_server.dsn(name)).teardown(made, 1)
    assert _left(root, made["bucket"]) == {"k"}
    backend.teardown(made, 2)


@pytest.mark.proof
@pytest.mark.timeout(500)
def test_many_batches_need_the_memory_of_one_and_a_killed_teardown_goes_on(
    s3_server: S3Server, adopted: Json, subject: s3.Subject
) -> None:
    """20,000 keys and 2,000 delete markers; docs/backends.md has the figures of 100,000."""
    s3_server.fill(adopted["bucket"], 20_000)
    words = [sys.executable, "-c", _TEARDOWN, s3_server.dsn(), json.dumps(adopted)]
    dies = "hearing(lambda progress: progress.done > 5_000 and os.kill(os.getpid(), 9))"
    killed = _TEARDOWN.replace("hearing(lambda progress: told.append(progress.done))", dies)
    first = subprocess.run([*words[:2], f"import os{killed}", *words[3:]], cwd=ROOT, check=False)
    assert first.returncode == -9
    second = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    before, after, told, done = json.loads(second.stdout)
    assert 15_000 < done["versions"] + done["delete_markers"] <= 17_000, "what the first has deleted is not there"
    assert told == sorted(told)
    assert len(told) > 15
    assert after - before < 8_000, "kB: a page of 1,000 versions, and no more"
    assert not subject.bears(adopted)
