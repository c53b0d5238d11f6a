"""Changes of an ACL user, each fenced: a worker that stood still between its checks and the change makes it no more."""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis import exceptions

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Different, Same, Still
from worker.backends.redis import identity, keys
from worker.backends.redis.session import Session, code_of

Command = tuple[str, ...]
# What the user of `_ending_with_the_take_over` may run.
_RIGHTS = ("+acl|getuser", "+acl|setuser", "+client|kill")


def take_over(session: Session, manifest: Json) -> None:
    """Keep each worker that is at a change of this user from its end, wherever it stands.

    A generation key that is written anew fails the EXEC of those that watch it. Those that cannot watch it, on a full
    server, lose their connection with their user. Raises OutOfService where the server takes no writes.
    """
    session.execute_command("ACL", "DELUSER", helper(manifest))
    if not keys.rewrite(session, manifest):
        fence(session, manifest)


def fence(session: Session, manifest: Json) -> None:
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


def if_still_ours(session: Session, manifest: Json, *commands: Command) -> list[Any]:
    """Run commands that scripts may not run, if the generation key stays untouched from the check until then.

    Every teardown removes that key last: a worker that was paused cannot reach a new owner of the names. No WATCH
    covers the user itself, so the same transaction reads it: a user that took the name in that moment is made again.
    """
    return _if_still_ours(session, manifest, lambda: list(commands), lambda asked: _in_one_message(session, asked))


def if_claimed(session: Session, manifest: Json, still: Still, commands: Callable[[Json], list[Command]]) -> None:
    """The same, if the claim is still there: `still` is asked when no `take_over` can be missed any more.

    `commands` makes them from the user as it is; none are run where it makes none.
    """

    def checked() -> list[Command]:
        user = identity.acl_user(session, manifest["user"])
        still()
        return [] if user is None else commands(user)

    def alone(asked: list[Command]) -> list[Any]:
        with _ending_with_the_take_over(session, manifest) as connection:
            still()
            connection.send_packed_command(connection.pack_commands(asked))
            return [connection.read_response() for _ in asked]

    _if_still_ours(session, manifest, checked, alone)


def _if_still_ours(
    session: Session,
    manifest: Json,
    commands: Callable[[], list[Command]],
    without_memory: Callable[[list[Command]], list[Any]],
) -> list[Any]:
    name = manifest["user"]
    with session.pipeline() as pipe:
        pipe.watch(keys.generation_key(manifest))
        if not isinstance(seen := identity.judge(session, manifest), Same):
            if isinstance(seen, Different):
                raise Refused(seen.why)
            raise Transient("the namespace is no longer there; trying again")
        if not (acts := commands()):
            return []
        asked: list[Command] = [("ACL", "GETUSER", name), *acts]
        pipe.multi()
        for command in asked:
            pipe.execute_command(*command)
        try:
            before, *answers = pipe.execute()
        except exceptions.WatchError as error:
            raise Transient("the generation key was changed during the check; trying again") from error
        except exceptions.ResponseError as error:
            if code_of(error) != "OOM":
                raise
            before, *answers = without_memory(asked)
    if before is None and acts[0][:2] == ("ACL", "SETUSER"):  # there was none, so this made one
        session.execute_command("ACL", "DELUSER", name)
        raise Transient(f"user {name!r} was removed during the check; trying again")
    if before is not None and not identity.is_marked(identity.read_user(before), manifest):
        session.execute_command("ACL", "SETUSER", name, "reset", *_rules(before))
        session.save_acl()
        raise Refused(
            f"user {name!r} was replaced by another between check and {' '.join(acts[0][:2])}; the other one was "
            "made again with its passwords and rights, and its connections may have been closed"
        )
    return answers


def _in_one_message(session: Session, asked: list[Command]) -> list[Any]:
    """The same without a transaction: a Redis whose memory is full queues no command, not even one that frees memory.

    So no WATCH protects a new owner of the name here; what the message's first command read makes its user again.
    """
    with session.pipeline(transaction=False) as pipe:
        for command in asked:
            pipe.execute_command(*command)
        return pipe.execute()


@contextmanager
def _ending_with_the_take_over(session: Session, manifest: Json) -> Iterator[Any]:
    """A connection for a message without a transaction, which `take_over` ends: it removes the connection's user.

    The connection is made once. A pool would make another one for a worker that wakes.
    """
    name, password = helper(manifest), secrets.token_urlsafe(24)
    digest = hashlib.sha256(password.encode()).hexdigest()
    session.execute_command("ACL", "SETUSER", name, "reset", "on", f"#{digest}", *_RIGHTS)
    try:
        with session.server.connect(database=0, account=(name, password)) as there:
            pool = there.connection_pool
            connection = pool.get_connection()
            try:
                yield connection
            finally:
                pool.release(connection)
    finally:
        session.execute_command("ACL", "DELUSER", name)


def helper(manifest: Json) -> str:
    """The user of a connection that is to end with the next `take_over`."""
    return f"{identity.OURS}shut:{manifest['generation']}"


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
