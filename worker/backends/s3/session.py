"""Requests to an endpoint: timeouts, the owner on each of them, and what each failure means."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError

from outbox import foreign
from outbox.errors import BackendError, OutOfService, Refused, Transient, Unavailable
from outbox.rows import Json
from worker.backends.s3 import endpoint

CONNECT_SECONDS = 5
READ_SECONDS = 20  # a DeleteObjects of 1,000 keys takes a second or two
TRIES = 2  # of one request; more is the job's to do
_MAX_TEXT = 300
DENIED = frozenset({"AccessDenied", "403", "AllAccessDisabled"})
# What an error means, by the code that the endpoint sends; docs/backends.md has this table too, and a test compares.
MEANS: dict[str, type[BackendError]] = {
    # The endpoint does no work now, whatever the bucket.
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "503", "Throttling", "TooManyRequests", "429"), OutOfService),
    # It does not let the service in.
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"), Unavailable),
    **dict.fromkeys(("RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "NotSignedUp"), Unavailable),
    # It will answer the same for ever.
    **dict.fromkeys((*DENIED, "AccountProblem", "MalformedPolicy", "PolicyTooLarge", "InvalidBucketName"), Refused),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed", "TooManyBuckets"), Refused),
}
# Of each operation the actions of a policy that allow it; docs/backends.md has the policy, and a test compares.
RIGHTS: dict[str, tuple[str, ...]] = {
    "ListBuckets": ("s3:ListAllMyBuckets",),
    "CreateBucket": ("s3:CreateBucket",),
    "DeleteBucket": ("s3:DeleteBucket",),
    "PutPublicAccessBlock": ("s3:PutBucketPublicAccessBlock",),
    "GetBucketTagging": ("s3:GetBucketTagging",),
    "PutBucketTagging": ("s3:PutBucketTagging",),
    "DeleteBucketTagging": ("s3:PutBucketTagging",),
    "GetBucketPolicy": ("s3:GetBucketPolicy",),
    "PutBucketPolicy": ("s3:PutBucketPolicy",),
    "DeleteBucketPolicy": ("s3:DeleteBucketPolicy",),
    "ListObjectVersions": ("s3:ListBucketVersions",),
    "ListMultipartUploads": ("s3:ListBucketMultipartUploads",),
    "AbortMultipartUpload": ("s3:AbortMultipartUpload",),
    "DeleteObjects": ("s3:DeleteObject", "s3:DeleteObjectVersion"),
    "GetObjectRetention": ("s3:GetObjectRetention",),
    "GetObjectLegalHold": ("s3:GetObjectLegalHold",),
    "GetObject": ("s3:GetObject",),
    "PutObject": ("s3:PutObject",),
    "DeleteObject": ("s3:DeleteObject",),
    "ListObjectsV2": ("s3:ListBucket",),
}
# One for all clients of this process: each new one would read megabytes of descriptions, which takes half a second.
_BOTO = boto3.session.Session()
_MAKING = threading.Lock()  # a session of boto3 may not be shared while clients are made
_WITHOUT_OWNER = frozenset({"create_bucket", "list_buckets"})  # their requests have no place for it


class Server:
    """One endpoint; `protected`: buckets that are never adopted or torn down, the service's own among them."""

    def __init__(self, dsn: str, protected: frozenset[str]) -> None:
        self.endpoint = endpoint.parse(dsn)
        self.protected = protected | {self.endpoint.service_bucket}
        self.compares = False  # whether `memory` has seen that this endpoint honours If-None-Match
        self._made: tuple[int, Any] | None = None  # a client and the process that made it; threads share it

    def session(self) -> "Session":
        """Requests to this endpoint. Raises Unavailable where boto3 cannot make a client."""
        with _MAKING:
            if self._made is None or self._made[0] != os.getpid():
                self._made = os.getpid(), self._client()
            return Session(self, self._made[1])

    def _client(self) -> Any:
        at = self.endpoint
        try:
            return _BOTO.client(
                "s3",
                endpoint_url=at.url,
                region_name=at.region,
                aws_access_key_id=at.key,
                aws_secret_access_key=at.secret,
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": TRIES},
                    s3={"addressing_style": at.addressing},
                    # Stores that are not AWS know no more of the newer checksums than they must.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    max_pool_connections=50,
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise Unavailable(f"no client can be made: {type(error).__name__}") from None


class Session:
    """Requests, each with the owner that its bucket must have."""

    def __init__(self, server: Server, client: Any) -> None:
        self.server = server
        self.endpoint = server.endpoint
        self._client = client

    def call(self, operation: str, bucket: str | None = None, *, expects: tuple[str, ...] = (), **words: Any) -> Json:
        """The answer; `{"Code": …}` where the endpoint refuses with one of the codes in `expects`.

        Raises Unavailable, OutOfService, Transient or Refused for any other failure.
        """
        try:
            answer: Json = self._send(operation, bucket, words)
        except ClientError as error:
            if (code := code_of(error)) in expects:
                return {"Code": code}
            raise meaning(error, bucket) from None  # its cause would show the request
        return answer

    def is_denied(self, operation: str, bucket: str | None = None, **words: Any) -> bool:
        """Whether the endpoint forbids it; any other refusal of the request says that it does not."""
        try:
            self._send(operation, bucket, words)
        except ClientError as error:
            if code_of(error) in DENIED:
                return True
            if isinstance(found := meaning(error, bucket), Unavailable):
                raise found from None
        return False

    def read(self, key: str, longest: int) -> tuple[str | None, str]:
        """The text of an object of the service's own bucket, and its ETag; None where there is none.

        At most `longest` bytes and one more are read. Raises OutOfService where the bucket is not there.
        """
        bucket = self.endpoint.service_bucket
        found = self.call("get_object", bucket, Key=key, expects=("NoSuchKey", "NoSuchBucket"))
        if found.get("Code") == "NoSuchBucket":
            raise OutOfService(
                f"this endpoint has no bucket {bucket!r}, which is to be the service's own: the dsn leads to another "
                "endpoint, or nobody has made it yet (docs/backends.md)"
            )
        if "Code" in found:
            return None, ""
        with found["Body"] as body:
            try:
                return body.read(longest + 1).decode(errors="replace"), found.get("ETag", "")
            except (BotoCoreError, HTTPError, OSError) as error:
                raise Unavailable(f"the answer broke off: {type(error).__name__}") from None

    def write(self, key: str, text: str, **condition: str) -> bool:
        """Write an object of the service's own bucket; False where `IfMatch` or `IfNoneMatch` forbids it."""
        lost = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey") if condition else ()
        bucket = self.endpoint.service_bucket
        return "Code" not in self.call("put_object", bucket, Key=key, Body=text.encode(), expects=lost, **condition)

    def remove(self, key: str) -> None:
        """Remove an object of the service's own bucket, whether it is there or not."""
        self.call("delete_object", self.endpoint.service_bucket, Key=key)

    def buckets(self, prefix: str = "") -> Iterator[Json]:
        """All buckets of the account, a page at a time; those whose names begin with `prefix` among them.

        An endpoint may ignore the prefix.
        """
        more: Json = {"Prefix": prefix} if prefix else {}
        while True:
            page = self.call("list_buckets", **more)
            yield from page.get("Buckets", [])
            if not page.get("ContinuationToken"):
                return
            more["ContinuationToken"] = page["ContinuationToken"]

    def _send(self, operation: str, bucket: str | None, words: Json) -> Json:
        if bucket is not None:
            words = {"Bucket": bucket, **words}
        if self.endpoint.account and operation not in _WITHOUT_OWNER:
            words = {"ExpectedBucketOwner": self.endpoint.account, **words}
        try:
            answer: Json = getattr(self._client, operation)(**words)
        except NoCredentialsError:
            raise Unavailable("there are no credentials: neither in the dsn nor where boto3 looks for them") from None
        except (HTTPClientError, NoConnectionError) as error:  # no connection, or one that broke or was too slow
            raise Unavailable(foreign.line(str(error), _MAX_TEXT)) from None
        except BotoCoreError as error:
            raise Transient(foreign.line(f"{type(error).__name__}: {error}", _MAX_TEXT)) from None
        return answer


def code_of(error: ClientError) -> str:
    """The code that the endpoint sent; the status of its answer where it sent none."""
    return str(error.response.get("Error", {}).get("Code") or error.response["ResponseMetadata"]["HTTPStatusCode"])


def meaning(error: ClientError, bucket: str | None) -> BackendError:
    """What an endpoint's refusal means for the job: one bounded line."""
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    about = f"{error.operation_name} of bucket {bucket!r}" if bucket else error.operation_name
    said = foreign.line(str(error.response.get("Error", {}).get("Message", "")), _MAX_TEXT)
    if code in DENIED:
        return Refused(f"the endpoint forbids {about}: {code}, {said}; {granted(error.operation_name, bucket)}")
    return MEANS.get(code, MEANS.get(str(status), Transient))(f"{about}: {code}, {said}")


def granted(operation: str, bucket: str | None) -> str:
    """What to do where a right is missing."""
    rights = " and ".join(RIGHTS.get(operation, (f"s3:{operation}",)))
    return f"allow the service's account {rights}{f' on {bucket}' if bucket else ''} (docs/backends.md has the policy)"
