"""The lock on an object, taken over from a worker whose claim is lost."""

import time

from worker.backends.postgres.session import Session, lock_key

# How long our own sessions may take to end that hold the object's lock: a killed server process takes milliseconds.
TAKE_OVER_SECONDS = 2.0
_HOLDERS = """
    SELECT pg_catalog.pg_terminate_backend(pid)
      FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity USING (pid)
     WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_catalog.pg_backend_pid()
       AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
       AND (classid::pg_catalog.int8 << 32) | objid::pg_catalog.int8 = %s
       AND usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)"""


def take_over(session: Session, name: str) -> None:
    """Take the object's lock; whoever holds it by our own account is ended. The caller's claim was just seen to stand.

    A resource's jobs run one at a time, so theirs is lost: a worker that stands still would hold the lock for minutes.
    """
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    with session.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (lock_key(name),))
            if cursor.fetchone() == (True,):
                return
            cursor.execute(_HOLDERS, (lock_key(name),))
            if cursor.rowcount:
                session.tell(f"ended sessions of our own that were at {name!r}: {cursor.rowcount}")
            time.sleep(0.02)
    session.lock(name)
