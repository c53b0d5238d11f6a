"""An S3 server of its own: moto's, which checks signatures and the policies of IAM users, and a little more.

As AWS does and moto does not, it refuses a request whose `x-amz-expected-bucket-owner` is not the bucket's, tells the
retention of a version, encodes keys in lists where it is asked to, forgets a bucket's tags with the bucket, and takes
conditional writes one by one. A page of versions costs it the page, not the bucket. Each request is written into a log:
the tests' witness.
"""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parents[2]
ACCOUNT = "123456789012"  # moto's, of every user
REGION = "eu-central-1"
SERVICE_BUCKET = "deprovisioner-service"
_DOCUMENT = ROOT / "docs" / "backends.md"
_ASKED = threading.local()


@dataclass
class S3Server:
    """A running server, its administrator, and the keys of a user."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]
    keys: dict[str, tuple[str, str]]
    _clients: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, user: str, service: str = "s3") -> Any:
        """A boto3 client of this user, as an independent witness or as a customer."""
        from botocore.config import Config

        key, secret = self.keys[user]
        if (key, service) in self._clients:  # to make one takes as long as ten requests
            return self._clients[key, service]
        made = self._clients[key, service] = _session().client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, max_pool_connections=50),
        )
        return made

    def dsn(self, user: str = "service", *, bucket: str = SERVICE_BUCKET, **words: str) -> str:
        """The address that a backends file would have."""
        key, secret = (quote(word, safe="") for word in self.keys[user])
        more = "".join(f"&{name}={value}" for name, value in words.items())
        account = "" if "account" in words else f"&account={ACCOUNT}"
        return f"s3://{key}:{secret}@127.0.0.1:{self.port}/{bucket}?region={REGION}&tls=false{account}{more}"

    def make_user(self, name: str, *statements: dict[str, Any]) -> None:
        """An IAM user with these rights and no other."""
        iam = self.client("root", "iam")
        iam.create_user(UserName=name)
        policy = {"Version": "2012-10-17", "Statement": list(statements)}
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        self.keys[name] = made["AccessKeyId"], made["SecretAccessKey"]

    def fill(self, bucket: str, count: int) -> None:
        """Put so many small objects into a bucket with versions, each tenth with a delete marker over it."""
        urllib.request.urlopen(f"{self.url}/moto-api/fill?{bucket}&{count}").close()

    def requests(self) -> list[dict[str, Any]]:
        """All requests so far: method, path, query and the bucket owner that each expected."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def documented(*, lacking: str = "") -> list[dict[str, Any]]:
    """The statements of the policy in docs/backends.md, without one action."""
    text = _DOCUMENT.read_text().partition("<!-- account: s3 -->\n```json\n")[2].partition("```")[0]
    statements: list[dict[str, Any]] = json.loads(text)["Statement"]
    for one in statements:
        one["Action"] = [action for action in one["Action"] if action != lacking]
    return [one for one in statements if one["Action"]]


@cache
def _session() -> Any:
    """One for all clients: each new one would read megabytes of descriptions."""
    import boto3

    return boto3.session.Session()


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """A server with the users `root` (administrator), `service` (as documented) and `customer` (made by a platform)."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "requests"
    log.touch()
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.s3_server", str(log)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        server = S3Server(port, log, process, {"root": ("root", "root-secret")})
        server.make_user("root", {"Effect": "Allow", "Action": ["s3:*", "iam:*"], "Resource": "*"})
        server.make_user("service", *documented())
        ours = [f"arn:aws:s3:::{name}" for name in ("bkt*", "hand*")]
        objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucket"]
        server.make_user("customer", {"Effect": "Allow", "Action": objects, "Resource": ours})
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{server.url}/moto-api/reset-auth", data=b"0", headers=plain)
        urllib.request.urlopen(request).close()
        server.client("root").create_bucket(
            Bucket=SERVICE_BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        yield server
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout:
            process.stdout.close()


def _main(log: Path) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    _teach_moto()
    app = DomainDispatcherApplication(create_backend_app)
    with log.open("a", buffering=1) as file:
        server = make_server("127.0.0.1", 0, _watched(app, file.write), threaded=True)
        print(server.port, flush=True)
        server.serve_forever()


def _teach_moto() -> None:
    from moto.s3 import models, responses

    asked = {"retention": "GetObjectRetention", "legal-hold": "GetObjectLegalHold"}
    responses.ACTION_MAP["KEY"]["GET"].update(asked)
    permission, get_object = models.FakeBucket.get_permission, responses.S3Response.get_object
    honest = responses.S3Response.serialized

    def get_permission(self: Any, action: str, resource: str) -> Any:
        found = [name for word, name in asked.items() if word in _ASKED.query] if action == "s3:GetObject" else []
        return permission(self, f"s3:{found[0]}" if found else action, resource)

    def get_object_or_retention(self: Any) -> Any:
        if "retention" not in _ASKED.query:
            return get_object(self)
        key, _ = self._get_key()
        if key.lock_mode is None:
            return 404, {}, "<Error><Code>NoSuchObjectLockConfiguration</Code></Error>"
        until = f"<RetainUntilDate>{key.lock_until}</RetainUntilDate>"
        return 200, {}, f"<Retention><Mode>{key.lock_mode}</Mode>{until}</Retention>"

    def list_object_versions(self: Any, bucket_name: str, *, key_marker: str | None = None, **words: Any) -> Any:
        _ASKED.page = key_marker or "", words.get("max_keys") or 1000
        try:
            return listing(self, bucket_name, key_marker=key_marker, **words)
        finally:
            _ASKED.page = None

    def iterlists(self: Any) -> Iterator[Any]:
        if (page := getattr(_ASKED, "page", None)) is None:
            yield from iterating(self)
            return
        given = 0
        for key in sorted(key for key in self if key >= page[0]):
            yield key, self.getlist(key)
            if given > page[1]:
                return
            given += len(self.getlist(key)) * (key != page[0])

    class Row(models.FakeKey):
        __module__ = models.__name__  # moto reads a service's name in it

        def __del__(self) -> None:
            """The value is another key's."""

    def copied(self: Any, _: Any) -> Any:
        clone = object.__new__(Row if isinstance(self, models.FakeKey) else type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    def serialized(self: Any, action_result: Any) -> Any:
        if "encoding-type=url" in _ASKED.query and isinstance(action_result.result, dict):
            action_result.result["EncodingType"] = "url"
            for kind in ("Versions", "DeleteMarkers", "Uploads"):
                for one in action_result.result.get(kind, []):
                    one["Key"] = quote(one["Key"])
        return honest(self, action_result)

    def delete_bucket(self: Any, bucket_name: str) -> Any:
        if (gone := deleting(self, bucket_name)) is not None:  # its next bucket of that name had the tags again
            self.tagger.delete_all_tags_for_resource(gone.arn)
        return gone

    models.FakeKey.__deepcopy__ = models.FakeDeleteMarker.__deepcopy__ = copied
    iterating, models._VersionedKeyStore.iterlists = models._VersionedKeyStore.iterlists, iterlists
    listing, models.S3Backend.list_object_versions = models.S3Backend.list_object_versions, list_object_versions
    deleting, models.S3Backend.delete_bucket = models.S3Backend.delete_bucket, delete_bucket
    models.FakeBucket.get_permission = get_permission
    responses.S3Response.serialized = serialized
    responses.S3Response.get_object = get_object_or_retention


def _watched(app: Callable[..., Iterable[bytes]], write: Callable[[str], Any]) -> Callable[..., Iterable[bytes]]:
    from moto.s3.models import s3_backends

    one_by_one = threading.Lock()

    def watched(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, owner = environ["PATH_INFO"], environ.get("HTTP_X_AMZ_EXPECTED_BUCKET_OWNER")
        _ASKED.query = environ["QUERY_STRING"]
        said = {"method": environ["REQUEST_METHOD"], "path": path, "query": _ASKED.query, "owner": owner}
        if path == "/moto-api/fill":
            _fill(*_ASKED.query.split("&"))
            start_response("200 OK", [])
            return []
        write(json.dumps(said) + "\n")
        _, account = s3_backends.bucket_accounts.get(path.split("/")[1], (None, owner))
        if owner not in (None, account):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ:
            with one_by_one:  # moto compares and writes in two steps
                return app(environ, start_response)
        return app(environ, start_response)

    return watched


def _fill(bucket: str, count: str) -> None:
    from moto.s3.models import s3_backends

    backend = s3_backends[ACCOUNT]["aws"]
    for n in range(int(count)):
        backend.put_object(bucket, f"k{n:07}", b"x")
        if n % 10 == 0:
            backend.delete_object(bucket, f"k{n:07}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
