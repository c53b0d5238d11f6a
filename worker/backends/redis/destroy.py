"""Quarantine an ACL user, which can be undone, and tear it down with its keys, which cannot."""

from typing import Any

from redis import exceptions

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same, Still
from worker.backends.redis import identity, keys
from worker.backends.redis.session import Server, Session, code_of

# SCAN returns for certain only the keys that stay during the scan: repeat it until a pass finds nothing.
MAX_PASSES = 100


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """No login, no connection, and the change on disk; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        still()
        _quarantine(session, manifest)


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`; see the Protocol."""
    with server.connect() as session:
        still()
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
    """False when there is nothing of the resource on the server. Writes no key: a full server takes none."""
    seen = identity.judge(session, manifest)
    if isinstance(seen, Absent):
        return False
    if isinstance(seen, Different):
        raise Refused(seen.why)
    if identity.acl_user(session, manifest["user"]) is not None:
        _if_still_ours(session, manifest, "ACL", "SETUSER", manifest["user"], "off")
        session.execute_command("CLIENT", "KILL", "USER", manifest["user"])  # `off` leaves its connections alive
        session.save_acl()
    return True


def _destroy(session: Session, manifest: Json) -> Json:
    _fence(session, manifest)
    unlinked = 0
    for _ in range(MAX_PASSES):
        if (done := keys.unlink_pass(session, manifest)) == 0:
            break
        unlinked += done
    else:
        raise Transient(f"keys under {manifest['prefix']!r} keep appearing: another client writes them")
    if identity.acl_user(session, manifest["user"]) is not None:
        identity.identify(session)  # a server of an older version: once the user is gone, its key proves nothing
    users = _if_still_ours(session, manifest, "ACL", "DELUSER", manifest["user"])
    session.save_acl()  # before the generation key goes: while the key is there, the next attempt does this again
    keys.unlink_generation(session, manifest)
    return {"keys_unlinked": unlinked, "users_removed": users}


def _fence(session: Session, manifest: Json) -> None:
    """Write the generation key where it was flushed or evicted, or where an older version made the resource.

    The user is read after the key is written. If it still bears the mark, no other worker has ended this teardown, and
    nobody else has the names: a teardown that ends from now on removes this key, and each UNLINK compares it.
    """
    if keys.generation(session, manifest) is not None:
        return  # each UNLINK compares it
    if identity.acl_user(session, manifest["user"]) is None:
        keys.take_over_older(session, manifest)
        return
    planted = keys.plant(session, manifest)
    if planted and not identity.is_marked(identity.acl_user(session, manifest["user"]), manifest):
        keys.unlink_generation(session, manifest)
        raise Transient(f"user {manifest['user']!r} was removed or replaced during the check; trying again")


def _if_still_ours(session: Session, manifest: Json, *command: str) -> Any:
    """Run a command that scripts may not run, if the generation key stays untouched from the check until then.

    Every teardown removes that key last: a worker that was paused cannot reach a new owner of the names. No WATCH
    covers the user itself, so the same transaction reads it: a user that took the name in that moment is made again.
    """
    name = manifest["user"]
    with session.pipeline() as pipe:
        pipe.watch(keys.generation_key(manifest))
        if not isinstance(seen := identity.judge(session, manifest), Same):
            if isinstance(seen, Different):
                raise Refused(seen.why)
            raise Transient("the namespace is no longer there; trying again")
        pipe.multi()
        pipe.execute_command("ACL", "GETUSER", name)
        pipe.execute_command(*command)
        try:
            before, answer = pipe.execute()
        except exceptions.WatchError as error:
            raise Transient("the generation key was changed during the check; trying again") from error
        except exceptions.ResponseError as error:
            if code_of(error) != "OOM":
                raise
            before, answer = _in_one_message(session, name, command)
    if before is None and command[:2] == ("ACL", "SETUSER"):  # there was none, so this made one
        session.execute_command("ACL", "DELUSER", name)
        raise Transient(f"user {name!r} was removed during the check; trying again")
    if before is not None and not identity.is_marked(identity.read_user(before), manifest):
        session.execute_command("ACL", "SETUSER", name, "reset", *_rules(before))
        session.save_acl()
        raise Refused(
            f"user {name!r} was replaced by another between check and {' '.join(command[:2])}; the other one was "
            "made again with its passwords and rights, and its connections may have been closed"
        )
    return answer


def _in_one_message(session: Session, name: str, command: tuple[str, ...]) -> list[Any]:
    """The same without a transaction: a Redis whose memory is full queues no command, not even one that frees memory.

    So no WATCH protects a new owner of the name here; what the message's first command read makes its user again.
    """
    with session.pipeline(transaction=False) as pipe:
        pipe.execute_command("ACL", "GETUSER", name)
        pipe.execute_command(*command)
        return pipe.execute()


def _rules(user: Json) -> list[str]:
    """What makes a user again that ACL GETUSER answered; `databases` is Valkey's, from version 9 on."""
    parts = ("commands", "keys", "channels", "databases")
    root, *selectors = (" ".join(one.get(part, "") for part in parts) for one in (user, *user["selectors"]))
    return [
        *user["flags"],
        *(f"#{digest}" for digest in user["passwords"]),
        *root.split(),
        *(f"({s})" for s in selectors),
    ]
