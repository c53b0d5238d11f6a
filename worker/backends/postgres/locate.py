"""Where a manifest's object is on a server that moved: by mark and names, whatever numbers it has there."""

from collections.abc import Iterator

from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same, mark
from worker.backends.postgres import identity
from worker.backends.postgres.identity import Database, Role, State
from worker.backends.postgres.session import INSPECT_SECONDS, Server

# A dump and restore changes all three; `pg_upgrade` keeps the OIDs.
NUMBERS = ("oid", "role_oid", "system_identifier")


def locate(server: Server, manifest: Json) -> Observation:
    """See `worker.backends.fleet.locate`. Same only where database and role are whole, and alone."""
    sought = manifest | dict.fromkeys(NUMBERS)
    with server.connect(seconds=INSPECT_SECONDS) as session:
        state = identity.read_state(session, sought)
    evidence: Json = {
        "system_identifier": state.system_identifier,
        "databases": [f"{d.name} oid={d.oid} comment={d.comment}" for d in state.databases],
        "roles": [f"{r.name} oid={r.oid} comment={r.comment}" for r in state.roles],
    }
    if not manifest.get("generation"):
        return Different(evidence, "its manifest has no generation, by which alone it could be known again")
    here = sought | {"system_identifier": state.system_identifier}
    if not state.databases and not state.roles:
        return Absent(evidence | {"manifest": here})
    databases = [one for one in state.databases if identity.is_marked(one.comment, manifest)]
    roles = [one for one in state.roles if identity.is_marked(one.comment, manifest)]
    if why := next(_against(state, manifest, databases, roles), None):
        return Different(evidence, why, marked=bool(databases or roles))
    numbers = {"oid": databases[0].oid, "role_oid": roles[0].oid if roles else None}
    return Same(evidence | {"manifest": here | numbers})


def _against(state: State, manifest: Json, databases: list[Database], roles: list[Role]) -> Iterator[str]:
    """Why what is there is not the whole object and nothing else."""
    words = f"bears the mark '{mark(manifest['generation'])}'"
    named = {manifest["database"], identity.new_name(manifest), identity.dying_name(manifest)}
    yield from _sole("database", words, list(state.databases), databases, named)
    if manifest.get("role") is None:
        if roles:
            yield f"role {roles[0].name!r} {words}, and the object was taken over without a role"
        return
    yield from _sole("role", words, list(state.roles), roles, {manifest["role"], identity.dying_name(manifest)})


def _sole(
    what: str, words: str, seen: list[Database] | list[Role], marked: list[Database] | list[Role], named: set[str]
) -> Iterator[str]:
    others = [one for one in seen if one not in marked]
    if others:
        yield f"{what} {others[0].name!r} has the name of this resource's, and not its mark"
    elif not marked:
        yield f"no {what} {words}: only a part is there; bring the {what} over with its comment, or finish by hand"
    elif len(marked) > 1:
        yield f"{what}s {marked[0].name!r} and {marked[1].name!r} both bear the mark of this resource: one is a copy"
    elif marked[0].name not in named:
        yield f"{what} {marked[0].name!r} {words}, and has another name than the manifest: find out who renamed it"
