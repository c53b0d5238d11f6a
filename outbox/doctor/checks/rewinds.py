"""Checks of the control database's place in time, and of the backends'."""

from outbox import rewinds
from outbox.doctor.checks.check import Check

REWINDS = (
    Check(
        "rewound",
        "hold",
        """
        SELECT id, created_at AS since, concat(actor, ': ', left(reason, 500)) AS note FROM holds
         WHERE cause = 'rewound' AND released_at IS NULL""",
        "the control database went back in time, or a restore was announced: it may lack what was done since, so "
        "no job starts, and the API refuses writes",
        "run `deprovisioner recover`: it shows what the backends know and this database lacks, and what each decision "
        "does; docs/operations.md has the steps in order",
    ),
    Check(
        "backend_went_back",
        "backend",
        """
        SELECT place AS id, behind_since AS since, note FROM memories WHERE behind_since IS NOT NULL""",
        "the backend was restored to an earlier state, or lost its data: objects may exist again, be gone, or be older",
        "run `deprovisioner recover --backend NAME`: it compares objects and resources; its real run lets jobs start",
    ),
    Check(
        "backend_not_compared",
        "backend",
        f"""
        SELECT waiting.backend AS id, waiting.since, 'jobs wait for it' AS note
          FROM (SELECT backend, min(available_at) AS since FROM outbox
                 WHERE state = 'pending' AND held_by IS NULL AND available_at < now() - CAST(:overdue AS interval)
                 GROUP BY backend) AS waiting
         WHERE NOT {rewinds.STANDS_STILL}
           AND NOT EXISTS (SELECT FROM memories WHERE place = waiting.backend AND behind_since IS NOT NULL)
           AND NOT ({rewinds.GOES_ON_AT.format("waiting.backend")})""",
        "since the control database was started, no worker could read what the backend remembers of it: no job starts "
        "there, because the database might have gone back in time",
        "check that a worker serves this backend and can reach it, and read its log (`memory_unreachable`)",
        "warning",
    ),
)
