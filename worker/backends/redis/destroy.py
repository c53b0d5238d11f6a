"""Quarantine an ACL user, which can be undone, and tear it down with its keys, which cannot."""

from typing import Any

from redis import exceptions

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same
from worker.backends.redis import identity, keys
from worker.backends.redis.session import Server, Session

# SCAN returns for certain only the keys that stay during the scan: repeat it until a pass finds nothing.
MAX_PASSES = 100


def quarantine(server: Server, manifest: Json) -> None:
    """No login, no connection, and the change on disk; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        _quarantine(session, manifest)


def release(server: Server, manifest: Json) -> None:
    """Undo `quarantine`; see the Protocol."""
    with server.connect() as session:
        if not isinstance(identity.judge(session, manifest), Same):
            raise Refused("the namespace is not the one of this resource, or no longer there")
        session.execute_command("ACL", "SETUSER", manifest["user"], "on")
        session.save_acl()


def teardown(server: Server, manifest: Json) -> Json:
    """Writers first, then keys until a clean pass, then the user, and the generation key last."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        if not _quarantine(session, manifest):
            return {}
        try:
            return _destroy(session, manifest)
        except keys.GenerationVanishedError:
            if isinstance(identity.judge(session, manifest), Absent):
                return {}  # another worker finished this teardown
            raise Transient(
                f"generation key {keys.generation_key(manifest)!r} vanished during the teardown; trying again"
            ) from None


def _quarantine(session: Session, manifest: Json) -> bool:
    """False when there is nothing of the resource on the server."""
    seen = identity.judge(session, manifest)
    if isinstance(seen, Absent):
        return False
    if isinstance(seen, Different):
        raise Refused(seen.why)
    if identity.acl_user(session, manifest["user"]) is not None:
        identity.identify(session)  # a server of an older version: once the user is gone, its key proves nothing
        commands = [("ACL", "SETUSER", manifest["user"], "off"), ("PERSIST", keys.generation_key(manifest))]
        # The tenant may have removed its generation key or set it to expire; the user's mark still proves that the
        # prefix is the tenant's.
        if identity.generation(session, manifest) is None:
            commands.append(("SET", keys.generation_key(manifest), manifest["generation"], "NX"))
        _if_still_ours(session, manifest, *commands)
        session.execute_command("CLIENT", "KILL", "USER", manifest["user"])  # `off` leaves its connections alive
        session.save_acl()
    return True


def _destroy(session: Session, manifest: Json) -> Json:
    unlinked = 0
    for _ in range(MAX_PASSES):
        if (done := keys.unlink_pass(session, manifest)) == 0:
            break
        unlinked += done
    else:
        raise Transient(f"keys under {manifest['prefix']!r} keep appearing: another client writes them")
    (users,) = _if_still_ours(session, manifest, ("ACL", "DELUSER", manifest["user"]))
    session.save_acl()  # before the generation key goes: while the key is there, the next attempt does this again
    keys.unlink_generation(session, manifest)
    return {"keys_unlinked": unlinked, "users_removed": users}


def _if_still_ours(session: Session, manifest: Json, *commands: tuple[str, ...]) -> list[Any]:
    """Run commands that scripts may not run, if the generation key stays untouched from the check until then.

    Every teardown removes that key last: a worker that was paused cannot reach a new owner of the names.
    """
    with session.pipeline() as pipe:
        pipe.watch(keys.generation_key(manifest))
        if not isinstance(seen := identity.judge(session, manifest), Same):
            if isinstance(seen, Different):
                raise Refused(seen.why)
            raise Transient("the namespace is no longer there; trying again")
        pipe.multi()
        for command in commands:
            pipe.execute_command(*command)
        try:
            return list(pipe.execute())
        except exceptions.WatchError as error:
            raise Transient("the generation key was changed during the check; trying again") from error
