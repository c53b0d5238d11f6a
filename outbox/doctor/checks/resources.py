"""Checks of resources: jobs and evidence must agree with their status."""

from outbox.doctor.checks.check import BY_HAND, Check
from outbox.events import ENDS_DELETION, Event, quoted

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
         WHERE status IN ('provisioning', 'active') AND outbox.kind = 'deprovision' AND state <> 'cancelled'""",
        "the resource has a deprovision job, but its status says that it was never deleted; no DELETE can win any more",
        BY_HAND + "see from the job's events whether it is deleted, and set its status and times accordingly",
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
