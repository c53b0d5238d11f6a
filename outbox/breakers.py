"""Circuit breakers: which backends are out of reach, shared by all workers through the control database.

While a row's `retry_at` is ahead, nobody claims jobs of that backend; after it, one claim of all takes one job as
the probe, and sets `retry_at` a lease ahead, so that a probe whose worker died is followed by another. The first
success removes the row.
"""

from sqlalchemy import Connection, text

# The first pause, and the longest: a server that restarts is found again within the longest.
PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 15

_TRIP = text("""
    INSERT INTO breakers (backend, failures, retry_at, reason)
    VALUES (:backend, 1, now() + :pause * interval '1 second', :reason)
        ON CONFLICT (backend) DO UPDATE
       SET failures = breakers.failures + 1,
           retry_at = now() + least(:longest, :pause * 2 ^ least(breakers.failures, 30)) * interval '1 second',
           reason = :reason
     WHERE breakers.retry_at <= now() OR :probing""")


def trip(db: Connection, backend: str, *, reason: str, probing: bool = False) -> None:
    """Open the breaker, or open it again for longer; failures of one pause count once, a probe's always."""
    asked = {"backend": backend, "reason": reason, "probing": probing}
    db.execute(_TRIP, asked | {"pause": PAUSE_SECONDS, "longest": LONGEST_PAUSE_SECONDS})


def give_back(db: Connection, backend: str) -> None:
    """The probe ended without having asked the backend: the next claim may take another."""
    db.execute(text("UPDATE breakers SET retry_at = now() WHERE backend = :backend"), {"backend": backend})


def close(db: Connection, backend: str) -> None:
    """The backend answered: claim its jobs again."""
    db.execute(text("DELETE FROM breakers WHERE backend = :backend"), {"backend": backend})
