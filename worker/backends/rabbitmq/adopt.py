"""Adopt a vhost that exists, with its user; say beforehand whether it could be; and let go of it again."""

import uuid
from collections.abc import Iterator

from outbox.errors import Refused
from outbox.kinds.rabbitmq import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, Finding
from worker.backends.rabbitmq import identity, marks, rights
from worker.backends.rabbitmq.session import OURS, Server, Session


def adopt(server: Server, manifest: Json, generation: uuid.UUID) -> Json:
    """Mark vhost and user with the generation; see the Protocol."""
    with server.connect() as session:
        full = _full(manifest, str(generation), manifest.get("server") or identity.identify(session))
        identity.must_be_right_server(session, full)
        if found := list(_against(session, full)):
            raise Refused("; ".join(finding.what for finding in found))
        for word in ("vhost", "user"):
            _tag(session, full, word)
        # The server checks nothing when it replaces tags: of two adoptions at once, at most one finds its own.
        for word, read in (("vhost", identity.read_vhost), ("user", identity.read_user)):
            if full[word] and not identity.is_marked(read(session, full), full):
                raise Refused(f"{word} {full[word]!r} was taken by another resource at this moment")
    return full


def adoptable(server: Server, manifest: Json) -> list[Finding]:
    """See `worker.backends.fleet.adoptable`."""
    with server.connect() as session:
        if mend := rights.missing(session):
            return [Finding("right_missing", rights.WHAT, mend)]
        full = _full(manifest, manifest.get("generation"), manifest.get("server"))
        here = identity.server_id(session, identity.nodes(session))
        if full["server"] not in (None, here):
            return [Finding("refused", f"the server is {here!r}, not {full['server']!r}", "name the right backend")]
        return list(_against(session, full))


def unmark(server: Server, manifest: Json) -> Json:
    """See `worker.backends.fleet.unmark`; the user first, so that a repetition finds the vhost's mark."""
    identity.must_not_be_protected(server, manifest)
    done = []
    with server.connect() as session:
        identity.must_be_right_server(session, manifest)
        found = {"user": identity.read_user(session, manifest), "vhost": identity.read_vhost(session, manifest)}
        if found["vhost"] is None:
            raise Refused(f"there is no vhost {manifest['vhost']!r} any more")
        for word, record in found.items():
            if set(marks.generations(marks.of(record))) - {manifest["generation"]}:
                raise Refused(f"{word} {manifest[word]!r} is not the one of this resource")
            if marks.note(marks.of(record)) is not None:
                raise Refused(f"{word} {manifest[word]!r} is in quarantine: release it first")
        for word, record in found.items():
            if record is not None and any(tag.startswith(OURS) for tag in marks.of(record)):
                marks.write(session, word, record, marks.without(marks.of(record), OURS))
                done.append(f"{word} {manifest[word]!r}")
    return {"mark_removed_from": done}


def _full(manifest: Json, generation: str | None, server: str | None) -> Json:
    return KIND.manifest(vhost=manifest["vhost"], user=manifest.get("user"), generation=generation, server=server)


def _tag(session: Session, manifest: Json, word: str) -> None:
    """The vhost's or user's mark; nothing is written where it is there."""
    record = (identity.read_vhost if word == "vhost" else identity.read_user)(session, manifest)
    if record is not None and not identity.is_marked(record, manifest):
        marks.write(session, word, record, [*marks.of(record), marks.mark(manifest["generation"])])


def _against(session: Session, manifest: Json) -> Iterator[Finding]:
    """Why this vhost and user are not to be adopted, in full."""
    if why := identity.is_protected(session.server, manifest):
        yield Finding("refused", why, "nothing: it is never adopted")
        return
    vhost, user = identity.read_vhost(session, manifest), identity.read_user(session, manifest)
    if vhost is None:
        yield Finding("not_there", f"there is no vhost {manifest['vhost']!r}", "name one that is there")
    elif not isinstance(vhost.get("tags"), list):
        mend = "rabbitmqctl enable_feature_flag virtual_host_metadata"
        yield Finding("refused", "the server keeps no tags of vhosts", mend)
    yield from _taken("vhost", vhost, manifest)
    if not manifest["user"]:
        return
    if user is None:
        yield Finding("not_there", f"there is no user {manifest['user']!r}", "name one that is there, or none")
        return
    yield from _taken("user", user, manifest)
    if powers := [tag for tag in rights.POWERFUL if tag in marks.of(user)]:
        what = f"user {manifest['user']!r} has the tags {', '.join(powers)}: it reaches beyond its vhost"
        kept = " ".join(tag for tag in marks.of(user) if tag not in rights.POWERFUL)
        yield Finding("refused", what, f"rabbitmqctl set_user_tags {manifest['user']} {kept}".strip())
    reached = {one["vhost"] for one in session.get("users", manifest["user"], "permissions") or ()}
    if vhost is not None and manifest["vhost"] not in reached:
        what = f"user {manifest['user']!r} has no permission on vhost {manifest['vhost']!r}: it is not its user"
        yield Finding("refused", what, "name the vhost's own user, or none")
    if others := sorted(reached - {manifest["vhost"]}):
        what = f"user {manifest['user']!r} also opens {', '.join(map(repr, others[:3]))}: it would be deleted there too"
        mend = f"give those vhosts another user, then: rabbitmqctl clear_permissions -p {others[0]} {manifest['user']}"
        yield Finding("refused", what, mend)


def _taken(word: str, record: Json | None, manifest: Json) -> Iterator[Finding]:
    tags = marks.of(record)
    if [one for one in marks.generations(tags) if one != manifest["generation"]]:
        what = f"{word} {manifest[word]!r} belongs to another resource already"
        yield Finding("refused", what, "let that resource go first (deprovisioner resources release)")
    if marks.note(tags) is not None:
        yield Finding("refused", f"{word} {manifest[word]!r}: {IN_QUARANTINE}", "deprovisioner resources restore")
