"""The classes of what a survey finds, as data: which rows belong to each, and what each decision calls."""

from collections.abc import Mapping
from dataclasses import dataclass

from outbox.recovery import acts
from outbox.recovery.acts import Act
from outbox.states import Decision

CONFIRM, CANCEL, LEAVE = Decision

# An expiry that comes due while a person reads the survey belongs to it. A survey is no older than that when decided.
HORIZON_MINUTES = 60

# What each class's query may read: the survey itself, what the places have noted and this database lacks, and of the
# notes of each resource the last one.
WITH = """
    WITH survey AS (
        SELECT * FROM recoveries WHERE id = :id
    ), notes AS MATERIALIZED (
        SELECT note.* FROM survey, jsonb_to_recordset(notes)
            AS note (event bigint, at timestamptz, what text, resource uuid, detail jsonb)
    ), since AS MATERIALIZED (
        SELECT DISTINCT ON (resource) resource, jsonb_build_object('what', what, 'at', at) AS said
          FROM notes WHERE resource IS NOT NULL ORDER BY resource, event DESC
    ), objects AS (
        SELECT * FROM recovery_objects WHERE recovery_id = :id
    )"""
_WHOSE = """'tenant', resources.tenant, 'name', resources.name, 'status', resources.status"""
_OF_RESOURCE = "resources.backend, CAST(NULL AS bigint) AS job_id, CAST(NULL AS bigint) AS fence, resources.id"
_OF_NOTHING = """CAST(NULL AS text) AS backend, CAST(NULL AS bigint) AS job_id, CAST(NULL AS bigint) AS fence,
           CAST(NULL AS uuid) AS resource_id"""


def _jobs(kind: str, states: str) -> str:
    """The jobs of one kind; `there`: whether the object of the resource was seen."""
    return f"""
    SELECT concat(outbox.id, ':', fence) AS key, outbox.backend, outbox.id AS job_id, fence, resource_id,
           jsonb_build_object({_WHOSE}, 'state', state, 'step', step, 'purge_at', purge_at, 'adopted', adopted,
                              'there', EXISTS (SELECT FROM objects WHERE generation = resources.generation),
                              'read', outbox.backend = ANY(survey.surveyed), 'since', since.said) AS detail
      FROM survey CROSS JOIN outbox JOIN resources ON resources.id = resource_id
      LEFT JOIN since ON since.resource = resource_id
     WHERE outbox.kind = '{kind}' AND outbox.state IN ({states})"""


def _changed(fields: str, differs: str) -> str:
    """Resources whose last lost change of these fields has another value than the row."""
    return f"""
    SELECT concat(resources.id, ':', lost.event) AS key, {_OF_RESOURCE} AS resource_id,
           jsonb_build_object({_WHOSE}, 'set', lost.set, 'at', lost.at) AS detail
      FROM (SELECT resource, max(event) AS event, max(at) AS at, jsonb_object_agg(field, value ORDER BY event) AS set
              FROM notes CROSS JOIN LATERAL jsonb_each(
                   CASE jsonb_typeof(detail -> 'new') WHEN 'object' THEN detail -> 'new' END) AS new (field, value)
             WHERE what = 'changed' AND field IN ({fields}) GROUP BY resource) AS lost
      JOIN resources ON resources.id = lost.resource
     WHERE status <> 'deleted' AND ({differs})"""


@dataclass(frozen=True)
class ItemClass:
    """One class. `does` has, for each decision that it takes, what happens then, in words, and the act.

    `rows` selects key, backend, job_id, fence, resource_id and detail. `of_backend`: also where one backend went back.
    `looks`: each item is inspected on its backend before the act.
    """

    name: str
    about: str
    rows: str
    does: Mapping[Decision, tuple[str, Act]]
    of_backend: bool = False
    looks: bool = False


# In the order in which they are worked off: first what protects.
CLASSES = (
    ItemClass(
        "lost_holds",
        "holds that were engaged since, and that this database does not know",
        f"""
    SELECT CAST(engaged.event AS text) AS key, {_OF_NOTHING},
           engaged.detail || jsonb_build_object('at', engaged.at) AS detail
      FROM notes AS engaged
     WHERE what = 'hold_engaged' AND engaged.detail ->> 'cause' <> 'rewound'
       AND NOT EXISTS (SELECT FROM notes AS released
                        WHERE released.what = 'hold_released' AND released.event > engaged.event
                          AND released.detail ->> 'hold' = engaged.detail ->> 'hold')""",
        {
            CONFIRM: ("they are engaged again", acts.engage),
            CANCEL: ("they are forgotten", acts.nothing),
            LEAVE: ("they are forgotten", acts.nothing),
        },
    ),
    ItemClass(
        "lost_revocations",
        "tokens that were revoked since, and that are valid here",
        f"""
    SELECT concat(tokens.id, ':', noted.event) AS key, {_OF_NOTHING},
           jsonb_build_object('token', tokens.id, 'name', tokens.name, 'role', role, 'tenant', tenant,
                              'at', noted.at) AS detail
      FROM notes AS noted JOIN tokens ON CAST(tokens.id AS text) = noted.detail ->> 'token'
     WHERE what = 'token_revoked' AND revoked_at IS NULL AND tokens.name = noted.detail ->> 'name'""",
        {
            CONFIRM: ("they are revoked again", acts.revoke),
            CANCEL: ("they stay valid", acts.nothing),
            LEAVE: ("they stay valid", acts.nothing),
        },
    ),
    ItemClass(
        "lost_protections",
        "resources that were protected, kept longer or unprotected since",
        _changed(
            "'protected', 'grace_seconds', 'snapshot'",
            """(lost.set ? 'protected' AND lost.set -> 'protected' <> to_jsonb(protected))
            OR (lost.set ? 'grace_seconds' AND CAST(lost.set ->> 'grace_seconds' AS int) IS DISTINCT FROM grace_seconds)
            OR (lost.set ? 'snapshot' AND lost.set ->> 'snapshot' IS DISTINCT FROM snapshot)""",
        ),
        {
            CONFIRM: ("they are set as they were then", acts.change),
            CANCEL: ("the changes are forgotten", acts.nothing),
            LEAVE: ("the changes are forgotten", acts.nothing),
        },
    ),
    ItemClass(
        "lost_expiries",
        "resources whose `expires_at` was lifted or moved since",
        _changed(
            "'expires_at'",
            "CAST(lost.set ->> 'expires_at' AS timestamptz) IS DISTINCT FROM expires_at",
        ),
        {
            CONFIRM: ("`expires_at` is set as it was then", acts.change),
            CANCEL: ("the changes are forgotten", acts.nothing),
            LEAVE: ("the changes are forgotten", acts.nothing),
        },
    ),
    ItemClass(
        "operations",
        "bulk work that is under way here",
        """
    SELECT CAST(operations.id AS text) AS key, CAST(NULL AS text) AS backend, CAST(NULL AS bigint) AS job_id,
           CAST(NULL AS bigint) AS fence, CAST(NULL AS uuid) AS resource_id,
           jsonb_build_object('operation', operations.id, 'kind', kind, 'filter', filter, 'total', total,
                              'since', (SELECT jsonb_build_object('what', what, 'at', at) FROM notes
                                         WHERE what = 'operation_stopped'
                                           AND detail ->> 'operation' = CAST(operations.id AS text)
                                         ORDER BY event DESC LIMIT 1)) AS detail
      FROM operations WHERE finished_at IS NULL""",
        {
            CONFIRM: ("they go on", acts.nothing),
            CANCEL: ("they are stopped; what they have made pending is in the other classes", acts.stop),
            LEAVE: ("they are stopped; what they have made pending is in the other classes", acts.stop),
        },
    ),
    ItemClass(
        "expiries_due",
        f"resources whose `expires_at` has passed, or comes within {HORIZON_MINUTES} minutes of the survey",
        f"""
    SELECT concat(resources.id, ':', expires_at) AS key, {_OF_RESOURCE} AS resource_id,
           jsonb_build_object({_WHOSE}, 'expires_at', expires_at, 'since', since.said) AS detail
      FROM survey CROSS JOIN resources LEFT JOIN since ON since.resource = resources.id
     WHERE resources.status IN ('active', 'provisioning') AND NOT protected
       AND expires_at <= survey.created_at + interval '{HORIZON_MINUTES} minutes'""",
        {
            CONFIRM: ("they expire, and are torn down", acts.nothing),
            CANCEL: ("`expires_at` is cleared: they stay", acts.lift),
            LEAVE: ("they are protected, until you decide about each", acts.protect),
        },
    ),
    ItemClass(
        "teardowns",
        "deletes that this database knows and has not carried out",
        _jobs("deprovision", "'pending', 'running'"),
        {
            CONFIRM: ("they go on, to the destruction", acts.nothing),
            CANCEL: ("they are taken back, and their resources restored", acts.take_back),
            LEAVE: ("they are set aside as stuck, until you decide about each", acts.set_aside),
        },
    ),
    ItemClass(
        "teardowns_stuck",
        "deletes that wait for an operator here",
        _jobs("deprovision", "'stuck'"),
        {
            CONFIRM: ("they stay stuck", acts.nothing),
            CANCEL: ("they are taken back, and their resources restored", acts.take_back),
            LEAVE: ("they stay stuck", acts.nothing),
        },
    ),
    ItemClass(
        "provisions",
        "resources that are to be made here",
        _jobs("provision", "'pending', 'running'"),
        {
            CONFIRM: ("they are made", acts.nothing),
            CANCEL: ("they are rolled back, unless their object was seen", acts.roll_back),
            LEAVE: ("they are set aside as stuck, until you decide about each", acts.set_aside),
        },
    ),
    ItemClass(
        "restores",
        "resources that are to be given back here",
        _jobs("restore", "'pending', 'running'"),
        {
            CONFIRM: ("they are given back", acts.nothing),
            CANCEL: ("their restore is abandoned: they are deleted again, with a new grace", acts.abandon),
            LEAVE: ("they are set aside as stuck, until you decide about each", acts.set_aside),
        },
    ),
    ItemClass(
        "active_gone",
        "resources that are active here, and whose object is gone, in quarantine, or another one",
        f"""
    SELECT concat(resources.id, ':', resources.generation) AS key, {_OF_RESOURCE} AS resource_id,
           jsonb_build_object({_WHOSE}, 'manifest', manifest, 'protected', protected, 'since', since.said,
                              'found', CASE WHEN object.id IS NULL THEN 'absent'
                                            WHEN object.quarantined THEN 'in quarantine' ELSE 'different' END) AS detail
      FROM survey CROSS JOIN resources
      LEFT JOIN objects AS object ON object.generation = resources.generation AND object.backend = resources.backend
      LEFT JOIN since ON since.resource = resources.id
     WHERE resources.status = 'active' AND resources.backend = ANY(survey.surveyed)
       AND resources.activated_at < survey.created_at
       AND (object.id IS NULL OR object.quarantined
            OR EXISTS (SELECT FROM jsonb_each_text(object.names) AS has
                         JOIN jsonb_each_text(manifest) AS wants USING (key) WHERE has.value <> wants.value))""",
        {
            CONFIRM: ("each is inspected again; those that are absent are closed as deleted", acts.close),
            LEAVE: ("they stay as they are", acts.nothing),
        },
        of_backend=True,
        looks=True,
    ),
    ItemClass(
        "deleted_there",
        "resources that are deleted here, and whose object is there",
        f"""
    SELECT concat(object.backend, ':', object.mark) AS key, {_OF_RESOURCE} AS resource_id,
           jsonb_build_object({_WHOSE}, 'kind', resources.kind, 'names', names, 'parts', to_jsonb(parts), 'why', why,
                              'purged_at', purged_at) AS detail
      FROM survey CROSS JOIN objects AS object
      JOIN resources ON resources.generation = object.generation AND resources.backend = object.backend
     WHERE resources.status = 'deleted' AND resources.backend = ANY(survey.surveyed)
       AND NOT EXISTS (SELECT FROM resources AS other
                        WHERE other.generation = object.generation AND other.status <> 'deleted')""",
        {
            CONFIRM: ("each becomes a new resource of its tenant, which you may delete as any", acts.adopt_deleted),
            LEAVE: ("they stay as they are: no row manages them", acts.nothing),
        },
        of_backend=True,
    ),
    ItemClass(
        "unknown_objects",
        "objects that bear our mark, and that no row knows",
        """
    SELECT concat(object.backend, ':', object.mark) AS key, object.backend, CAST(NULL AS bigint) AS job_id,
           CAST(NULL AS bigint) AS fence, coalesce(object.resource_id, made.resource) AS resource_id,
           jsonb_build_object('names', names, 'parts', to_jsonb(parts), 'why', why, 'tenant', made.detail -> 'tenant',
                              'name', made.detail -> 'name', 'kind', made.detail -> 'kind') AS detail
      FROM survey CROSS JOIN objects AS object
      LEFT JOIN notes AS made
             ON made.what = 'registered' AND made.detail ->> 'backend' = object.backend
            AND CASE WHEN object.resource_id IS NULL THEN made.detail ->> 'generation' = object.mark
                     ELSE made.resource = object.resource_id END
     WHERE NOT EXISTS (SELECT FROM resources WHERE resources.generation = object.generation)
       AND (made.event IS NOT NULL OR NOT object.backend = ANY(survey.shared))""",
        {
            CONFIRM: ("each becomes a resource, of the tenant that the notes name, else of --tenant", acts.adopt),
            LEAVE: ("they stay as they are: no row manages them", acts.nothing),
        },
    ),
)
BY_NAME = {one.name: one for one in CLASSES}
