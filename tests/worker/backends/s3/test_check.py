"""What `backends check` finds on an endpoint: rights, each with the statement that gives it."""

import json
import uuid

import pytest

from outbox.rows import Json
from tests.support import s3_server as servers
from tests.support.s3_server import S3Server
from worker.backends import check
from worker.backends.s3 import S3, memory


def test_the_documented_account_lacks_nothing(backend: S3, made: Json) -> None:
    del made  # so that the endpoint has an identity
    assert check(backend) == []


@pytest.mark.parametrize(
    "right", ["s3:ListAllMyBuckets", "s3:PutBucketPolicy", "s3:GetBucketTagging", "s3:DeleteBucket", "s3:GetObject"]
)
def test_a_right_that_is_missing_is_found_with_the_statement_that_gives_it(
    s3_server: S3Server, made: Json, right: str
) -> None:
    before = len(s3_server.requests())
    name = f"weak-{uuid.uuid4()}"
    s3_server.make_user(name, *servers.documented(lacking=right))
    found = check(S3(s3_server.dsn(name)))
    assert {one.code for one in found} == {"right_missing"}
    assert any(right in json.loads(one.mend)["Action"] for one in found)
    touched = [one for one in s3_server.requests()[before:] if one["path"].startswith(f"/{made['bucket']}")]
    assert touched == []


def test_an_endpoint_that_ignores_conditions_is_found_and_keeps_no_memory(
    backend: S3, made: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    del made
    monkeypatch.setattr(memory, "compares", lambda _: False)
    assert [one.code for one in check(backend)] == ["no_conditions"]
