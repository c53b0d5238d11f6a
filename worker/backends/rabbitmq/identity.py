"""What the server shows under a manifest's names, and whether it is the manifest's vhost and user."""

import uuid
from collections.abc import Iterator

from outbox.errors import OutOfService, Refused
from outbox.kinds.rabbitmq import KIND
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same
from worker.backends.rabbitmq import marks
from worker.backends.rabbitmq.session import FEW, OURS, Server, Session

# A user without password, tag that means anything to RabbitMQ, or permission: its tags name the server.
SERVER_USER = f"{OURS}server"
_ID, _NODE = f"{OURS}id:", f"{OURS}node:"
_SPACE = uuid.UUID("5f0c7a0e-1f0a-4f43-9d5b-9e0f6f1c6c55")


def inspect(server: Server, manifest: Json) -> Observation:
    """See the Protocol."""
    with server.connect() as session:
        return judge(session, manifest)


def judge(session: Session, manifest: Json) -> Observation:
    """Read cluster, vhost, user and their marks, and say: absent, the same, or a different one.

    Absent means that nothing of the manifest is there: no vhost and no user of its names, none with its mark.
    """
    here = server_id(session, nodes(session))
    vhost, user = read_vhost(session, manifest), read_user(session, manifest)
    evidence: Json = {
        "server": here,
        "vhost": None if vhost is None else f"{manifest['vhost']} {marks.shown(marks.of(vhost))}".strip(),
        "user": None if user is None else f"{manifest['user']} {marks.shown(marks.of(user))}".strip(),
    }
    ours = [one for one in (vhost, user) if is_marked(one, manifest)]
    # Where both names are there, a copy of the mark elsewhere changes nothing.
    whole = vhost is not None and (user is not None or not manifest["user"])
    copies = [] if whole else list(_bearers(session, manifest))
    marked = bool(ours or copies)
    if manifest["server"] is not None and here != manifest["server"]:
        left = marked or vhost is not None or user is not None
        what = "something bears its names or its mark" if left else "nothing of this resource is"
        why = f"the server is {here!r}, not {manifest['server']!r}: {what} on this server"
        return Different(evidence | {"nothing_here": not left}, why, marked)
    for word, found in (("vhost", vhost), ("user", user)):
        if found is not None and found not in ours:
            why = f"{word} {manifest[word]!r} is not the one that was made for this resource"
            return Different(evidence, why, marked)
    if copies:
        why = f"{copies[0]} bears the mark of this resource: a person copied it; find its owner"
        return Different(evidence | {"marked": copies[:3]}, why, marked)
    if ours:
        return Same(evidence)
    if server_id(session, nodes(session)) != here:  # until now: what another server did not show is not absent
        raise OutOfService("the server was replaced by another one while it was read")
    return Absent(evidence)


def read_vhost(session: Session, manifest: Json) -> Json | None:
    """The vhost of that name, None when there is none."""
    found: Json | None = session.get("vhosts", manifest["vhost"], **FEW)
    return found


def read_user(session: Session, manifest: Json) -> Json | None:
    """The user of that name, None when there is none, or the manifest has none."""
    found: Json | None = session.get("users", manifest["user"]) if manifest["user"] else None
    return found


def is_marked(record: Json | None, manifest: Json) -> bool:
    """Whether this was made or adopted for the resource, and for no other."""
    return marks.generations(marks.of(record)) == [manifest["generation"]]


def _bearers(session: Session, manifest: Json) -> Iterator[str]:
    """Which vhosts and users of other names bear the resource's mark, in words."""
    for word in ("vhost", "user"):
        for one in session.each(f"{word}s", columns="name,tags"):
            if one["name"] != manifest[word] and manifest["generation"] in marks.generations(marks.of(one)):
                yield f"{word} {one['name']!r}"


def nodes(session: Session, *, all_running: bool = False) -> list[str]:
    """The names of the cluster's nodes. Raises OutOfService where its word does not count now.

    A node that sees the others down may be the one that is cut off; so only a majority is believed. `all_running`:
    what is destroyed must be destroyed on every node.
    """
    found: list[Json] = session.need("nodes", columns="name,running,partitions")
    blind = [one["name"] for one in found if one.get("running") and "partitions" not in one]
    if blind and len(found) > 1:
        raise OutOfService(
            f"node {blind[0]!r} does not tell whether the cluster is partitioned: it started just now, or "
            "its statistics are switched off (management_agent.disable_metrics_collector)"
        )
    if split := [one["name"] for one in found if one.get("partitions")]:
        raise OutOfService(f"the cluster is partitioned, as node {split[0]!r} sees it: none of its parts is believed")
    down = [one["name"] for one in found if not one.get("running")]
    if 2 * len(down) >= len(found):
        raise OutOfService(f"nodes are down ({', '.join(down[:3])}): only a majority of the cluster is believed")
    if all_running and down:
        raise OutOfService(
            f"node {down[0]!r} is down, and may hold queues: start it, or take it out of the cluster "
            f"(rabbitmqctl forget_cluster_node {down[0]})"
        )
    return sorted(one["name"] for one in found)


def server_id(session: Session, names: list[str]) -> str:
    """What identifies the cluster: as its user `deprovisioner:server` says it, or else as `identify` would make it.

    Definitions can be copied to another cluster, with that user and every vhost. So it also names the nodes that were
    there, and counts only while one of them is: nodes may be added and removed, but not all at once.
    """
    tags = marks.of(session.get("users", SERVER_USER))
    known = [tag.removeprefix(_NODE) for tag in tags if tag.startswith(_NODE)]
    told = [tag.removeprefix(_ID) for tag in tags if tag.startswith(_ID)]
    if len(told) == 1 and set(known) & set(names):
        return told[0]
    cluster = session.need("global-parameters", "internal_cluster_id")
    return str(uuid.uuid5(_SPACE, f"{cluster['value']} {' '.join(names)}"))


def identify(session: Session) -> str:
    """The cluster's identity, written down with the nodes that it has now. Workers that race write the same."""
    names = nodes(session)
    here = server_id(session, names)
    tags = [f"{_ID}{here}", *(f"{_NODE}{name}" for name in names)]
    if sorted(marks.of(session.get("users", SERVER_USER))) != sorted(tags):
        session.put("users", SERVER_USER, password_hash="", tags=tags)
    return here


def must_be_right_server(session: Session, manifest: Json) -> None:
    """Raises Refused on another server than the manifest's."""
    here = server_id(session, nodes(session))
    if manifest["server"] is not None and here != manifest["server"]:
        raise Refused(f"the server is {here!r}, not {manifest['server']!r}: the wrong server, or one that has moved")


def must_be_ours(session: Session, manifest: Json) -> Same | Absent:
    """What is there, where it is nobody else's. Raises Refused."""
    seen = judge(session, manifest)
    if isinstance(seen, Different):
        raise Refused(seen.why)
    return seen


def is_protected(server: Server, manifest: Json) -> str | None:
    """Why the manifest's names are never adopted or torn down, None where they may be."""
    for word in ("vhost", "user"):
        name = manifest[word]
        if name in server.protected or str(name).startswith(OURS):
            return f"{word} {name!r} is protected: it is never adopted or torn down"
    return None


def must_not_be_protected(server: Server, manifest: Json) -> None:
    """Raises Refused for vhosts and users that are never adopted or torn down, whatever a manifest says."""
    if why := is_protected(server, manifest):
        raise Refused(why)


def locate(server: Server, manifest: Json) -> Observation:
    """See `worker.backends.fleet.locate`; names stay when definitions move to another cluster, and so do tags."""
    with server.connect() as session:
        moved = manifest | {"server": server_id(session, nodes(session))}
        seen = judge(session, moved)
        if isinstance(seen, Same):
            return Same(seen.seen | {"manifest": {field.name: moved[field.name] for field in KIND.fields}})
        return seen
