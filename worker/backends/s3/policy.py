"""A bucket's policy: what shuts customers out, and what is there beside it.

A quarantine adds one statement to the policy that is there, and takes none away: an explicit Deny counts before every
Allow, of this policy, of an ACL, of an account's own policies. So `release` has nothing to keep and nothing to bring
back: it takes the statement away again.
"""

import json

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends.s3.session import Session

QUARANTINE = "DeprovisionerQuarantine"
TEARDOWN = "DeprovisionerTeardown"
# What the service needs of a bucket in quarantine. It is allowed to nobody by this: it is only not denied.
_SERVICE = (
    *("s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"),
    *("s3:GetBucketTagging", "s3:PutBucketTagging"),
)
_TO_DESTROY = (
    *("s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload"),
    *("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:DeleteBucket"),
    *("s3:GetObjectRetention", "s3:GetObjectLegalHold"),
)


def read(session: Session, bucket: str) -> Json | None:
    """The bucket's policy, None where it has none. Raises Refused where it cannot be read."""
    found = session.call("get_bucket_policy", bucket, expects=("NoSuchBucketPolicy",))
    if "Code" in found:
        return None
    try:
        policy: Json = json.loads(found["Policy"])
        statements(policy)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Refused(f"the policy of bucket {bucket!r} is not one that S3 takes: mend or delete it") from None
    return policy


def write(session: Session, bucket: str, policy: Json | None) -> None:
    """Replace the bucket's policy; S3 has no way to do so only if it is still the one that was read."""
    if policy is None:
        session.call("delete_bucket_policy", bucket)
    else:
        session.call("put_bucket_policy", bucket, Policy=json.dumps(policy))


def statements(policy: Json | None) -> list[Json]:
    """The statements of a policy: it may have one alone, without a list."""
    found = (policy or {}).get("Statement", [])
    return list(found) if isinstance(found, list) else [dict(found)]


def has(policy: Json | None, sid: str) -> bool:
    """Whether one of the statements is ours."""
    return any(one.get("Sid") == sid for one in statements(policy))


def shut(session: Session, bucket: str, policy: Json | None) -> Json:
    """The policy with the statement of a quarantine."""
    if has(policy, QUARANTINE) or has(policy, TEARDOWN):
        return policy or {}
    beside = {"Version": "2012-10-17"} if policy is None else policy
    return beside | {"Statement": [*statements(policy), _deny(session, QUARANTINE, bucket, _SERVICE)]}


def opened(policy: Json | None) -> Json | None:
    """The policy without the statement of a quarantine; None where nothing else was there."""
    if not has(policy, QUARANTINE):
        return policy
    left = [one for one in statements(policy) if one.get("Sid") != QUARANTINE]
    return (policy or {}) | {"Statement": left} if left else None


def for_teardown(session: Session, bucket: str) -> Json:
    """The policy of a bucket that is being destroyed; whatever was there before is gone."""
    return {"Version": "2012-10-17", "Statement": [_deny(session, TEARDOWN, bucket, (*_SERVICE, *_TO_DESTROY))]}


def _deny(session: Session, sid: str, bucket: str, but: tuple[str, ...]) -> Json:
    """Deny everything but these actions to everybody. The service is no exception, so no name can be mistyped."""
    arn = f"arn:{session.endpoint.partition}:s3:::{bucket}"
    return {"Sid": sid, "Effect": "Deny", "Principal": "*", "NotAction": list(but), "Resource": [arn, f"{arn}/*"]}
