"""Which of the documented rights the service's account lacks, by requests that change nothing."""

import uuid
from collections.abc import Iterator

from outbox.rows import Json
from worker.backends import Finding
from worker.backends.s3.quarantine import PROBE
from worker.backends.s3.session import RIGHTS, Session

# Requests that a bucket answers, whatever it holds, and that change nothing.
_READS: tuple[tuple[str, Json], ...] = (
    ("get_bucket_tagging", {}),
    ("get_bucket_policy", {}),
    ("list_object_versions", {"MaxKeys": 1}),
    ("list_multipart_uploads", {"MaxUploads": 1}),
    ("get_object_retention", {"Key": PROBE}),
    ("get_object_legal_hold", {"Key": PROBE}),
)
# Requests that would change a bucket, and are only sent to one that does not exist.
_WRITES: tuple[tuple[str, Json], ...] = (
    ("put_bucket_tagging", {"Tagging": {"TagSet": []}}),
    ("put_bucket_policy", {"Policy": "{}"}),
    ("delete_bucket_policy", {}),
    ("delete_bucket", {}),
    ("delete_objects", {"Delete": {"Objects": [{"Key": PROBE}]}}),
    ("abort_multipart_upload", {"Key": PROBE, "UploadId": PROBE}),
    (
        "put_public_access_block",
        {"PublicAccessBlockConfiguration": {"BlockPublicAcls": True}},
    ),
)


def missing(session: Session, bucket: str) -> Iterator[Finding]:
    """The rights to read a bucket that the account lacks."""
    for operation, words in _READS:
        if session.is_denied(operation, bucket, **words):
            yield _finding(session, operation, bucket)


def missing_everywhere(session: Session) -> Iterator[Finding]:
    """The rights to change buckets that the account lacks, as far as an endpoint tells before the bucket is there."""
    if session.is_denied("list_buckets"):
        yield _finding(session, "list_buckets", None)
    nowhere = f"bkt-{uuid.uuid4()}"
    for operation, words in (*_READS, *_WRITES):
        if session.is_denied(operation, nowhere, **words):
            yield _finding(session, operation, None)


def _finding(session: Session, operation: str, bucket: str | None) -> Finding:
    name = "".join(word.capitalize() for word in operation.split("_"))
    rights = RIGHTS[name]
    arn = f"arn:{session.endpoint.partition}:s3:::{bucket or '*'}"
    shown = ", ".join(f'"{right}"' for right in rights)
    statement = f'{{"Effect": "Allow", "Action": [{shown}], "Resource": ["{arn}", "{arn}/*"]}}'
    on = f" on {bucket}" if bucket else ""
    return Finding("right_missing", f"the service's account lacks {' and '.join(rights)}{on}", statement)
