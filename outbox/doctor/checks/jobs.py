"""Checks of jobs: one of a kind for each resource, one running at a time, and none whose worker is dead."""

from outbox.doctor.checks.check import REPORT, Check

JOBS = (
    Check(
        "two_jobs",
        "resource",
        """
        SELECT resource_id AS id, min(created_at) AS since,
               concat(kind, ' jobs ', string_agg(CAST(id AS text), ', ' ORDER BY id)) AS note
          FROM outbox
         WHERE state <> 'cancelled' AND (kind IN ('provision', 'deprovision') OR state <> 'succeeded')
         GROUP BY resource_id, kind HAVING count(*) > 1""",
        "two jobs would do the same thing to one resource: the promise `not two` is not kept",
        "stop the workers; cancel the job that never started, then create the unique indexes outbox_one_… again",
    ),
    Check(
        "two_at_work",
        "resource",
        """
        SELECT resource_id AS id, min(created_at) AS since,
               concat('running jobs ', string_agg(CAST(id AS text), ', ' ORDER BY id)) AS note
          FROM outbox WHERE state = 'running' AND started_fence = fence
         GROUP BY resource_id HAVING count(*) > 1""",
        "two workers act on one resource at the same time",
        "stop the workers named by `deprovisioner jobs show ID`; " + REPORT,
    ),
    Check(
        "lease_expired",
        "job",
        """
        SELECT id, lease_expires_at AS since, concat('held by ', claimed_by, ', fence ', fence) AS note
          FROM outbox WHERE state = 'running' AND lease_expires_at < now() - CAST(:patience AS interval)""",
        "the job's worker died or stands still, and no other worker has swept the job for more than three leases",
        "start a worker, or find out why the sweep fails: are workers running, do they reach this database?",
    ),
)
