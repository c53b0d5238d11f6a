"""Checks of resources: jobs and evidence must agree with their status."""

from outbox.doctor.checks.check import BY_HAND, REPORT, Check
from outbox.events import ENDS_DELETION, Event, quoted

# What the chain says a manifest is: the provision's end or a later rebind, or before it the last event that carries the
# manifest; and the fields that later starts added to it. An event that does more than a transition can is forged, and
# does not count.
_MANIFEST = "coalesce(detail #> '{is,manifest}', detail -> 'manifest')"
_CARRIES = f"""event IN ({quoted(Event.ENQUEUED, Event.STARTED, Event.ACTIVATED, Event.REBOUND)})
                            AND {_MANIFEST} IS NOT NULL"""
_ADDED = "detail #> '{seen,completes}'"
_RECORDED = f"""
    SELECT resources.*, told.id AS event_id, told.event, told.at, ends,
           told.manifest || coalesce(added.fields, '{{}}') AS recorded
      FROM resources
     CROSS JOIN LATERAL (
           SELECT *, {_MANIFEST} AS manifest, count(*) FILTER (WHERE event = '{Event.ACTIVATED}') OVER () AS ends
             FROM events WHERE resource_id = resources.id AND {_CARRIES}
            ORDER BY event IN ({quoted(Event.ACTIVATED, Event.REBOUND)}) DESC, seq DESC LIMIT 1) AS told
     CROSS JOIN LATERAL (
           SELECT jsonb_object_agg(key, value ORDER BY seq DESC) AS fields
             FROM events AS later
            CROSS JOIN LATERAL jsonb_each(CASE jsonb_typeof({_ADDED}) WHEN 'object' THEN {_ADDED} END)
            WHERE later.resource_id = resources.id AND later.seq > told.seq AND later.event = '{Event.STARTED}'
              AND coalesce(told.manifest -> key, 'null') = 'null') AS added"""

RESOURCES = (
    Check(
        "deleting_without_job",
        "resource",
        """
        SELECT id, deleted_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'deleting'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = resources.id AND kind = 'deprovision'
                                                AND state IN ('pending', 'running', 'stuck'))""",
        "the DELETE was accepted, but no job will ever tear the object down: an orphan with working credentials",
        BY_HAND + "insert its deprovision job and the job's `enqueued` event, in one transaction",
    ),
    Check(
        "restoring_without_job",
        "resource",
        """
        SELECT id, (SELECT max(created_at) FROM outbox WHERE resource_id = resources.id AND kind = 'restore') AS since,
               concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'restoring'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = resources.id AND kind = 'restore'
                                                AND state IN ('pending', 'running', 'stuck'))""",
        "a restore was accepted, but no job will ever give the object back: its customer stays shut out",
        BY_HAND + "insert its restore job and the job's `enqueued` event, in one transaction",
    ),
    Check(
        "releasing_without_job",
        "resource",
        """
        SELECT id, (SELECT max(created_at) FROM outbox WHERE resource_id = resources.id AND kind = 'release') AS since,
               concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'releasing'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = resources.id AND kind = 'release'
                                                AND state IN ('pending', 'running', 'stuck'))""",
        "a release was accepted, but no job will ever take the mark off: it can be neither deleted nor adopted again",
        BY_HAND + "insert its release job and the job's `enqueued` event, in one transaction",
    ),
    Check(
        "active_in_quarantine",
        "resource",
        """
        SELECT resources.id, finished_at AS since, concat('deprovision job ', cancelled.id, ' was cancelled') AS note
          FROM (SELECT resource_id, max(id) AS id, max(finished_at) AS finished_at FROM outbox
                 WHERE kind = 'deprovision' AND state = 'cancelled' GROUP BY resource_id) AS cancelled
          JOIN resources ON resources.id = resource_id
         WHERE status = 'active'
           AND NOT EXISTS (SELECT FROM outbox WHERE outbox.resource_id = resources.id AND kind = 'restore'
                                                AND state = 'succeeded' AND outbox.id > cancelled.id)""",
        "its teardown was called off, but no restore gave the object back: it may still be in quarantine, though its "
        "status says that it serves",
        BY_HAND + "see whether its customer can log in; if not, delete the resource and restore it",
    ),
    Check(
        "deleting_without_time",
        "resource",
        """
        SELECT resources.id, deleted_at AS since, concat('deprovision job ', outbox.id, ' is at ', step) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE status = 'deleting' AND purge_at IS NULL AND outbox.kind = 'deprovision'
           AND state IN ('pending', 'running', 'stuck') AND step IN ('quarantine', 'snapshot', 'wait')""",
        "the teardown has a grace, but no `purge_at` says until when: it may be destroyed before its time",
        BY_HAND + "set `purge_at` to the one that its job's `enqueued` event names",
    ),
    Check(
        "destroyed_early",
        "resource",
        f"""
        SELECT resources.id, last.at AS since,
               concat('job ', outbox.id, ' started to destroy it; purge_at is ', purge_at) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         CROSS JOIN LATERAL (SELECT at FROM events WHERE job_id = outbox.id AND event = '{Event.STARTED}'
                              ORDER BY id DESC LIMIT 1) AS last
         WHERE outbox.kind = 'deprovision' AND state <> 'cancelled' AND started_step = 'destroy'
           AND purge_at > deleted_at AND last.at < purge_at
         UNION ALL
        SELECT resource_id, finished_at, concat('job ', id, ' started to destroy it without a verified snapshot')
          FROM outbox
         WHERE kind = 'deprovision' AND needs_snapshot AND started_step = 'destroy'
           AND NOT EXISTS (SELECT FROM snapshots WHERE job_id = outbox.id AND verified_at IS NOT NULL)""",
        "it was destroyed while it could still be restored, or without the snapshot that it needed: the promise of "
        "undo is not kept",
        "tell its tenant, and look for another copy of the data; " + REPORT,
    ),
    Check(
        "provisioning_without_job",
        "resource",
        """
        SELECT id, created_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'provisioning'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = resources.id AND kind = 'provision'
                                                AND state IN ('pending', 'running', 'stuck'))""",
        "the resource was asked for, but no job will ever make it",
        "`deprovisioner resources delete ID` tears down what exists of it; then ask for the resource again",
    ),
    Check(
        "active_without_identity",
        "resource",
        """
        SELECT id, created_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'active'
           AND (activated_at IS NULL OR manifest ->> 'generation' IS DISTINCT FROM CAST(generation AS text))""",
        "the resource serves, but its identity is not recorded: a DELETE could not tell it from another object that "
        "bears its name",
        "take the manifest from the job's `activated` event; do not delete the resource before that",
    ),
    Check(
        "manifest_altered",
        "resource",
        f"""
        SELECT id, at AS since,
               CASE WHEN ends > 1 THEN concat(ends, ' events end its one provision (activated): which is forged?')
                    ELSE concat((SELECT string_agg(key, ', ' ORDER BY key)
                                   FROM jsonb_each(manifest) AS stored
                                   FULL JOIN jsonb_each(recorded) AS told USING (key)
                                  WHERE stored.value IS DISTINCT FROM told.value),
                                ': not as event ', event_id, ' (', event, ') and later ones record it') END AS note
          FROM ({_RECORDED}) AS vouched
         WHERE manifest IS DISTINCT FROM recorded OR ends > 1
         UNION ALL
        SELECT resources.id, outbox.created_at,
               concat('job ', outbox.id, ' goes to ', outbox.backend, '; the resource is on ', resources.backend)
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE outbox.backend <> resources.backend
           AND (finished_at IS NULL  -- what had ended before a rebind keeps the backend's old name
                OR NOT EXISTS (SELECT FROM events
                                WHERE events.resource_id = resources.id AND event = '{Event.REBOUND}'
                                  AND detail #>> '{{was,backend}}' = outbox.backend))""",
        "the row no longer names what the chain of events says: a DELETE would destroy another object, or would look "
        "for it on another backend and call it gone",
        "hold the backend at once; " + BY_HAND + "put back what the events record, as docs/runbook.md says",
    ),
    Check(
        "manifest_unvouched",
        "resource",
        f"""
        SELECT resources.id, outbox.created_at AS since, concat('provision job ', outbox.id, ' is ', state) AS note
          FROM resources JOIN outbox ON resource_id = resources.id AND outbox.kind = 'provision'
         WHERE status <> 'deleted' AND manifest IS NOT NULL
           AND NOT EXISTS (SELECT FROM events WHERE resource_id = resources.id AND {_CARRIES})""",
        "a process of a version before revision 0014 stored the manifest, and no event records it yet",
        "nothing while the provision works: its end records the manifest. In a resource that stays here, compare the "
        "manifest with the object on its backend before you delete it",
        "warning",
    ),
    Check(
        "deleted_without_evidence",
        "resource",
        f"""
        SELECT id, purged_at AS since, concat(name, ' of ', tenant, ' on ', backend) AS note FROM resources
         WHERE status = 'deleted'
           AND NOT EXISTS (SELECT FROM events WHERE resource_id = resources.id AND event IN ({quoted(*ENDS_DELETION)})
                              AND (detail ->> 'seen' IS NOT NULL
                                   OR (event = '{Event.RESOLVED}' AND detail ->> 'forced' = 'true'
                                       AND detail ->> 'proposed_by' <> detail ->> 'approved_by')))""",
        "the resource is called deleted, but no event says that a worker saw it gone or that two operators forced it: "
        "it may still run",
        "search the backend for the names in its manifest; an object that bears its generation is an orphan",
    ),
    Check(
        "deprovision_of_undeleted",
        "resource",
        """
        SELECT resources.id, outbox.created_at AS since,
               concat('it is ', status, '; deprovision job ', outbox.id, ' is ', state) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE status IN ('provisioning', 'active', 'restoring') AND outbox.kind = 'deprovision'
           AND state <> 'cancelled'""",
        "the resource has a deprovision job, but its status says that it was never deleted; no DELETE can win any more",
        BY_HAND + "see from the job's events whether it is deleted, and set its status and times accordingly",
    ),
    Check(
        "restore_of_unrestored",
        "resource",
        """
        SELECT resources.id, outbox.created_at AS since,
               concat('it is ', status, '; restore job ', outbox.id, ' is ', state) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE outbox.kind = 'restore' AND state IN ('pending', 'running', 'stuck') AND status <> 'restoring'""",
        "a job would give back what is not being restored; its `start` refuses that, and the job ends stuck",
        BY_HAND + "see from the events of both jobs what the resource is, and set its status accordingly",
    ),
    Check(
        "deleted_with_open_job",
        "resource",
        """
        SELECT resources.id, purged_at AS since, concat('deprovision job ', outbox.id, ' is ', state) AS note
          FROM resources JOIN outbox ON resource_id = resources.id
         WHERE status = 'deleted' AND outbox.kind = 'deprovision' AND state IN ('pending', 'running', 'stuck')""",
        "the resource is called deleted, but its teardown is not done",
        BY_HAND + "set the resource to `deleting`, with `purged_at` NULL; its job does the rest",
    ),
)
