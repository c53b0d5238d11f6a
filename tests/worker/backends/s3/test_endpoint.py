"""The dsn: everything of an endpoint, and nothing of it in an error."""

import pytest

from outbox.errors import SettingsError
from worker.backends.s3 import S3, endpoint

AWS = "s3://AKIA:se%2Fcret@/own?region=eu-central-1&account=123456789012"


def test_a_dsn_with_a_host_is_a_store_and_one_without_is_aws() -> None:
    store = endpoint.parse(
        "s3://key:secret@store.example.com:9000/own?region=r1&tls=false&public=https://s3.example.com"
    )
    assert (store.url, store.region, store.addressing) == ("http://store.example.com:9000", "r1", "path")
    assert (store.account, store.service_bucket) == (None, "own")
    assert store.credentials("b")["endpoint"] == "https://s3.example.com"
    aws = endpoint.parse(AWS)
    assert (aws.url, aws.secret, aws.account, aws.addressing) == (None, "se/cret", "123456789012", "auto")
    assert aws.credentials("b")["endpoint"] == "https://s3.eu-central-1.amazonaws.com"
    assert endpoint.parse("s3://[::1]/own?region=r").url == "https://[::1]"
    assert endpoint.parse("s3:///own?region=cn-north-1&account=1").partition == "aws-cn"


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("https://key:hush-hush@host/own", "must begin with s3://"),
        ("s3://key:hush/hush-hush@host/own", "not an s3:// URL"),
        ("s3://key:hush-hush@host", "service's own bucket"),
        ("s3://key:hush-hush@host/own/more", "service's own bucket"),
        ("s3://hush-hush@host/own", "both a key and its secret"),
        ("s3://key:hush-hush@/own?region=r", "`region` and `account`"),
        ("s3://key:hush-hush@host/own?tls=perhaps", "`tls` in the dsn must be true or false"),
        ("s3://key:hush-hush@host/own?addressing=dns", "`addressing` in the dsn"),
        ("s3://key:x@host/own?region=r&hush-hush=1", "number 2"),
    ],
)
def test_a_wrong_dsn_is_an_error_that_shows_nothing_of_it(dsn: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as wrong:
        S3(dsn)
    assert "hush-hush" not in f"{wrong.value!r} {wrong.value.__cause__!r}"


def test_an_endpoint_does_not_show_its_secret() -> None:
    assert "se/cret" not in repr(endpoint.parse(AWS))
