"""What the server shows under a manifest's names, and whether it is the manifest's object; no statement here writes."""

import re
from dataclasses import dataclass

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends import Absent, Different, Observation, Same, mark
from worker.backends.mysql import registry, rights
from worker.backends.mysql.names import identifier, literal
from worker.backends.mysql.registry import Record
from worker.backends.mysql.rights import Grant
from worker.backends.mysql.session import INSPECT_SECONDS, Server, Session

MARK = re.compile(rf"{mark('')}([0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}})\Z")
# Accounts with the manifest's user name, all that were granted the role that is its mark, and that role, which has no
# host. The service's own account has the role, with ADMIN OPTION, for the moment in which it makes it.
_ACCOUNTS = """
    SELECT g.User, g.Host, COALESCE(JSON_VALUE(g.Priv, '$.account_locked'), 0) IN ('1', 'true'), m.Role IS NOT NULL
      FROM mysql.global_priv AS g
      LEFT JOIN mysql.roles_mapping AS m
             ON m.User = g.User AND m.Host = g.Host AND m.Role = %s AND m.Admin_option = 'N'
     WHERE (g.Host <> '' AND (g.User = %s OR m.Role IS NOT NULL)) OR (g.Host = '' AND g.User = %s)
     ORDER BY g.User, g.Host"""


@dataclass(frozen=True)
class Account:
    """A user at a host. `marked`: it has the role that only an administrator can grant or take."""

    user: str
    host: str
    locked: bool
    marked: bool


@dataclass(frozen=True)
class State:
    """What bears any of the manifest's names, or its mark."""

    server: str | None
    record: Record | None
    rivals: tuple[Record, ...]  # other generations that claim the same names
    comment: str | None  # of the schema; None where there is no schema
    accounts: tuple[Account, ...]
    role: bool  # the role that marks the user
    grants: tuple[Grant, ...]  # rights on the schema by its name, whoever has them

    def named(self, manifest: Json) -> list[Account]:
        """The accounts with the manifest's user name."""
        return [account for account in self.accounts if account.user == manifest["user"]]


def inspect(server: Server, manifest: Json) -> Observation:
    """Read the state and judge it; see the Protocol."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        seen = judge(read_state(session, manifest), manifest)
        session.must_be_writable_primary()  # until now: what a server lacks that became a replica is not absent
        return seen


def read_state(session: Session, manifest: Json) -> State:
    """What the server shows now. Schemas cannot be renamed; a mark in another schema's comment proves nothing."""
    session.must_see_all()
    generation, user = manifest["generation"], manifest["user"]
    server, record, rivals = registry.claims(session, manifest)
    accounts = [
        Account(name, host, bool(locked), bool(marked))
        for name, host, locked, marked in session.ask(_ACCOUNTS, mark(generation), user, mark(generation))
    ]
    return State(
        server=server,
        record=record,
        rivals=tuple(rivals),
        comment=comment_of(session, manifest["database"]),
        accounts=tuple(account for account in accounts if account.host),
        role=any(not account.host for account in accounts),
        grants=tuple(rights.on_schema(session, manifest["database"])),
    )


def comment_of(session: Session, database: str) -> str | None:
    """The schema's comment; None where there is no schema of exactly this name."""
    found = session.ask(
        """SELECT SCHEMA_COMMENT FROM information_schema.SCHEMATA
            WHERE SCHEMA_NAME = %s AND BINARY SCHEMA_NAME = %s""",
        database,
        database,
    )
    return str(found[0][0]) if found else None


def judge(state: State, manifest: Json) -> Observation:
    """Whether the state shows the manifest's object: absent (nothing matches), the same, or a different one."""
    generation = manifest["generation"]
    evidence: Json = {
        "server": state.server,
        "schema_comment": state.comment,
        "accounts": [f"{a.user}@{a.host}{' locked' * a.locked}{' marked' * a.marked}" for a in state.accounts],
        "rights": [f"{grant.account} on {grant.on}" for grant in state.grants],
        "recorded": state.record is not None,
    }
    marked = any(a.marked for a in state.accounts) or _is_marked(state.comment, generation)
    if manifest.get("server") not in (None, state.server):
        return Different(evidence, wrong_server(state.server, manifest), marked)
    if why := _foreign_user(state, manifest) or _foreign_schema(state, manifest):
        return Different(evidence, why, marked)
    left = state.grants if state.record else ()
    if state.comment is None and not state.accounts and not state.role and not left:
        return Absent(evidence)
    return Same(evidence)


def wrong_server(found: str | None, manifest: Json) -> str:
    """Why this is not the manifest's server."""
    return f"this server is {found}, not {manifest.get('server')}: the wrong server, or it lost the service's schema"


def _foreign_user(state: State, manifest: Json) -> str | None:
    if away := [a for a in state.accounts if a.marked and a.user != manifest["user"]]:
        return (
            f"user {away[0].user!r} at {away[0].host!r} bears this resource's mark: it was renamed, and not by "
            f"deprovisioner; find its owner; only when the owner says that it may go, rename it back to "
            f"{manifest['user']!r}, then re-drive"
        )
    if (named := state.named(manifest)) and not _has_our_user(state, manifest):
        return (
            f"user {named[0].user!r} at {named[0].host!r} is not the one that was made for this resource: it lacks "
            f"the role {mark(manifest['generation'])!r}; find its owner"
        )
    return None


def _has_our_user(state: State, manifest: Json) -> bool:
    made = state.record is not None and state.record.making  # between CREATE USER and its mark
    return made or any(account.marked for account in state.named(manifest))


def _foreign_schema(state: State, manifest: Json) -> str | None:
    """Why the schema is not ours. A customer can take the mark off; then the catalog must show it."""
    if state.comment is None or _is_marked(state.comment, manifest["generation"]):
        return None
    database = manifest["database"]
    mend = (
        "find its owner; only when the owner says that it may go, put the mark back (ALTER DATABASE "
        f"{identifier(database)} COMMENT = {literal(mark(manifest['generation']))}), then re-drive"
    )
    other = MARK.search(state.comment)
    if other and any(rival.generation == other[1] and rival.database == database for rival in state.rivals):
        return f"schema {database!r} bears the mark of another resource, {other[1]}"
    if state.record is None or state.record.database != database:
        return f"schema {database!r} does not bear this resource's mark: {mend}"
    if state.record.making:
        return None
    if manifest["user"] is not None and not _has_our_user(state, manifest):
        return f"schema {database!r} has lost its mark, and the resource's user is gone: {mend}"
    known = state.record.grantees | {grant.account for grant in state.grants if grant.user == manifest["user"]}
    if strangers := sorted({grant.account for grant in state.grants} - known):
        return f"schema {database!r} has lost its mark, and {strangers[0]} was given rights on it since: {mend}"
    return None


def _is_marked(comment: str | None, generation: str) -> bool:
    return (comment or "").endswith(mark(generation))


def must_be_same(state: State, manifest: Json) -> None:
    """Raises Refused unless the state shows the manifest's object."""
    match judge(state, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            raise Refused("the object is no longer there")
        case Same():
            return


def must_not_be_protected(server: Server, manifest: Json) -> None:
    """Raises Refused for names that are never adopted or torn down, whatever a manifest says."""
    database, user = manifest["database"], manifest.get("user")
    if database.lower() in {name.lower() for name in server.protected_schemas}:
        raise Refused(f"schema {database!r} is protected: it is never adopted or torn down")
    if user is not None and (user in server.protected_users or user.startswith(mark(""))):
        raise Refused(f"user {user!r} is protected: it is never adopted or torn down")
