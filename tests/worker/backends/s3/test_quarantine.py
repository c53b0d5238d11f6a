"""A quarantine adds one statement, a release takes it away; of two workers, the later one's change stands."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from outbox.errors import Refused, Transient
from outbox.rows import Json
from tests.support.s3_server import S3Server
from worker.backends.s3 import S3, policy, quarantine


def _policy(root: Any, bucket: str) -> Any:
    try:
        return json.loads(root.get_bucket_policy(Bucket=bucket)["Policy"])
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucketPolicy":
            raise
        return None


def _is_open(customer: Any, bucket: str) -> bool:
    try:
        customer.put_object(Bucket=bucket, Key="mine", Body=b"x")
        customer.get_object(Bucket=bucket, Key="mine")["Body"].close()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
            raise
        return False
    return True


def test_a_release_brings_back_the_very_policy_that_was_there(backend: S3, root: Any, adopted: Json) -> None:
    bucket, before = adopted["bucket"], _policy(root, adopted["bucket"])
    for _ in range(2):
        backend.quarantine(adopted)
    shut = _policy(root, bucket)
    assert shut["Statement"][:-1] == before["Statement"], "what the owner allowed stands, behind a Deny"
    assert (shut["Statement"][-1]["Effect"], shut["Statement"][-1]["Principal"]) == ("Deny", "*")
    assert shut["Statement"][-1]["Resource"] == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    for _ in range(2):
        backend.release(adopted)
    assert _policy(root, bucket) == before


def test_a_bucket_without_a_policy_has_none_after_a_release(backend: S3, root: Any, customer: Any, made: Json) -> None:
    backend.quarantine(made)
    assert not _is_open(customer, made["bucket"])
    backend.release(made)
    assert _policy(root, made["bucket"]) is None
    assert _is_open(customer, made["bucket"])


def test_a_policy_of_one_statement_without_a_list_is_kept(backend: S3, root: Any, adopted: Json) -> None:
    bucket, before = adopted["bucket"], _policy(root, adopted["bucket"])
    alone = before | {"Statement": before["Statement"][0]}
    root.put_bucket_policy(Bucket=bucket, Policy=json.dumps(alone))
    backend.quarantine(adopted)
    backend.release(adopted)
    assert _policy(root, bucket) == before


def test_a_quarantine_that_stood_still_past_a_restore_shuts_nobody_out(
    s3_server: S3Server, backend: S3, customer: Any, made: Json
) -> None:
    """It had asked whether its claim is still there; then it stood still, and a restore gave the bucket back."""
    with pytest.raises(Transient, match="another worker"):
        backend.quarantine(made, lambda: S3(s3_server.dsn()).release(made))
    assert _is_open(customer, made["bucket"])


def test_a_release_that_stood_still_past_the_end_of_its_restore_opens_nothing(
    s3_server: S3Server, backend: S3, customer: Any, made: Json
) -> None:
    backend.quarantine(made)
    with pytest.raises(Transient, match="another worker"):
        backend.release(made, lambda: S3(s3_server.dsn()).quarantine(made))
    assert not _is_open(customer, made["bucket"])


@pytest.mark.parametrize(("verb", "other"), [("quarantine", "release"), ("release", "quarantine")])
def test_the_later_one_s_change_stands_where_a_worker_stood_still_at_its_very_request(
    s3_server: S3Server,
    backend: S3,
    customer: Any,
    made: Json,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    other: str,
) -> None:
    if verb == "release":
        backend.quarantine(made)
    honest = policy.write

    def late(*words: Any) -> None:
        monkeypatch.setattr(policy, "write", honest)
        getattr(S3(s3_server.dsn()), other)(made)
        honest(*words)

    monkeypatch.setattr(policy, "write", late)
    with pytest.raises(Transient, match="its change stands"):
        getattr(backend, verb)(made)
    assert _is_open(customer, made["bucket"]) == (other == "release")


def test_an_endpoint_that_enforces_no_policies_cannot_quarantine(
    backend: S3, customer: Any, made: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "SETTLES_SECONDS", 0.0)
    monkeypatch.setattr(policy, "write", lambda *_: None)  # it takes a policy, and lets requests through
    with pytest.raises(Refused, match="enforces no bucket policies"):
        backend.quarantine(made)
    assert _is_open(customer, made["bucket"])


def test_a_release_waits_until_the_endpoint_denies_nothing_any_more(
    backend: S3, made: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.quarantine(made)
    monkeypatch.setattr(quarantine, "SETTLES_SECONDS", 0.0)
    monkeypatch.setattr(quarantine, "_is_denied", lambda *_: True)
    with pytest.raises(Transient, match="still denies"):
        backend.release(made)


def test_what_is_being_destroyed_is_not_given_back(backend: S3, root: Any, made: Json) -> None:
    session = backend._server.session()
    policy.write(session, made["bucket"], policy.for_teardown(session, made["bucket"]))
    before = _policy(root, made["bucket"])
    with pytest.raises(Refused, match="destruction"):
        backend.release(made)
    backend.quarantine(made)
    assert _policy(root, made["bucket"]) == before
