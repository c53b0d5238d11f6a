"""Quarantine a bucket and give it back as it was; each is seen to hold."""

import time

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same, Still
from worker.backends.s3 import identity, policy, turns
from worker.backends.s3.session import Server, Session, granted

PROBE = "deprovisioner-probe"  # a key that no customer has; what is asked of it changes nothing
# A policy that was changed holds on every part of the endpoint "in seconds, in rare cases longer" (AWS's manual).
SETTLES_SECONDS = 15.0
_POLL_SECONDS = 0.2


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """Deny the bucket and all of its objects to everybody, and see that the endpoint does; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    session, bucket = server.session(), manifest["bucket"]
    match identity.judge(session, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            return
        case Same():
            pass
    now = policy.read(session, bucket)
    if policy.has(now, policy.TEARDOWN):
        return  # its destruction has begun, which shuts customers out too
    if not policy.statements(now) and _is_denied(session, bucket):
        raise Refused(f"no policy denies it, and yet {granted('GetObjectRetention', bucket)}")
    _change(session, manifest, "quarantine", still)
    if not _settled(session, bucket, denied=True):
        raise Refused(
            f"the endpoint keeps the policy that shuts bucket {bucket!r}, and lets requests through all the same: it "
            'enforces no bucket policies on its users. Set `grace = "0s"` for this backend'
        )


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`, and see that the endpoint denies nothing any more; see the Protocol."""
    session, bucket = server.session(), manifest["bucket"]
    if not isinstance(identity.judge(session, manifest), Same):
        raise Refused("the bucket is not the one of this resource, or no longer there")
    if policy.has(policy.read(session, bucket), policy.TEARDOWN):
        raise Refused(f"the destruction of bucket {bucket!r} has begun: it cannot be given back")
    _change(session, manifest, "release", still)
    alone = not policy.statements(policy.read(session, bucket))  # a statement of the customer's may deny it too
    if alone and not _settled(session, bucket, denied=False):
        raise Transient(f"the endpoint still denies requests to bucket {bucket!r}, though no policy does; trying again")


def _change(session: Session, manifest: Json, verb: str, still: Still) -> None:
    turn = turns.take(session, manifest, verb)
    still()
    turns.must_have(session, manifest, turn)
    _apply(session, manifest["bucket"], verb)
    # A worker may have stood still since it asked for the turn: then the last word is the other one's.
    now = turns.current(session, manifest)
    if now is not None and now != turn:
        _apply(session, manifest["bucket"], now.verb)
        raise Transient(f"another worker changed bucket {manifest['bucket']!r} meanwhile: its change stands")


def _apply(session: Session, bucket: str, verb: str) -> None:
    before = policy.read(session, bucket)
    after = policy.shut(session, bucket, before) if verb == "quarantine" else policy.opened(before)
    if after != before:
        policy.write(session, bucket, after)


def _settled(session: Session, bucket: str, *, denied: bool) -> bool:
    until = time.monotonic() + SETTLES_SECONDS
    while _is_denied(session, bucket) != denied:
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _is_denied(session: Session, bucket: str) -> bool:
    return session.is_denied("get_object_retention", bucket, Key=PROBE)
