"""Names in statements: quoted, and in grants escaped, so that no name is taken for a pattern."""


def identifier(name: str) -> str:
    """A name between backticks."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """A text between quotes; `session` pins an sql_mode in which backslashes escape."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def account(user: str, host: str) -> str:
    """A user at a host; a role has no host, and PUBLIC is a keyword."""
    if not host:
        return user if user == "PUBLIC" else literal(user)
    return f"{literal(user)}@{literal(host)}"


def pattern(database: str) -> str:
    """What matches this schema and no other, where a grant would read `_` and `%` as wildcards."""
    return database.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")


def schema(database: str) -> str:
    """What stands behind ON in a grant on all of a schema."""
    return f"{identifier(pattern(database))}.*"
