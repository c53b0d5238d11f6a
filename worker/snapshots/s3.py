"""A bucket of S3, or of a store that speaks S3, as `s3://bucket/prefix?endpoint=URL&region=NAME`.

Keys come from where boto3 looks for them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, the machine's role.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from outbox.errors import Refused, Transient
from worker.snapshots.sealed import Read, Write

# An upload has at most 10,000 parts of at least 5 MiB: after each thousand, a part is one of these larger.
PART = 16 << 20
PARTS_OF_A_SIZE = 1_000


class Bucket:
    """Objects under a prefix. An upload in parts is no object until it is completed."""

    def __init__(self, url: str) -> None:
        try:
            import boto3  # noqa: PLC0415
            from botocore.config import Config  # noqa: PLC0415
            from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
        except ImportError as error:
            raise Refused(
                "a snapshot store in a bucket needs boto3: run `pip install 'deprovisioner[s3]'` where workers run"
            ) from error
        parts = urlsplit(url)
        words = parse_qs(parts.query)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._errors = (BotoCoreError, ClientError)
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=words.get("endpoint", [None])[0],
            region_name=words.get("region", [None])[0],
            config=Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"}),
        )

    @contextmanager
    def writing(self, name: str) -> Iterator[Write]:
        """See Store."""
        with self._told():
            upload = _Upload(self._client, self._place(name))
        try:
            yield self._guarded(upload.write)
            with self._told():
                upload.complete()
        except BaseException:
            with contextlib.suppress(*self._errors):  # the first error counts
                upload.abort()
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[Read]:
        """See Store."""
        with self._told():
            body = self._client.get_object(**self._place(name))["Body"]
        try:
            yield self._guarded(body.read)
        finally:
            body.close()

    def remove(self, name: str) -> None:
        """See Store."""
        place = self._place(name)
        with self._told():
            listed = self._client.list_multipart_uploads(Bucket=place["Bucket"], Prefix=place["Key"])
            for upload in listed.get("Uploads", []):
                if upload["Key"] == place["Key"]:
                    self._client.abort_multipart_upload(**place, UploadId=upload["UploadId"])
            self._client.delete_object(**place)

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{name}" if self._prefix else name}

    def _guarded(self, act: Any) -> Any:
        def guarded(words: Any) -> Any:
            with self._told():
                return act(words)

        return guarded

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise Transient(f"the snapshot store s3://{self._bucket}: {error}") from error


class _Upload:
    """One upload in parts; a part in memory at a time."""

    def __init__(self, client: Any, place: dict[str, str]) -> None:
        self._client, self._place = client, place
        self._id = client.create_multipart_upload(**place)["UploadId"]
        self._parts: list[dict[str, Any]] = []
        self._left = bytearray()

    def write(self, data: bytes) -> None:
        self._left += data
        if len(self._left) >= PART * (1 + len(self._parts) // PARTS_OF_A_SIZE):
            self._send()

    def complete(self) -> None:
        if self._left or not self._parts:
            self._send()
        parts = {"Parts": self._parts}
        self._client.complete_multipart_upload(**self._place, UploadId=self._id, MultipartUpload=parts)

    def abort(self) -> None:
        self._client.abort_multipart_upload(**self._place, UploadId=self._id)

    def _send(self) -> None:
        number = len(self._parts) + 1
        sent = self._client.upload_part(**self._place, UploadId=self._id, PartNumber=number, Body=bytes(self._left))
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self._left.clear()
