"""Checks of what reconciliations found: objects without a row, and rows without their object."""

from outbox.doctor.checks.check import Check

# A run a day; one may be missed while workers restart, or a backend is away.
STALE_HOURS = 48

_SIZE = "CASE WHEN size_bytes IS NOT NULL THEN concat(', ', pg_size_pretty(size_bytes)) END"


def _found(code: str, note: str) -> str:
    return f"""
        SELECT found.id, found_at AS since, concat(found.backend, ': ', {note}) AS note
          FROM object_findings AS found LEFT JOIN resources ON resources.id = resource_id
         WHERE code = '{code}' AND closed_at IS NULL"""


_OBJECT = f"array_to_string(parts, ', '), {_SIZE}, '; ' || NULLIF(left(why, 300), '')"
_ROW = "name, ' of ', tenant, ' (', resource_id, '): ', left(why, 300)"

RECONCILE = (
    Check(
        "object_unknown",
        "finding",
        _found("unknown", _OBJECT),
        "these objects bear our mark, and no resource knows them: they cost room, and their logins may work",
        "find out whose each is; dry run first: `deprovisioner reconcile adopt ID --tenant T` prints the "
        "command that makes a resource of it, and `deprovisioner reconcile delete ID --tenant T` the one that tears it "
        "down as any resource",
        "warning",
    ),
    Check(
        "object_survives",
        "finding",
        _found("survives", f"name, ' of ', tenant, ' is ', status, ', and there is: ', {_OBJECT}"),
        "the resource is called deleted, and an object with its mark stands: an orphan whose credentials may work",
        "find out who brought it back (a restored server?); dry run first: `deprovisioner reconcile delete ID` prints "
        "the command that adopts it again, and tears it down as any resource",
    ),
    Check(
        "object_missing",
        "finding",
        _found("missing", _ROW),
        "the resource is active, and the server has nothing of it: its customer cannot work",
        "find out who destroyed it, and restore it there under its own identity; where it is gone for good, "
        "`deprovisioner resources delete` ends the row",
        "warning",
    ),
    Check(
        "object_differs",
        "finding",
        _found("differs", _ROW),
        "the resource is active, and its object is another one, a part of it, or in quarantine: a DELETE would be "
        "refused",
        "find out who changed it, and put back the name, the mark or the part that the note names",
        "warning",
    ),
    Check(
        "reconcile_stale",
        "backend",
        f"""
        SELECT backend AS id, coalesce(ended_at, known_since) AS since,
               concat(CASE WHEN error IS NULL THEN 'no run has ended well'
                           ELSE 'the last run failed: ' || left(error, 300) END,
                      CASE WHEN ended_at IS NULL THEN '; there is no good one yet'
                           ELSE concat('; the last good one ended ', date_trunc('minute', now() - ended_at), ' ago')
                       END) AS note
          FROM reconciliations AS kept
         WHERE error IS NOT NULL
            OR (coalesce(ended_at, known_since) < now() - interval '{STALE_HOURS} hours'
                AND EXISTS (SELECT FROM resources
                             WHERE resources.backend = kept.backend AND status IN ('active', 'deleting')))
         UNION ALL
        SELECT backend, min(activated_at), 'no worker has reconciled it: does one serve it?' FROM resources
         WHERE status = 'active' AND backend <> ALL(ARRAY(SELECT backend FROM reconciliations))
         GROUP BY backend HAVING min(activated_at) < now() - interval '{STALE_HOURS} hours'""",
        f"for {STALE_HOURS} hours no worker has compared this backend with its resources, or the last comparison "
        "failed: its findings may be out of date",
        "`deprovisioner reconcile --backend NAME` compares it now, and says what fails; a kind that does not tell its "
        "objects cannot be reconciled: compare it by hand",
        "warning",
    ),
)
