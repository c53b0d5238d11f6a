"""Checks of the evidence: missing events, broken chains and checkpoints, late reports."""

from outbox.audit import CHECKPOINT_EVERY, HEADS, LINKS, SEAL
from outbox.doctor.checks.check import BY_HAND, REPORT, Check
from outbox.events import ENDS_ATTEMPT, ENDS_DELETION, MOVES_NOTHING, STATE_AFTER, Event, quoted

# For how long the doctor names a late report: its event cannot be removed, and must not be named for ever.
LATE_DAYS = 7
# A worker undoes at once what it made too late: an object that is not removed by then will not be.
UNDO_MINUTES = 10

# Workers make a checkpoint each hour; while they restart or are busy, two may be missed.
CHECKPOINT_OVERDUE = 3 * CHECKPOINT_EVERY


_OUTCOMES = quoted(*ENDS_ATTEMPT)
_CASES = " ".join(
    f"WHEN '{event}' THEN " + (f"'{state}'" if state else "detail ->> 'state'") for event, state in STATE_AFTER.items()
)
_LEFT_IN = f"CASE event {_CASES} END"
# The chain of the acts has the installation's id, and no resource has it.
_WHOSE = """CASE WHEN {0} = (SELECT id FROM installation)
                           THEN '; it is no resource''s chain, but `deprovisioner audit acts`' END"""

EVIDENCE = (
    Check(
        "never_enqueued",
        "job",
        f"""
        SELECT id, created_at AS since, concat(kind, ', ', state) AS note FROM outbox
         WHERE NOT EXISTS (SELECT FROM events WHERE job_id = outbox.id AND event = '{Event.ENQUEUED}')""",
        "events are missing: who asked for this job is not recorded",
        BY_HAND + REPORT,
    ),
    Check(
        "claim_not_recorded",
        "job",
        f"""
        SELECT id, created_at AS since, concat('fence ', fence, ', ', coalesce(told, 0), ' claims recorded') AS note
          FROM outbox
          LEFT JOIN (SELECT job_id, count(DISTINCT fence) AS told FROM events
                      WHERE event = '{Event.CLAIMED}' GROUP BY job_id) AS claims ON job_id = outbox.id
         WHERE coalesce(told, 0) < fence""",
        "events are missing: each fence from 1 to the job's own must have a `claimed` event, and some have none",
        BY_HAND + REPORT,
    ),
    Check(
        "last_event_differs",
        "job",
        f"""
        SELECT outbox.id, last.at AS since,
               concat(state, ' at fence ', outbox.fence, '; last event ', event, ' at fence ', last.fence) AS note
          FROM outbox
         CROSS JOIN LATERAL (SELECT * FROM events WHERE job_id = outbox.id AND event NOT IN ({quoted(*MOVES_NOTHING)})
                              ORDER BY id DESC LIMIT 1) AS last
         WHERE state IN ('pending', 'running', 'stuck')
           AND (last.fence <> outbox.fence OR {_LEFT_IN} IS DISTINCT FROM state)""",
        "events are missing: the job's state is not the one that its last event led to",
        BY_HAND + REPORT,
    ),
    Check(
        "end_not_recorded",
        "job",
        f"""
        SELECT id, finished_at AS since, concat(kind, ', ', state, ' at fence ', fence) AS note FROM outbox
         WHERE state IN ('succeeded', 'cancelled')
           AND NOT EXISTS (SELECT FROM events WHERE job_id = outbox.id AND events.fence = outbox.fence
                                                AND {_LEFT_IN} = outbox.state)""",
        "events are missing: the job is finished, but no event says how",
        BY_HAND + REPORT,
    ),
    Check(
        "start_without_outcome",
        "job",
        f"""
        SELECT job_id AS id, min(at) AS since,
               concat('again at fence ', string_agg(CAST(fence AS text), ', ' ORDER BY id)) AS note
          FROM (SELECT *, lag(event) OVER (PARTITION BY job_id ORDER BY id) AS before FROM events
                 WHERE event IN ({quoted(Event.CLAIMED, Event.STARTED)}, {_OUTCOMES})) AS told
         WHERE event IN ({quoted(Event.CLAIMED, Event.STARTED)}) AND before = '{Event.STARTED}'
         GROUP BY job_id""",
        "an attempt started and has no outcome, and the job was claimed again: what the attempt did is not known",
        "compare `deprovisioner jobs show ID` with the backend's own log: was the right object torn down, once? "
        + REPORT,
    ),
    Check(
        "claim_without_outcome",
        "job",
        f"""
        SELECT job_id AS id, min(at) AS since,
               concat('again at fence ', string_agg(CAST(fence AS text), ', ' ORDER BY id)) AS note
          FROM (SELECT *, lag(event) OVER (PARTITION BY job_id ORDER BY id) AS before FROM events
                 WHERE event IN ({quoted(Event.CLAIMED, Event.STARTED)}, {_OUTCOMES})) AS told
         WHERE event = '{Event.CLAIMED}' AND before = '{Event.CLAIMED}'
         GROUP BY job_id""",
        "events are missing: a claim was followed by the next with no outcome between (the first had not started)",
        BY_HAND + REPORT,
    ),
    Check(
        "chain_broken",
        "resource",
        f"""
        SELECT resource_id AS id, min(at) AS since,
               concat('at event ', min(seq), ' of its chain: a row was altered, lost or put in',
                      {_WHOSE.format("resource_id")}) AS note
          FROM ({LINKS.format(which="")}) AS link
         WHERE NOT holds GROUP BY resource_id
         UNION ALL
        SELECT resource_id, min(created_at), concat('no event at all; jobs ', string_agg(CAST(id AS text), ', '))
          FROM outbox WHERE NOT EXISTS (SELECT FROM events WHERE events.resource_id = outbox.resource_id)
         GROUP BY resource_id""",
        "the evidence was altered: the hashes of these events no longer follow from their rows",
        "a person who may switch off triggers did this, or a restore: compare with a backup and the servers' logs; "
        + REPORT,
    ),
    Check(
        "checkpoint_broken",
        "resource or checkpoint",
        f"""
        SELECT CAST(told.resource_id AS text) AS id, min(audit_checkpoints.at) AS since,
               concat('checkpoint ', min(audit_checkpoints.id), ' has its event ', min(told.seq),
                      ', and it is not that event any more', {_WHOSE.format("told.resource_id")}) AS note
          FROM audit_heads AS told
          JOIN audit_checkpoints ON audit_checkpoints.id = checkpoint_id
          LEFT JOIN events AS event ON event.resource_id = told.resource_id AND event.seq = told.seq
         WHERE event.hash IS DISTINCT FROM told.hash
         GROUP BY told.resource_id
         UNION ALL
        SELECT concat('checkpoint ', id), at, 'its own hash does not follow from its heads and the checkpoint before it'
          FROM (SELECT audit_checkpoints.*, coalesce(body, '') AS body, lag(hash, 1, '') OVER (ORDER BY id) AS before
                  FROM audit_checkpoints
                  LEFT JOIN (SELECT checkpoint_id, {HEADS} AS body FROM audit_heads GROUP BY checkpoint_id) AS kept
                    ON checkpoint_id = id) AS made
         WHERE previous <> before OR hash <> {SEAL.format(row="made")}""",
        "events that a checkpoint covers were changed or removed, or the checkpoint was changed",
        "compare with the `audit_checkpoint` lines in the shipped logs, then with a backup; " + REPORT,
    ),
    Check(
        "checkpoint_overdue",
        "checkpoint",
        """
        SELECT coalesce(CAST(max(last.id) AS text), 'none') AS id, min(event.at) AS since,
               concat(count(*), ' events since then are in no checkpoint') AS note
          FROM events AS event
          LEFT JOIN (SELECT max(id) AS id, max(events_to) AS events_to FROM audit_checkpoints) AS last ON true
         WHERE event.id > coalesce(last.events_to, 0) AND event.at < now() - CAST(:unvouched AS interval)
           AND NOT EXISTS (SELECT FROM audit_heads AS told
                            WHERE told.resource_id = event.resource_id AND told.seq >= event.seq)
        HAVING count(*) > 0
         UNION ALL
        SELECT CAST(id AS text), at, 'it bears a time that is still to come'
          FROM (SELECT id, at FROM audit_checkpoints ORDER BY id DESC LIMIT 1) AS last WHERE at > now()""",
        f"for {CHECKPOINT_OVERDUE.seconds // 3600} hours no checkpoint has covered these events, so they could be "
        "changed unseen (workers make one each hour); or the newest checkpoint has a time in the future",
        "are workers running, and what does their log say? `deprovisioner audit checkpoint` makes one now; if a "
        "checkpoint has a time in the future, find out whose clock was wrong, or who wrote it",
        "warning",
    ),
    Check(
        "late_birth_left",
        "resource",
        f"""
        SELECT resources.id, events.at AS since, concat('job ', job_id, ', made: ', detail ->> 'provisioned') AS note
          FROM events JOIN resources ON resources.id = resource_id
         WHERE event = '{Event.LATE}' AND detail ->> 'provisioned' IS NOT NULL AND status = 'deleted' AND NOT adopted
           AND at < now() - CAST(:undo AS interval)
           AND EXISTS (SELECT FROM events AS gone WHERE gone.resource_id = events.resource_id
                          AND gone.event IN ({quoted(*ENDS_DELETION)}) AND gone.id < events.id)
           AND NOT EXISTS (SELECT FROM events AS undone WHERE undone.resource_id = events.resource_id
                              AND undone.event = '{Event.LATE}' AND undone.detail ->> 'undone' IS NOT NULL
                              AND undone.id > events.id)""",
        "after the resource was seen gone, a worker that had stood still reported an object that it had made, and did "
        "not remove it",
        "search the backend for the names in the note; an object that bears this resource's generation is an orphan",
    ),
    Check(
        "late",
        "job",
        f"""
        SELECT job_id AS id, at AS since, concat(actor, ' at fence ', detail ->> 'fence', ': ',
               (SELECT string_agg(word, ', ') FROM jsonb_object_keys(detail) AS word WHERE word <> 'fence')) AS note
          FROM events WHERE event = '{Event.LATE}' AND at > now() - CAST(:late AS interval)""",
        f"a worker reported after it had lost its claim (in the last {LATE_DAYS} days); the report was not applied",
        "harmless by itself; if it repeats, workers stand still: give them more CPU, or set a longer lease",
        "warning",
    ),
)
