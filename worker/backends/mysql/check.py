"""What is not as it should be on a server: version, rights, doors, settings; with statements that mend it."""

import re
from collections.abc import Iterator

import pymysql

from worker.backends import Finding
from worker.backends.mysql import errors, names, rights
from worker.backends.mysql.create import PREFIX
from worker.backends.mysql.session import INSPECT_SECONDS, Server, Session

OLDEST = (10, 11)  # the version that tests run on
# The account's rights on the whole server, and the server's own tables that it reads; as in docs/backends.md.
NEEDED = ("CREATE USER", "PROCESS", "SHOW DATABASES", "CONNECTION ADMIN", "SLAVE MONITOR")
READ = (
    *("db", "tables_priv", "columns_priv", "procs_priv", "global_priv", "roles_mapping", "proc", "event"),
    "innodb_table_stats",
)
SETTINGS = {
    "innodb_flush_log_at_trx_commit": ("1", "a crash forgets what the control database had"),
    "innodb_doublewrite": ("ON", "a crash can destroy pages"),
    "skip_grant_tables": ("OFF", "every login is let in"),
}
_A_CUSTOMERS = PREFIX + "0" * 32


def check(server: Server) -> list[Finding]:
    """See `worker.backends.check`; changes nothing."""
    with server.connect(seconds=INSPECT_SECONDS) as session:
        few = list(_rights(session))
        doors = [] if any(one.code == "rights_too_few" for one in few) else _doors(session)
        return [*_version(session), *few, *doors, *_settings(session)]


def _version(session: Session) -> Iterator[Finding]:
    ((version,),) = session.ask("SELECT VERSION()")
    found = re.match(r"(\d+)\.(\d+)", str(version))
    if found and (int(found[1]), int(found[2])) < OLDEST:
        yield Finding("version_old", f"the server is {version}; tests run on 10.11", "upgrade the server")


def _rights(session: Session) -> Iterator[Finding]:
    account = names.account(*session.me())
    granted = {
        word.strip()
        for (line,) in session.ask("SHOW GRANTS")
        if (found := re.match(r"GRANT (.*?) ON \*\.\* TO ", str(line)))
        for word in found[1].split(",")
    }
    granted = {"SLAVE MONITOR" if word == "REPLICA MONITOR" else word for word in granted}
    if "ALL PRIVILEGES" in granted:
        mend = "make an account of the service's own, and change the dsn (docs/backends.md)"
        yield Finding("rights_too_many", f"the service logs in as {account}, which may do everything", mend)
        return
    for right in (right for right in NEEDED if right not in granted):
        yield Finding("rights_too_few", f"the service's account has no {right}", f"GRANT {right} ON *.* TO {account}")
    for right in sorted(granted - {*NEEDED, "USAGE"}):
        what = f"the service's account has {right} on the whole server, which it does not need"
        yield Finding("rights_too_many", what, f"REVOKE {right} ON *.* FROM {account}")
    unread = [table for table in READ if not _may_read(session, table)]
    for table in unread:
        mend = f"GRANT SELECT ON mysql.{table} TO {account}"
        yield Finding("rights_too_few", f"the service's account may not read mysql.{table}", mend)
    if "db" not in unread and (statement := rights.missing(session, _A_CUSTOMERS, ())):
        mend = statement.replace(names.schema(_A_CUSTOMERS), f"`{PREFIX}%`.*")
        yield Finding("rights_too_few", "the service's account may not manage the schemas that it makes", mend)


def _may_read(session: Session, table: str) -> bool:
    try:
        session.ask(f"SELECT 1 FROM mysql.{table} LIMIT 0")
    except pymysql.Error as error:
        if errors.number(error) not in errors.RIGHT_MISSING:
            raise
        return False
    return True


def _doors(session: Session) -> Iterator[Finding]:
    """Logins for everybody, and rights of others that reach the schemas of all customers."""
    for (host,) in session.ask("SELECT Host FROM mysql.global_priv WHERE User = '' AND Host <> ''"):
        mend = f"DROP USER {names.account('', host)}"
        yield Finding("public_connect", f"everybody may log in from {host!r}, without a name", mend)
    rows = session.ask(
        "SELECT User, Host, Db FROM mysql.db WHERE User <> %s AND %s LIKE Db", session.server.address.user, _A_CUSTOMERS
    )
    for user, host, pattern in rows:
        account = names.account(user, host)
        what = f"{account} has rights on every customer's schema, by the pattern {pattern!r}"
        yield Finding("public_rights", what, f"REVOKE ALL PRIVILEGES ON {names.identifier(pattern)}.* FROM {account}")


def _settings(session: Session) -> Iterator[Finding]:
    asked = ", ".join(map(names.literal, SETTINGS))
    for name, value in session.ask(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({asked})"):
        wanted, otherwise = SETTINGS[str(name).lower()]
        if value != wanted:
            mend = f"{name} = {wanted}  -- in the server's configuration, then restart it"
            yield Finding("setting_unsafe", f"{name} is {value}: {otherwise}", mend)
