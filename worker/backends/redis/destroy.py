"""Tear an ACL user down with its keys, which cannot be undone."""

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different
from worker.backends.fleet import tell
from worker.backends.redis import changes, identity, keys
from worker.backends.redis.quarantine import shut
from worker.backends.redis.session import Server, Session

# SCAN returns for certain only the keys that stay during the scan: repeat it until a pass finds nothing.
MAX_PASSES = 100


def teardown(server: Server, manifest: Json) -> Json:
    """Writers first, then keys until a clean pass, then the user, and the generation key last."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        if not _shut_out(session, manifest):
            return {}
        try:
            with server.turn():
                return _destroy(session, manifest)
        except keys.GenerationVanishedError:
            if isinstance(identity.judge(session, manifest), Absent):
                return {}  # another worker finished this teardown
            raise Transient(
                f"generation key {keys.generation_key(manifest)!r} vanished during the teardown; trying again"
            ) from None


def _shut_out(session: Session, manifest: Json) -> bool:
    """False when there is nothing of the resource on the server. Writes no key: a full server takes none."""
    seen = identity.judge(session, manifest)
    if isinstance(seen, Absent):
        return False
    if isinstance(seen, Different):
        raise Refused(seen.why)
    if (user := identity.acl_user(session, manifest["user"])) is not None:
        changes.if_still_ours(session, manifest, *shut(manifest["user"], user))
        session.save_acl()
    return True


def _destroy(session: Session, manifest: Json) -> Json:
    changes.fence(session, manifest)
    unlinked = 0
    for _ in range(MAX_PASSES):
        before = unlinked
        for done in keys.unlink_pass(session, manifest):
            unlinked += done
            tell(unlinked, None, "keys")
        if unlinked == before:
            break
    else:
        raise Transient(f"keys under {manifest['prefix']!r} keep appearing: another client writes them")
    if identity.acl_user(session, manifest["user"]) is not None:
        identity.identify(session)  # a server of an older version: once the user is gone, its key proves nothing
    gone = ("ACL", "DELUSER", manifest["user"], changes.helper(manifest))
    (users,) = changes.if_still_ours(session, manifest, gone)
    session.save_acl()  # before the generation key goes: while the key is there, the next attempt does this again
    keys.unlink_generation(session, manifest)
    return {"keys_unlinked": unlinked, "users_removed": users}
