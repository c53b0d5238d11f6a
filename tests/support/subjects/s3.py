"""S3 as a Subject of the conformance suite: moto's server, with the documented account."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from botocore.exceptions import ClientError

from deprovisioner.sdk import Backend, Json
from deprovisioner.up import servers as embedded
from outbox.kinds.s3 import KIND
from tests.support import s3_server
from tests.support.s3_server import S3Server
from worker.backends.s3 import S3

_KEYS = [f"k{n}" for n in range(5)]
# Each is missed by a verb of an empty bucket; tests/worker/backends/s3 has the others.
RIGHTS = ("s3:CreateBucket", "s3:GetBucketTagging", "s3:PutBucketPolicy", "s3:ListBucketVersions", "s3:DeleteBucket")


@contextmanager
def subject() -> Iterator["Subject"]:
    """On a server of its own."""
    with serving() as server, on(server) as made:
        yield made


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server in a folder of its own."""
    with TemporaryDirectory(prefix="s3-") as folder, s3_server.running(Path(folder)) as server:
        yield server


@contextmanager
def on(server: S3Server) -> Iterator["Subject"]:
    """On a server that others use too. What was made by hand is removed again."""
    root = server.client("root")
    before = {one["Name"] for one in root.list_buckets()["Buckets"]}
    with ExitStack() as life:
        yield Subject(server, life)
    for one in root.list_buckets()["Buckets"]:
        if one["Name"] not in before:
            with suppress(ClientError):  # what object lock keeps goes with the server
                destroy(root, one["Name"])


def destroy(root: Any, bucket: str) -> None:
    """Remove a bucket with all that is in it, as an administrator."""
    with suppress(ClientError):
        root.delete_bucket_policy(Bucket=bucket)
    while found := _page(root, bucket):
        answer = root.delete_objects(Bucket=bucket, Delete={"Objects": found}, BypassGovernanceRetention=True)
        if answer.get("Errors"):
            break  # object lock keeps them
    root.delete_bucket(Bucket=bucket)


def _page(root: Any, bucket: str) -> list[dict[str, str]]:
    page = root.list_object_versions(Bucket=bucket)
    both = (*page.get("Versions", []), *page.get("DeleteMarkers", []))
    return [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in both]


class Subject:
    """See `deprovisioner.conformance.Subject`. Its customer is a user that a platform has made and granted access."""

    calls = ("botocore.client.BaseClient._make_api_call",)
    not_shown: ClassVar[Mapping[str, str]] = {
        "not authoritative": "an endpoint shows no sign that it repeats another one: name one endpoint in the dsn",
    }

    def __init__(self, server: S3Server, life: ExitStack) -> None:
        self._server, self._life = server, life
        self._root, self._customer = server.client("root"), server.client("customer")
        self._other: S3Server | None = None

    def backend(self) -> Backend:
        return S3(self._server.dsn())

    def dead(self) -> Backend:
        return S3(self._server.dsn().replace(f":{self._server.port}/", f":{embedded.free_port()}/"))

    def secrets(self, credentials: Json) -> list[str]:
        del credentials  # they hold none
        return [self._server.keys["service"][1]]

    def bears(self, manifest: Json) -> bool:
        return any(one["Name"] == manifest["bucket"] for one in self._root.list_buckets()["Buckets"])

    def put(self, credentials: Json) -> None:
        for key in _KEYS:
            self._customer.put_object(Bucket=credentials["bucket"], Key=key, Body=b"x")

    def has(self, credentials: Json) -> bool:
        return all(self._read(credentials, key) == b"x" for key in _KEYS)

    def can_log_in(self, credentials: Json) -> bool:
        try:
            self._read(credentials, "nothing")
        except ClientError as error:
            return error.response["Error"]["Code"] == "NoSuchKey"
        return True

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        yield lambda: self._customer.put_object(Bucket=credentials["bucket"], Key=_KEYS[0], Body=b"x")

    def made_by_hand(self) -> tuple[Json, Json]:
        return self.make(f"hand-{uuid.uuid4()}")

    def neighbours(self, manifest: Json) -> list[Json]:
        bucket = manifest["bucket"]
        return [self.make(one)[1] for one in (f"{bucket}-2", bucket[:-1], bucket.replace("-", ".", 1))]

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """The mark taken off, another generation's mark, a bucket made again under the name."""

        def unmarked(manifest: Json) -> None:
            self._root.delete_bucket_tagging(Bucket=manifest["bucket"])

        def another(manifest: Json) -> None:
            self.tag(manifest["bucket"], deprovisioner=f"deprovisioner gen={uuid.uuid4()}")

        def made_again(manifest: Json) -> None:
            destroy(self._root, manifest["bucket"])
            self.make(manifest["bucket"])

        yield from (unmarked, another, made_again)

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        if self._other is None:
            self._other = self._life.enter_context(serving())
        yield S3(self._other.dsn())

    @contextmanager
    def not_authoritative(self) -> Iterator[tuple[Backend, Backend]]:
        raise NotImplementedError(self.not_shown["not authoritative"])
        yield

    def weaker(self) -> Iterator[tuple[str, Backend]]:
        for right in RIGHTS:
            name = f"weak-{uuid.uuid4()}"
            self._server.make_user(name, *s3_server.documented(lacking=right))
            yield right, S3(self._server.dsn(name))

    def destroyed_by_hand(self, manifest: Json) -> None:
        destroy(self._root, manifest["bucket"])

    def make(self, bucket: str) -> tuple[Json, Json]:
        """A bucket that this service did not make, with a policy and tags."""
        place = {"LocationConstraint": s3_server.REGION}
        self._root.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
        self._root.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        self.tag(bucket, team="billing")
        allow = {"Sid": "Audit", "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{s3_server.ACCOUNT}:root"}}
        allow |= {"Action": ["s3:GetBucketLocation"], "Resource": [f"arn:aws:s3:::{bucket}"]}
        policy = {"Version": "2012-10-17", "Statement": [allow]}
        self._root.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        return KIND.manifest(bucket=bucket), {"bucket": bucket}

    def tag(self, bucket: str, **tags: str) -> None:
        """Replace the bucket's tags."""
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        self._root.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": pairs})

    def _read(self, credentials: Json, key: str) -> bytes:
        with self._customer.get_object(Bucket=credentials["bucket"], Key=key)["Body"] as body:
            found: bytes = body.read()
            return found
