"""Jobs that are two where one may be, or that no worker keeps alive."""

from outbox.doctor.checks.check import REPORT, Check

JOBS = (
    Check(
        "two_jobs",
        "resource",
        """
        SELECT resource_id AS id, min(created_at) AS since,
               concat(kind, ' jobs ', string_agg(CAST(id AS text), ', ' ORDER BY id)) AS note
          FROM outbox WHERE kind IN ('provision', 'deprovision') AND state <> 'cancelled'
         GROUP BY resource_id, kind HAVING count(*) > 1""",
        "two jobs would do the same thing to one resource: the promise `not two` is not kept",
        "stop the workers; put the unique indexes outbox_one_… back, after cancelling the job that never started",
    ),
    Check(
        "two_at_work",
        "resource",
        """
        SELECT resource_id AS id, min(created_at) AS since,
               concat('running jobs ', string_agg(CAST(id AS text), ', ' ORDER BY id)) AS note
          FROM outbox WHERE state = 'running' AND started_fence = fence
         GROUP BY resource_id HAVING count(*) > 1""",
        "two workers act on one resource at once",
        "stop the workers named by `deprovisioner jobs show ID`; " + REPORT,
    ),
    Check(
        "lease_expired",
        "job",
        """
        SELECT id, lease_expires_at AS since, concat('held by ', claimed_by, ', fence ', fence) AS note
          FROM outbox WHERE state = 'running' AND lease_expires_at < now() - CAST(:patience AS interval)""",
        "its worker died or stands still, and no other has swept it for more than three leases",
        "start a worker, or look why the sweep fails: are workers running, do they reach this database?",
    ),
)
