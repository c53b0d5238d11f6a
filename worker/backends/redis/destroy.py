"""An ACL user and its keys go: out of use first, reversibly, and then for good."""

from typing import Any

from redis import exceptions

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same
from worker.backends.redis import identity, keys
from worker.backends.redis.session import Server, Session

# SCAN promises only keys that stay throughout: pass until one pass finds nothing, but not for ever.
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
                return {}  # another worker has just finished this very teardown
            raise Transient(f"generation key {keys.generation_key(manifest)!r} vanished meanwhile") from None


def _quarantine(session: Session, manifest: Json) -> bool:
    """False when there is nothing of the resource on the server."""
    if isinstance(identity.judge(session, manifest), Absent):
        return False
    if identity.acl_user(session, manifest["user"]) is not None:
        commands = [("ACL", "SETUSER", manifest["user"], "off"), ("PERSIST", keys.generation_key(manifest))]
        # A tenant may have removed its own generation key, or let it expire in a moment; the user's mark still
        # proves that the prefix is its own.
        if identity.generation(session, manifest) is None:
            commands.append(("SET", keys.generation_key(manifest), manifest["generation"], "NX"))
        _if_still_ours(session, manifest, *commands)
        session.execute_command("CLIENT", "KILL", "USER", manifest["user"])  # `off` leaves its connections alive
        session.save_acl()
    elif isinstance(seen := identity.judge(session, manifest), Different):
        raise Refused(seen.why)
    return True


def _destroy(session: Session, manifest: Json) -> Json:
    unlinked = 0
    for _ in range(MAX_PASSES):
        if (done := keys.unlink_pass(session, manifest)) == 0:
            break
        unlinked += done
    else:
        raise Transient(f"keys under {manifest['prefix']!r} keep appearing: somebody else writes them")
    (users,) = _if_still_ours(session, manifest, ("ACL", "DELUSER", manifest["user"]))
    session.save_acl()  # before the generation key goes: as long as that stands, an attempt comes by here
    keys.unlink_generation(session, manifest)
    return {"keys_unlinked": unlinked, "users_removed": users}


def _if_still_ours(session: Session, manifest: Json, *commands: tuple[str, ...]) -> list[Any]:
    """Run commands that no script may run, unless the generation key is touched between the check and them.

    Every teardown ends by removing that key: a worker that stood still cannot reach a new owner of the names.
    """
    with session.pipeline() as pipe:
        pipe.watch(keys.generation_key(manifest))
        if not isinstance(seen := identity.judge(session, manifest), Same):
            if isinstance(seen, Different):
                raise Refused(seen.why)
            raise Transient("the namespace is no longer there: looking again")
        pipe.multi()
        for command in commands:
            pipe.execute_command(*command)
        try:
            return list(pipe.execute())
        except exceptions.WatchError as error:
            raise Transient("the generation key was touched meanwhile: looking again") from error
