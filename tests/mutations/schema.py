"""What stands in the schema, whoever writes: triggers, CHECKs and unique indexes."""

from tests.mutations.cut import cut

SCHEMA = "migrations/versions/0001_the_outbox.py"
GUARD = "tests/outbox/test_guard.py"
MOVES = "tests/outbox/test_transitions.py"
API = "tests/api/test_bad_input.py"

_NAMED = "test_the_checks_hold_whoever_writes"
GUARDS_OF_SCHEMA = (
    *(
        mutant
        for kind in ("deprovision", "provision")
        for mutant in cut(
            SCHEMA,
            "",
            GUARD,
            (
                f"outbox_one_{kind}",
                f'"outbox_one_{kind}",\n        "outbox",\n        ["resource_id"],\n        unique=True,',
                f'"outbox_one_{kind}",\n        "outbox",\n        ["resource_id"],',
                f"test_a_second_job_of_a_kind_is_impossible_whoever_inserts_it[{kind}]",
            ),
        )
    ),
    *cut(
        SCHEMA,
        "",
        MOVES,
        (
            "resources_generation",
            '"resources_generation", "resources", ["generation"], unique=True',
            '"resources_generation", "resources", ["generation"], unique=False',
            f"{API}::test_an_object_is_adopted_by_one_resource_only",
        ),
        (
            "outbox_final_is_final",
            "WHEN (OLD.state IN ('succeeded', 'cancelled'))",
            "WHEN (false)",
            "test_a_final_job_stays_final_whoever_writes",
        ),
        (
            "outbox_fence_never_falls",
            "WHEN (NEW.fence < OLD.fence)",
            "WHEN (false)",
            "test_a_fence_never_falls_whoever_writes",
        ),
        (
            "outbox_live_stays",
            "WHEN (OLD.state NOT IN ('succeeded', 'cancelled'))",
            "WHEN (false)",
            "test_live_rows_cannot_be_removed",
        ),
        (
            "resources_deleted_is_final",
            "WHEN (OLD.status = 'deleted')",
            "WHEN (false)",
            "test_a_deleted_resource_stays_deleted_whoever_writes",
        ),
        ("resources_live_stays", "WHEN (OLD.status <> 'deleted')", "WHEN (false)", "test_live_rows_cannot_be_removed"),
        *(
            (
                f"events_append_only: {verb}",
                "UPDATE OR DELETE OR TRUNCATE",
                " OR ".join({"UPDATE", "DELETE", "TRUNCATE"} - {verb}),
                "test_events_are_append_only_whoever_writes",
            )
            for verb in ("UPDATE", "DELETE", "TRUNCATE")
        ),
        (
            "outbox_resource_id_fkey",
            'sa.ForeignKeyConstraint(["resource_id"], ["resources.id"], name=op.f("outbox_resource_id_fkey")),',
            "",
            "test_a_job_has_a_resource_whoever_writes",
        ),
        *(
            (name, f'"{check}"', '"true"', f"{_NAMED}[{name}]")
            for name, check in {
                "outbox_running_has_claim": "(state = 'running') = (claimed_by IS NOT NULL)",
                "outbox_running_has_lease": "(state = 'running') = (lease_expires_at IS NOT NULL)",
                "outbox_stuck_has_reason": "(state = 'stuck') = (stuck_reason IS NOT NULL)",
                "outbox_final_is_finished": "(state IN ('succeeded', 'cancelled')) = (finished_at IS NOT NULL)",
                "outbox_kind_known": "kind IN ('provision', 'deprovision', 'restore')",
                "outbox_state_known": "state IN ('pending', 'running', 'stuck', 'succeeded', 'cancelled')",
                "outbox_stuck_reason_known": "stuck_reason IN ('attempts_exhausted', 'refused', 'outcome_unknown')",
                "outbox_attempts_within_fence": "attempts >= 0 AND attempts <= fence",
                "outbox_max_attempts_positive": "max_attempts >= 1",
                "outbox_started_within_fence": "started_fence <= fence",
                "resources_deleted_is_purged": "(status = 'deleted') = (purged_at IS NOT NULL)",
                "resources_deleting_since": "(status IN ('deleting', 'deleted')) = (deleted_at IS NOT NULL)",
                "resources_active_has_manifest": "status <> 'active'"
                " OR (activated_at IS NOT NULL AND manifest IS NOT NULL)",
                "resources_deleted_has_no_credentials": "status <> 'deleted' OR credentials IS NULL",
                "resources_status_known": "status IN ('provisioning', 'active', 'deleting', 'deleted')",
                "tokens_tenant_has_tenant": "(role = 'tenant') = (tenant IS NOT NULL)",
                "tokens_role_known": "role IN ('tenant', 'operator')",
            }.items()
        ),
    ),
)
