"""What is not as it should be on a server: rights, doors, the users' persistence; with statements that mend it."""

from collections.abc import Iterator
from typing import Any

from redis import exceptions

from worker.backends import Finding
from worker.backends.redis import commands, identity, rights
from worker.backends.redis.session import Server, Session, code_of

OLDEST = (7, 0)  # the oldest version that tests run on
# The service user's commands, as in docs/backends.md; a test compares.
NEEDED = (
    *("ping", "select", "info", "config|get", "get", "set", "type", "unlink", "scan", "eval"),
    *("watch", "unwatch", "multi", "exec", "client|kill", "client|setname", "acl|whoami", "acl|cat", "acl|getuser"),
    *("acl|setuser", "acl|deluser", "acl|list", "acl|log", "acl|users", "acl|save"),
    *("dump", "pexpiretime", "memory|usage", "restore"),
)
# Settings that give more to whoever may run commands.
SETTINGS = {"enable-debug-command": "no", "enable-module-command": "no"}


def check(server: Server) -> list[Finding]:
    """See `worker.backends.check`; changes nothing."""
    with server.connect() as session:
        return [*_server(session), *_rights(session), *_doors(session), *_settings(session)]


def _server(session: Session) -> Iterator[Finding]:
    version = str(session.info("server")["redis_version"])
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST:
        yield Finding(
            "version_old", f"the server is version {version}; tests run on 7.0 and later", "upgrade the server"
        )
    if session.info("cluster").get("cluster_enabled"):
        what = "the server is part of a Redis Cluster, where nothing is provisioned"
        yield Finding("cluster", what, "name a server without cluster-enabled in the dsn")
    if not session.server.volatile_users and not session.keeps_users():
        what = "a restart of the server forgets its ACL users: nothing is provisioned"
        mend = "aclfile /etc/redis/users.acl  -- in the server's configuration, then restart it"
        yield Finding("users_not_kept", what, mend)


def _rights(session: Session) -> Iterator[Finding]:
    name = str(session.acl_whoami())
    user = identity.acl_user(session, name)
    if user is None:  # it was deleted while its session lives
        yield Finding("rights_too_few", f"there is no ACL user {name!r} any more", "make it again (docs/backends.md)")
        return
    catalog = commands.Catalog(session)
    granted = catalog.granted(user["commands"])
    missing = [command for command in NEEDED if command not in granted]
    excess = sorted((granted & catalog.categories["dangerous"]) - set(NEEDED) - commands.HARMLESS)
    mend = " ".join(("ACL SETUSER", name, "~*", "-@all", *(f"+{command}" for command in NEEDED)))
    if name == "default":  # without its commands, nobody else could administer the server
        mend = "make a user of the service's own, and change the dsn (docs/backends.md)"
    if missing:
        yield Finding("rights_too_few", f"the service's user may not run {', '.join(missing)}", mend)
    if "~*" not in user["keys"]:
        yield Finding("rights_too_few", "the service's user may not reach all keys", mend)
    if excess:
        yield Finding(
            "rights_too_many", f"the service's user may run {rights.some(excess)}, which it does not need", mend
        )


def _doors(session: Session) -> Iterator[Finding]:
    default = identity.acl_user(session, "default")
    if default and "on" in default["flags"] and "nopass" in default["flags"]:
        mend = "ACL SETUSER default resetpass >…; ACL SAVE"
        yield Finding("public_connect", "everybody may log in as `default`, without a password", mend)


def _settings(session: Session) -> Iterator[Finding]:
    for name, wanted in SETTINGS.items():
        try:
            found: Any = session.config_get(name)
        except exceptions.ResponseError as error:
            if code_of(error) not in ("NOPERM", "ERR"):
                raise
            return
        if (value := found.get(name, wanted)) != wanted:
            mend = f"{name} {wanted}  -- in the server's configuration, then restart it"
            yield Finding("setting_unsafe", f"{name} is {value}", mend)
