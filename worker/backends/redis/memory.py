"""The memory of the control database on Redis: for each installation a key, and an ACL user as its mark.

Keys can be evicted, flushed, replicated and restored from dumps; users cannot, but have no space for notes. Each
change writes both in one transaction that watches the key, so that none lowers what another has written. The mark is
never ahead of the key, unless the key went back in time.
"""

import json
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from redis import exceptions

from outbox.errors import OutOfService, Transient
from outbox.memory import LONGEST, Memory, Moment, nothing, offered, parsed
from outbox.rows import Json
from worker.backends.redis import identity
from worker.backends.redis.session import Server, Session, code_of

OURS = f"{identity.OURS}memory:"  # of the key, of the user, and of the user's channel pattern
TRIES = 100  # each is lost to a write of another worker
SAVE_SECONDS = 60.0  # a server that is killed forgets what the mark has learned for so long; the key may have it
_RULE = re.compile(rf"&{OURS}(\d{{1,19}}):(\d{{1,19}}):([0-9a-f]{{0,64}}):([01])")
# Others may have put anything there; only what can be a memory leaves the server.
_READ = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return false end
if kind ~= 'string' then return {kind, 0} end
local found = redis.call('GET', KEYS[1])
return {kind, #found, #found <= tonumber(ARGV[1]) and found or ''}
"""
# A full server takes it too: what the teardown behind it removes is more.
_SWAP = """#!lua flags=allow-oom
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return false end
return redis.call('SET', KEYS[1], ARGV[2])
"""


@dataclass(frozen=True)
class _Found:
    """What the server has of an installation: the key's text, what that says as JSON and as a memory, and the mark."""

    text: str
    written: Any
    key: Memory | None
    mark: Memory | None

    @property
    def memory(self) -> Memory | None:
        """The later of both, with the key's notes; `lagging` where the key is there and has less than the mark."""
        if self.key is None or self.mark is None:
            return self.key or self.mark
        later = max(self.key, self.mark, key=lambda one: one.least)
        still = any(one.still for one in (self.key, self.mark) if one.epoch == later.epoch)
        lagging = None
        if self.key.least < self.mark.least:
            lagging = self.key.event if self.key.epoch == later.epoch else 0
        return replace(later, still=still, notes=self.key.notes, lagging=lagging)


def remember(server: Server, memory: Memory, least: Moment | None = None) -> Memory | None:
    """See `worker.backends.remember`."""
    with server.connect() as session:
        for _ in range(TRIES):
            with suppress(exceptions.WatchError):
                return _remember(session, memory, least, whole=memory.notes is not None)
    raise Transient("other workers write at this moment what the control database has; trying again")


def recall(server: Server, installation: uuid.UUID) -> Memory | None:
    """See `worker.backends.recall`."""
    with server.connect() as session:
        found = _find(session, session.home, installation).memory
        session.must_be_primary()  # until now: what a server did not show while it became a replica is not absent
        return found


def installations(server: Server) -> list[uuid.UUID]:
    """See `worker.backends.installations`."""
    with server.connect() as session:
        users: Any = session.acl_users()
        names = {*users, *session.scan_iter(match=f"{OURS}*", count=1000)}
        session.must_be_primary()
    found = {_uuid(name.removeprefix(OURS)) for name in names if name.startswith(OURS)}
    return sorted(one for one in found if one)


def _remember(session: Session, memory: Memory, least: Moment | None, *, whole: bool) -> Memory | None:
    """Without `whole`, the key's notes are neither read nor made again: that takes longer than all the rest."""
    name = f"{OURS}{memory.installation}"
    with session.pipeline() as pipe:
        pipe.watch(name)
        found = _find(pipe, session.home, memory.installation, whole=whole)
        left, kept = offered(found.memory, memory, least)
        if not (kept or whole):
            return _remember(session, memory, least, whole=True)
        answer = None if kept else left or nothing(memory.installation)
        if left is None or (left == found.memory and (not kept or (found.key and found.mark))):
            if kept and memory.notes is not None:
                session.save_acl()  # another worker may have written it, and not saved it
            return answer
        text = json.dumps(left.as_json() | ({} if whole else _notes(found.written)))
        if left.lagging is not None:  # the key stays as it is, for all to see; `still` is on the mark
            text = found.text
        pipe.multi()
        pipe.execute_command("SET", name, text)
        pipe.execute_command("ACL", "SETUSER", name, *_rules(left))
        try:
            pipe.execute()
            full = False
        except exceptions.ResponseError as error:
            if not (full := code_of(error) == "OOM"):
                raise
    if full:
        _without_room(session, name, found, text, left)
    _save(session, found.mark, left, soon=memory.notes is not None)
    return answer


def _without_room(session: Session, name: str, found: _Found, text: str, left: Memory) -> None:
    """The same where a full server queues no command. A mark of another worker that this replaced is set again."""
    if not session.eval(_SWAP, 1, name, found.text, text):
        raise exceptions.WatchError
    before = found.mark
    for _ in range(TRIES):
        with session.pipeline(transaction=False) as pipe:  # one message, so hardly anything comes between the two
            pipe.execute_command("ACL", "GETUSER", name)
            pipe.execute_command("ACL", "SETUSER", name, *_rules(left))
            replaced = _mark(left.installation, pipe.execute()[0])
        if replaced in (before, _as_marked(left)):
            return
        before = _as_marked(left)
        left = offered(replaced, left)[0] or left
    raise Transient("other workers write at this moment what the control database has; trying again")


def _find(ask: Any, home: int, installation: uuid.UUID, *, whole: bool = True) -> _Found:
    """Key and mark, by this session or its pipeline. Raises OutOfService where either is no memory."""
    name = f"{OURS}{installation}"
    answer = ask.execute_command("EVAL", _READ, 1, name, LONGEST)
    try:
        if (text := _text(answer)) is None:
            written = key = None
        else:
            written = parsed(text)
            key = Memory.read(written if whole or not _notes(written) else written | {"notes": None})
        if key is not None and key.installation != installation:
            raise ValueError(f"it is that of installation {key.installation}")
    except ValueError as error:
        raise OutOfService(
            f"what the server keeps of the control database, the key {name!r} of database {home}, is no memory: "
            f"{error}; find out who wrote it, then remove it: UNLINK {name}"
        ) from error
    return _Found(text or "", written, key, _mark(installation, ask.execute_command("ACL", "GETUSER", name)))


def _text(answer: list[Any] | None) -> str | None:
    """The key's text. Raises ValueError where it is no memory's."""
    if answer is None:
        return None
    kind, length, *texts = answer
    if kind != "string":
        raise ValueError(f"it is a {kind}")
    if length > LONGEST:
        raise ValueError(f"it has {length} bytes")
    return str(texts[0])


def _notes(written: Any) -> Json:
    """The part of a record that a write without notes leaves as it is."""
    return {"notes": written["notes"]} if isinstance(written, dict) and "notes" in written else {}


def _mark(installation: uuid.UUID, user: Any) -> Memory | None:
    """What the answer of ACL GETUSER says. Raises OutOfService where that is no mark."""
    if user is None:
        return None
    rules = [_RULE.fullmatch(rule) for rule in identity.read_user(user)["channels"]]
    if len(rules) != 1 or rules[0] is None:
        name = f"{OURS}{installation}"
        raise OutOfService(
            f"what the server keeps of the control database, the ACL user {name}, has no mark of ours, but "
            f"{str(user['channels'])[:100]!r}; find out who changed it, then remove it: ACL DELUSER {name}"
        )
    epoch, event, digest, still = rules[0].groups()
    return Memory(installation, int(epoch), int(event), digest, still == "1", notes=())


def _as_marked(memory: Memory) -> Memory:
    return replace(memory, notes=(), lagging=None)


def _rules(memory: Memory) -> tuple[str, ...]:
    """A user that may do nothing, and whose channel pattern says what the memory is."""
    mark = f"&{OURS}{memory.epoch}:{memory.event}:{memory.hash}:{int(memory.still)}"
    return "reset", "resetchannels", mark


def _save(session: Session, before: Memory | None, now: Memory, *, soon: bool) -> None:
    """Write the users to the aclfile: `soon`, or what is no mere progress; else once in SAVE_SECONDS."""
    # Soon: the control database is told of a comparison's write. A destruction's is saved by the teardown itself.
    progress = before is not None and (before.epoch, before.still) == (now.epoch, now.still)
    if progress and not soon and time.monotonic() - session.server.users_saved < SAVE_SECONDS:
        return
    session.save_acl()
    session.server.users_saved = time.monotonic()


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
