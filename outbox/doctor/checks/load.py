"""Checks of what waits: for an operator, a worker, a hold or a backend."""

from outbox.doctor.checks.check import Check
from outbox.events import Event, quoted

# An installation that keeps up with its load drains a burst within this time; breakers and backoff pause for less.
OVERDUE_MINUTES = 10


_STICKS = quoted(Event.STUCK, Event.SWEPT)
LOAD = (
    Check(
        "stuck",
        "job",
        f"""
        SELECT outbox.id, last.at AS since, concat(stuck_reason, ': ', left(last_error, 200)) AS note
          FROM outbox
          LEFT JOIN LATERAL (SELECT at FROM events WHERE job_id = outbox.id AND event IN ({_STICKS})
                              ORDER BY id DESC LIMIT 1) AS last ON true
         WHERE state = 'stuck'""",
        "these jobs wait for an operator; oldest first",
        "`deprovisioner jobs show ID` says why, and prints the commands that move the job on",
        "warning",
    ),
    Check(
        "due_long_ago",
        "job",
        """
        SELECT outbox.id, available_at AS since,
               concat(backend, CASE WHEN breakers.backend IS NOT NULL THEN ', whose breaker is open' END) AS note
          FROM outbox LEFT JOIN breakers USING (backend)
         WHERE state = 'pending' AND held_by IS NULL AND available_at < now() - CAST(:overdue AS interval)""",
        f"these jobs have been due for more than {OVERDUE_MINUTES} minutes, and no worker claims them; oldest first",
        "are workers running, enough of them, and do they serve this backend? is its breaker open, or a hold in force "
        "(below)?",
        "warning",
    ),
    Check(
        "woken_by_nobody",
        "job",
        """
        SELECT outbox.id, released_at AS since, concat('waits for hold ', held_by, ', which was released') AS note
          FROM outbox LEFT JOIN holds ON holds.id = held_by
         WHERE held_by IS NOT NULL AND (holds.id IS NULL OR released_at < now() - CAST(:overdue AS interval))""",
        f"the job waits for a hold that was released more than {OVERDUE_MINUTES} minutes ago: no worker sweeps",
        "start a worker, or find out why the sweep fails: are workers running, do they reach this database?",
    ),
    Check(
        "hold_in_force",
        "hold",
        """
        SELECT id, created_at AS since,
               concat(scope, ' ' || subject, ', by ', cause, ' (', actor, '): ', left(reason, 200)) AS note
          FROM holds WHERE released_at IS NULL AND cause <> 'retired'""",
        "no job that the hold covers starts; these jobs wait, and use up no attempts",
        "when its cause is gone, `deprovisioner hold release ID --reason …`; if a brake engaged it, first find out who "
        "asked for the deletions",
        "warning",
    ),
    Check(
        "backend_retired",
        "backend",
        """
        SELECT subject AS id, holds.created_at AS since,
               concat((SELECT count(*) FROM outbox WHERE backend = subject AND finished_at IS NULL), ' jobs wait; ',
                      (SELECT count(*) FROM resources WHERE backend = subject AND status = 'active'), ' active; ',
                      (SELECT count(*) FROM resources WHERE backend = subject AND status = 'abandoned'), ' abandoned (',
                      actor, '): ', left(reason, 200)) AS note
          FROM holds WHERE cause = 'retired' AND released_at IS NULL""",
        "the backend's server is gone, said an operator: no job of it starts, and its objects may be somewhere still",
        "delete what is active; two operators end the teardowns with `deprovisioner backends abandon NAME`; "
        "`deprovisioner audit abandoned` lists what may have leaked",
        "warning",
    ),
    Check(
        "rebind_unfinished",
        "hold",
        """
        SELECT id, created_at AS since, concat('backend ', subject, ' (', actor, '): ', left(reason, 500)) AS note
          FROM holds
         WHERE cause = 'rebind' AND released_at IS NULL AND created_at < now() - CAST(:overdue AS interval)""",
        "a rebind of the backend ended before its work was done: some objects have their new identity, others do not, "
        "and no job of the backend starts",
        "run the same `deprovisioner backends rebind` again, with the digest in the note: it goes on where it stopped",
        "warning",
    ),
    Check(
        "backend_unsafe",
        "backend",
        """
        SELECT backend AS id, checked_at AS since, concat(code, ': ', what, '. Mend: ', mend) AS note
          FROM backend_checks, jsonb_to_recordset(findings) AS found (code text, what text, mend text)""",
        "a worker found these things on the backend, which let a customer do harm or a teardown fail",
        "do there what `Mend` says, then run `deprovisioner backends check NAME`; workers look when they "
        "start and each hour",
        "warning",
    ),
    Check(
        "breaker_open",
        "backend",
        """
        SELECT backend AS id, opened_at AS since, concat(failures, ' failures: ', left(reason, 200)) AS note
          FROM breakers
         WHERE retry_at > now() OR EXISTS (SELECT FROM outbox WHERE state = 'pending' AND held_by IS NULL
                                              AND outbox.backend = breakers.backend)""",
        "the backend is out of reach, or refuses work: its jobs wait, and use up no attempts",
        "bring the backend back, or correct its dsn; the next probe whose work the backend does closes the breaker",
        "warning",
    ),
)
