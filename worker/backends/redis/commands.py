"""What a customer may run: commands on its own keys and channels, none that shows other customers or stops them.

docs/configuration.md has every category of commands, whether customers get it, and why; a test compares.
"""

from typing import Any

from worker.backends.redis.session import Session

# Whole categories: each of their commands names the keys that it works on, and ACLs check these.
CATEGORIES = (
    *("string", "list", "hash", "set", "sortedset", "stream"),
    *("bitmap", "hyperloglog", "geo", "transaction"),
)
# Of other categories these alone. A new version adds commands to them that reach further, as Valkey 9 did.
COMMANDS = (
    *("copy", "del", "dump", "exists", "move", "persist", "rename", "renamenx", "touch", "type", "unlink"),
    *("expire", "expireat", "expiretime", "pexpire", "pexpireat", "pexpiretime", "pttl", "ttl"),
    *("publish", "subscribe", "unsubscribe", "psubscribe", "punsubscribe", "spublish", "ssubscribe", "sunsubscribe"),
    *("auth", "echo", "hello", "ping", "quit", "reset", "select", "wait", "time", "command"),
    *("client|getname", "client|id", "client|info", "client|reply", "client|setname"),
)
# The same for commands that not every version has: a rule that names an unknown command is an error.
NEWER = ("client|setinfo", "client|no-touch", "waitaof")
# A script runs alone, and one that loops after a write can only be ended by killing the server.
SCRIPTING = ("eval", "eval_ro", "evalsha", "evalsha_ro", "script|exists", "script|load")
FORBIDDEN = ("dangerous", "scripting")  # a server counts all of @admin among @dangerous
# Beside these an adopted user may have some that show and change nothing but its own keys, or nothing at all.
HARMLESS = frozenset(
    {"acl|cat", "acl|genpass", "acl|whoami", "asking", "lastsave", "lolwut", "readonly", "readwrite"}
    | {"client|caching", "client|capa", "client|getredir", "client|import-source", "client|trackinginfo"}
    | {"object|encoding", "object|freq", "object|idletime", "object|refcount"}
    | {"restore", "role", "sort", "sort_ro"}
)


def rules(session: Session) -> list[str]:
    """The rules of ACL SETUSER that give a new customer's user its commands, in order."""
    connection: Any = session.acl_cat("connection")
    newer = [name for name in NEWER if name in connection]
    scripting = SCRIPTING if session.server.scripting else ()
    return [
        "-@all",
        *(f"+@{name}" for name in CATEGORIES),
        *(f"-@{name}" for name in FORBIDDEN),
        *(f"+{name}" for name in (*COMMANDS, *newer, *scripting)),
    ]


class Catalog:
    """The server's commands, by its own categories."""

    def __init__(self, session: Session) -> None:
        names: Any = session.acl_cat()
        read: Any = session.acl_cat
        self.categories: dict[str, set[str]] = {name: set(read(name)) for name in names}
        every = set().union(*self.categories.values())
        # A command with subcommands does nothing without one, and HELP tells what the manual tells.
        containers = {name.partition("|")[0] for name in every if "|" in name}
        self.every = {name for name in every - containers if not name.endswith("|help")}

    def granted(self, rules: str) -> set[str]:
        """The commands that these rules allow."""
        granted: set[str] = set()
        for rule in rules.split():
            sign, name = rule[0], rule[1:]
            if name.startswith("@"):
                meant = self.every if name == "@all" else self.every & self.categories[name[1:]]
            else:
                meant = {one for one in self.every if one == name or one.startswith(f"{name}|")}
                if sign == "+":  # `+flushall|async` allows a command with one certain first argument
                    meant |= {name.partition("|")[0]} & self.every
            granted = granted | meant if sign == "+" else granted - meant
        return granted

    def without(self, granted: set[str], beyond: set[str]) -> list[str]:
        """The shortest rules that take the commands of `beyond` away, and nothing else that is `granted`."""
        words = [f"-@{name}" for name in FORBIDDEN if beyond & self.categories[name]]
        kept = granted - beyond
        singles: set[str] = set()
        for name in beyond.difference(*(self.categories[name] for name in FORBIDDEN)):
            whole = name.partition("|")[0]
            singles.add(name if any(one.startswith(f"{whole}|") for one in kept) else whole)
        words += [f"-{name}" for name in sorted(singles)]
        lost = {name for word in words if word[1] == "@" for name in kept & self.categories[word[2:]]}
        return words + [f"+{name}" for name in sorted(lost)]
