"""Checks of what a session of the control database cannot pin: settings of the server, and of roles behind a pooler."""

from outbox.db import PINS, SEARCH_PATH
from outbox.doctor.checks.check import Check

# With a value that is bound, or one of a session that a pooler dropped. The doctor sets timeouts of its own.
_PINNED = " UNION ALL ".join(
    f"SELECT '{name}', current_setting('{name}') = '{value}', '{value}'"
    for name, value in PINS.items()
    if not name.endswith("_timeout")
)
# `found`: the name of each setting that is wrong, and what it should be.
SETTINGS = f"""
    SELECT name AS id, CAST(NULL AS timestamptz) AS since,
           concat('is ', current_setting(name), '; must be ', wanted) AS note
      FROM (SELECT 'session_replication_role', current_setting('session_replication_role') = 'origin', 'origin'
             UNION ALL
            SELECT 'server_encoding', current_setting('server_encoding') = 'UTF8', 'UTF8'
             UNION ALL
            SELECT 'synchronous_commit', current_setting('synchronous_commit') IN ('on', 'remote_apply'), 'on'
             UNION ALL
            SELECT 'search_path', current_setting('search_path') ~ ', ?pg_temp$', '{SEARCH_PATH}, pg_temp'
             UNION ALL {_PINNED}) AS settings (name, holds, wanted)
     WHERE NOT holds"""

SERVER = (
    Check(
        "setting_wrong",
        "setting",
        SETTINGS,
        "a session of the service has a setting under which guards, commits or values are not what they seem",
        "take it back on the server, the database or the role (`ALTER … RESET`), or set it on the role where a pooler "
        "drops the service's own (docs/scaling.md); a database in another encoding than UTF8 must be made anew",
    ),
    Check(
        "server_unsafe",
        "setting",
        """
        SELECT name AS id, CAST(NULL AS timestamptz) AS since, concat('is ', current_setting(name)) AS note
          FROM (VALUES ('fsync', 'on'), ('full_page_writes', 'on'), ('zero_damaged_pages', 'off'),
                       ('ignore_checksum_failure', 'off'), ('data_sync_retry', 'off')) AS settings (name, wanted)
         WHERE current_setting(name) <> wanted
           AND current_setting('deprovisioner.throwaway', true) IS DISTINCT FROM 'on'""",
        "a crash or a fault of the disk may take back, without an error, what was committed and answered",
        "set it right in the server's configuration; on a server whose data may be lost, say so there: "
        "`deprovisioner.throwaway = on`",
        "warning",
    ),
)
