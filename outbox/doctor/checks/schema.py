"""Checks of the schema: its revision, its guards and its indexes."""

from collections.abc import Sequence

from outbox import tables
from outbox.doctor.checks.check import Check
from outbox.rows import Json

# The triggers that the migrations create; a test compares them. Constraints and indexes come from `tables`.
TRIGGERS = {
    "outbox_final_is_final": "outbox",
    "outbox_fence_never_falls": "outbox",
    "outbox_live_stays": "outbox",
    "outbox_lane": "outbox",
    "outbox_claim": "outbox",
    "outbox_start": "outbox",
    "outbox_needs_snapshot_stays": "outbox",
    "outbox_destroying_stays": "outbox",
    "outbox_identity_stays": "outbox",
    "outbox_origin_stays": "outbox",
    "outbox_backend_recorded": "outbox",
    "outbox_enqueue_rewound": "outbox",
    "outbox_start_rewound": "outbox",
    "resources_change_rewound": "resources",
    "resources_deleted_is_final": "resources",
    "resources_released_is_final": "resources",
    "resources_abandoned_is_final": "resources",
    "resources_live_stays": "resources",
    "resources_change": "resources",
    "resources_identity_stays": "resources",
    "resources_backend_recorded": "resources",
    "resources_credentials_stay": "resources",
    "resources_manifest_is_its_own": "resources",
    "resources_manifest_recorded": "resources",
    "events_append_only": "events",
    "events_rebound_by_owner": "events",
    "holds_released_is_final": "holds",
    "holds_are_kept": "holds",
    "holds_rewound_stays": "holds",
    "operations_finished_is_final": "operations",
    "operations_begin_rewound": "operations",
    "events_chained": "events",
    "audit_checkpoints_append_only": "audit_checkpoints",
    "audit_heads_append_only": "audit_heads",
}


# The constraints, triggers and indexes that the schema lacks; one that is invalid or switched off counts as missing.
_MISSING = """
    SELECT wanted.name AS id, CAST(NULL AS timestamptz) AS since, concat(sort, ' on ', relation) AS note
      FROM unnest(CAST(:{0}_sorts AS text[]), CAST(:{0}_relations AS text[]), CAST(:{0}_names AS text[]))
           AS wanted (sort, relation, name)
     WHERE NOT CASE sort
           WHEN 'constraint' THEN EXISTS (
                SELECT FROM pg_constraint
                 WHERE conrelid = to_regclass(relation) AND conname = wanted.name AND convalidated)
           WHEN 'trigger' THEN EXISTS (
                SELECT FROM pg_trigger
                 WHERE tgrelid = to_regclass(relation) AND tgname = wanted.name AND tgenabled IN ('O', 'A'))
           ELSE EXISTS (
                SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
                 WHERE indrelid = to_regclass(relation) AND relname = wanted.name AND indisvalid
                   AND (indisunique OR sort = 'index')) END"""


SCHEMA = (
    Check(
        "schema_not_at_head",
        "revision",
        """
        SELECT revision AS id, CAST(NULL AS timestamptz) AS since, concat('this version wants ', :head) AS note
          FROM (SELECT coalesce(max(version_num), 'none') AS revision FROM alembic_version) AS at
         WHERE revision <> :head""",
        "the schema is not the one that this version was written for; the other checks may be wrong",
        "run `deprovisioner migrate` and then `doctor`, both of the newest version that is deployed",
    ),
    Check(
        "guard_missing",
        "constraint, unique index or trigger",
        _MISSING.format("guard"),
        "a guard that keeps the promises inside the database is missing, invalid or switched off",
        "stop the workers, see what else is broken below, then create the guard again as migrations/versions has it",
    ),
    Check(
        "index_missing",
        "index",
        _MISSING.format("index"),
        "an index is missing or invalid: claims, sweeps or listings scan whole tables",
        "create the index again with CREATE INDEX CONCURRENTLY, as migrations/versions has it",
        "warning",
    ),
)


def guards() -> list[tuple[str, str, str]]:
    """Sort, table and name of each constraint, trigger and unique index."""
    constraints = [
        ("constraint", table.name, str(constraint.name))
        for table in tables.metadata.tables.values()
        for constraint in table.constraints
    ]
    triggers = [("trigger", table, name) for name, table in TRIGGERS.items()]
    return constraints + triggers + [w for w in indexes() if w[0] == "unique index"]


def indexes() -> list[tuple[str, str, str]]:
    """Sort, table and name of each index, unique ones too."""
    return [
        ("unique index" if index.unique else "index", table.name, str(index.name))
        for table in tables.metadata.tables.values()
        for index in table.indexes
    ]


def wanted(prefix: str, rows: Sequence[tuple[str, str, str]]) -> Json:
    """These rows as the parameters of `_MISSING`, whose names begin with `prefix`."""
    sorts, relations, names = map(list, zip(*rows, strict=True))
    return {f"{prefix}_sorts": sorts, f"{prefix}_relations": relations, f"{prefix}_names": names}
