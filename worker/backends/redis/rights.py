"""What an ACL user may do that is adopted: nothing outside its prefix, and nothing that undoes its own teardown."""

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends.redis import commands, identity, keys
from worker.backends.redis.session import Session

_NAMED = 3  # an error names this many of a kind


class Beyond(Refused):
    """A user reaches beyond its prefix: `what` it reaches, and the statement that mends it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}; when its owner agrees, limit it first: {mend}")
        self.what, self.mend = what, mend


def must_stay_inside(session: Session, manifest: Json, user: Json) -> None:
    """Raises Beyond, with the ACL SETUSER that mends it, for a user that reaches beyond the manifest's prefix."""
    wrong, mend, prefix = [], [], manifest["prefix"]
    if user["selectors"]:
        wrong.append("has selectors")
        mend.append("clearselectors")
    inside = [pattern for pattern in user["keys"] if beginning(pattern).startswith(prefix)]
    if outside := [pattern for pattern in user["keys"] if pattern not in inside]:
        wrong.append(f"reaches keys outside the prefix ({some(outside)})")
        mend += ["resetkeys", *(inside or [f"~{keys.escape(prefix)}*"])]
    mark = identity.channel(manifest)
    own = [pattern for pattern in user["channels"] if pattern == mark or beginning(pattern).startswith(prefix)]
    if outside := [pattern for pattern in user["channels"] if pattern not in own]:
        wrong.append(f"reaches channels outside the prefix ({some(outside)})")
        mend += ["resetchannels", *own]
    catalog = session.server.kept(session, "commands", commands.Catalog)
    granted = catalog.granted(user["commands"])
    if beyond := granted - catalog.granted(" ".join(commands.rules(session))) - commands.HARMLESS:
        wrong.append(f"may run commands that reach beyond its keys ({some(sorted(beyond))})")
        mend += catalog.without(granted, beyond)
    if wrong:
        statement = " ".join(("ACL SETUSER", manifest["user"], *mend))
        raise Beyond(f"ACL user {manifest['user']!r} {', '.join(wrong)}", statement)


def beginning(pattern: str) -> str:
    """What every name begins with that a pattern such as `~pattern`, `%R~pattern` or `&pattern` matches."""
    letters = iter(pattern.split("~", 1)[1] if "~" in pattern[:4] else pattern[1:])
    found = ""
    for letter in letters:
        if letter in "*?[":
            break
        found += next(letters, "") if letter == "\\" else letter
    return found


def some(names: list[str]) -> str:
    """The first few of many, in words."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
