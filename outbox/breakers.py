"""Circuit breakers: which backends are out of reach, shared by all workers through the control database.

Until a row's `retry_at`, no worker claims jobs of that backend. After it, one worker claims one job, the probe, and
sets `retry_at` a lease ahead: if that worker dies, another probe follows. A server may answer inspections and refuse
work, so only a probe's work (a provision, an adoption, a teardown) removes the row. A probe without work is given back.
"""

from sqlalchemy import Connection, text

# The first pause and the longest one: workers notice within the longest that a server is back.
PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 15

# The breaker of a backend that went back in time stays open until a recovery, whatever the jobs there end with.
_PASSES = "NOT EXISTS (SELECT FROM memories WHERE place = breakers.backend AND behind_since IS NOT NULL)"

_TRIP = text(f"""
    INSERT INTO breakers (backend, failures, retry_at, reason)
    VALUES (:backend, 1, now() + :pause * interval '1 second', :reason)
        ON CONFLICT (backend) DO UPDATE
       SET failures = breakers.failures + 1,
           retry_at = now() + least(:longest, :pause * 2 ^ least(breakers.failures, 30)) * interval '1 second',
           reason = :reason
     WHERE (breakers.retry_at <= now() OR :probing)
       AND {_PASSES}""")


def trip(db: Connection, backend: str, *, reason: str, probing: bool = False) -> None:
    """Open the breaker, or open it for longer. Failures within one pause count once; a probe's always counts."""
    asked = {"backend": backend, "reason": reason, "probing": probing}
    db.execute(_TRIP, asked | {"pause": PAUSE_SECONDS, "longest": LONGEST_PAUSE_SECONDS})


def give_back(db: Connection, backend: str) -> None:
    """The probe ended without work on the backend: the next claim may take another probe."""
    db.execute(
        text(f"UPDATE breakers SET retry_at = now() WHERE backend = :backend AND {_PASSES}"), {"backend": backend}
    )


def close(db: Connection, backend: str) -> None:
    """The backend has done work: claim its jobs again."""
    db.execute(text(f"DELETE FROM breakers WHERE backend = :backend AND {_PASSES}"), {"backend": backend})
