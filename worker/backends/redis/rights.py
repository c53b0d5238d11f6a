"""What an ACL user may do that is adopted: nothing outside its prefix, and nothing that undoes its own teardown."""

from typing import Any

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends.redis import keys
from worker.backends.redis.session import Session

# Commands of @dangerous that change nothing but the user's own keys.
HARMLESS = frozenset({"info", "keys", "lastsave", "restore", "role", "sort", "sort_ro"})
_NAMED = 3  # an error names this many of a kind


def must_stay_inside(session: Session, manifest: Json, user: Json) -> None:
    """Raises Refused, with the ACL SETUSER that mends it, for a user that reaches beyond the manifest's prefix."""
    wrong, mend = [], []
    if user["selectors"]:
        wrong.append("has selectors")
        mend.append("clearselectors")
    inside = [pattern for pattern in user["keys"] if beginning(pattern).startswith(manifest["prefix"])]
    if outside := [pattern for pattern in user["keys"] if pattern not in inside]:
        wrong.append(f"reaches keys outside the prefix ({some(outside)})")
        mend += ["resetkeys", *(inside or [f"~{keys.escape(manifest['prefix'])}*"])]
    may = granted(session, user["commands"], dangerous(session))
    if harmful := sorted(may - HARMLESS):
        wrong.append(f"may run commands that reach the whole server ({some(harmful)})")
        mend += ("-@admin", "-@dangerous")
        mend += (f"+{name}" for name in sorted(may & HARMLESS))
    if wrong:
        statement = " ".join(("ACL SETUSER", manifest["user"], *mend))
        raise Refused(f"ACL user {manifest['user']!r} {', '.join(wrong)}; limit it first: {statement}")


def dangerous(session: Session) -> set[str]:
    """The commands of @admin and @dangerous, as the server itself lists its categories."""
    return _category(session, "admin") | _category(session, "dangerous")


def granted(session: Session, rules: str, every: set[str]) -> set[str]:
    """Which commands of `every` these rules allow."""
    allowed: set[str] = set()
    for rule in rules.split():
        sign, name = rule[0], rule[1:]
        if name.startswith("@"):
            meant = every if name == "@all" else every & _category(session, name[1:])
        else:
            meant = {one for one in every if one == name or one.startswith(f"{name}|")}
            if sign == "+":  # `+flushall|async` allows a command with one certain first argument
                meant |= {name.split("|")[0]} & every
        allowed = allowed | meant if sign == "+" else allowed - meant
    return allowed


def _category(session: Session, name: str) -> set[str]:
    found: Any = session.acl_cat(name)
    return set(found)


def beginning(pattern: str) -> str:
    """What every key that matches `~pattern` or `%R~pattern` begins with."""
    letters = iter(pattern.split("~", 1)[1])
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
