"""What stands in the schema, whoever writes: triggers, CHECKs and unique indexes."""

from tests.mutations.cut import cut

SCHEMA = "migrations/versions/0001_the_outbox.py"
GUARD = "tests/outbox/test_guard.py"
MOVES = "tests/outbox/test_transitions.py"
API = "tests/api/test_bad_input.py"
MANIFEST = "tests/outbox/test_manifest.py"
GUARDED = "migrations/versions/0014_the_manifest_is_guarded.py"

_STAYS = "test_what_is_destroyed_and_whose_it_is_stays_whoever_writes"
_UNRECORDED = "test_the_service_s_role_rewrites_no_manifest_with_or_without_a_forged_event"
_ITS_EVENT = "test_a_manifest_is_what_its_event_says_and_nothing_else"
_EARLIER = "test_an_event_or_a_start_of_an_earlier_transaction_allows_nothing"
_ADDS = "test_an_inspection_adds_to_a_manifest_and_changes_nothing_in_it"
_OTHERS = "test_an_event_of_another_resource_or_job_allows_nothing"
_ONCE = "test_a_plan_is_stored_once_and_a_provision_that_runs_has_not_ended"
_FORGED = "test_a_forged_event_teaches_doctor_and_runbook_no_other_manifest"
_FOUND = "test_the_doctor_compares_what_is_planned_completed_or_deleted_too"
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
        "migrations/versions/0015_recoveries.py",
        "",
        API,
        (
            "resources_generation_live",
            '"resources_generation_live", "UNIQUE INDEX"',
            '"resources_generation_live", "INDEX"',
            "test_an_object_is_adopted_by_one_resource_only",
        ),
    ),
    *cut(
        SCHEMA,
        "",
        MOVES,
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

_RESOURCE_COLUMNS = ("id", "tenant", "kind", "backend", "adopted", "generation", "created_at")
_JOB_COLUMNS = ("id", "backend", "request_id")
_CREDENTIALS = "test_credentials_are_set_once_and_end_with_the_resource"


def _without(columns: tuple[str, ...], table: str, name: str) -> tuple[str, str, str, str]:
    """The trigger that does not look at one of the columns that stay."""
    of = "BEFORE UPDATE OF {} ON " + table
    left = ", ".join(column for column in columns if column != name)
    value = {
        "tenant": "'globex'",
        "kind": "'redis'",
        "backend": "'redis-main'",
        "adopted": "NOT adopted",
        "created_at": "now()",
    }.get(name, "DEFAULT" if table == "outbox" and name == "id" else "gen_random_uuid()")
    change = f"{table} SET {name} = {value}"
    return f"{table} keeps {name}", of.format(", ".join(columns)), of.format(left), f"{_STAYS}[{change}]"


GUARDS_OF_MANIFESTS = (
    *cut(
        GUARDED,
        "TRIGGERS = {",
        MANIFEST,
        *(_without(_RESOURCE_COLUMNS, "resources", name) for name in _RESOURCE_COLUMNS),
        *(_without(_JOB_COLUMNS, "outbox", name) for name in _JOB_COLUMNS),
        ("manifest: recorded", "WHEN (NEW.manifest IS DISTINCT FROM OLD.manifest)", "WHEN (false)", _UNRECORDED),
        (
            "manifest: of its own generation",
            "WHEN (NEW.manifest ->> 'generation' <> CAST(NEW.generation AS text))",
            "WHEN (false)",
            "test_no_row_has_another_resource_s_generation_in_its_manifest",
        ),
        (
            "manifest: of its own generation from the first",
            "BEFORE INSERT OR UPDATE OF manifest",
            "BEFORE UPDATE OF manifest",
            "test_no_row_has_another_resource_s_generation_in_its_manifest",
        ),
        (
            "credentials: set by a provision",
            "OLD.credentials IS NULL AND OLD.status = 'provisioning'",
            "OLD.credentials IS NULL",
            f"{_CREDENTIALS}['other']",
        ),
        ("credentials: set once", "OLD.credentials IS NULL AND ", "", f"{_CREDENTIALS}['other']"),
        ("credentials: end with the resource", " AND NEW.status = 'deleted'", "", f"{_CREDENTIALS}[NULL]"),
    ),
    *cut(
        GUARDED,
        'MANIFEST = """',
        MANIFEST,
        ("manifest: event of this resource", "events.resource_id = NEW.id AND ", "", _OTHERS),
        ("manifest: job of this resource", "job.resource_id = NEW.id AND ", "", _OTHERS),
        (
            "manifest: fence of the event",
            " AND job.fence = events.fence",
            "",
            "test_the_fence_of_the_event_is_its_job_s",
        ),
        ("manifest: event of this transaction", "events.xmin = pg_current_xact_id()::xid AND ", "", _EARLIER),
        ("manifest: step of this transaction", " AND job.xmin = pg_current_xact_id()::xid", "", _EARLIER),
        ("manifest: end of a provision", "job.state = 'succeeded' AND ", "", _ONCE),
        (
            "manifest: as its end says",
            "job.state = 'succeeded' AND detail -> 'manifest' = NEW.manifest",
            "job.state = 'succeeded'",
            _ITS_EVENT,
        ),
        (
            "manifest: a start has started",
            " OR job.started_fence IS DISTINCT FROM job.fence",
            "",
            "test_a_job_that_only_runs_has_not_started",
        ),
        ("manifest: planned once", "OLD.manifest IS NULL AND coalesce", "coalesce", _ONCE),
        (
            "manifest: as the plan says",
            "coalesce(detail -> 'manifest' = NEW.manifest, true)",
            "true",
            "test_the_plan_of_a_start_is_the_one_that_its_event_says",
        ),
        (
            "manifest: as the inspection says",
            "NEW.manifest = OLD.manifest || (detail #> '{seen,completes}')",
            "true",
            _ITS_EVENT,
        ),
        (
            "manifest: added, not changed",
            "AND (NEW.manifest -> kept.key) IS DISTINCT FROM kept.value",
            "AND false",
            _ADDS,
        ),
    ),
    *cut(
        GUARDED,
        'HOME = """',
        MANIFEST,
        (
            "job: of its resource's backend",
            "NEW.backend <> home",
            "false",
            "test_a_job_is_of_its_resource_s_backend_whoever_inserts_it",
        ),
    ),
    *cut(
        "deprovisioner/grants.py",
        "",
        MANIFEST,
        (
            "grants: columns of resources",
            "UPDATE ({_MOVES['resources']})",
            "UPDATE",
            "test_the_service_s_role_may_not_update_what_no_transition_changes",
        ),
        (
            "grants: columns of jobs",
            "UPDATE ({_MOVES['outbox']})",
            "UPDATE",
            "test_the_service_s_role_may_not_update_what_no_transition_changes",
        ),
    ),
    *cut(
        "outbox/doctor/checks/resources.py",
        "",
        MANIFEST,
        ("doctor: manifest", "WHERE manifest IS DISTINCT FROM recorded OR", "WHERE", _FOUND),
        ("doctor: a manifest that is gone", "manifest IS DISTINCT FROM recorded OR", "manifest <> recorded OR", _FOUND),
        (
            "doctor: the end of a provision counts",
            "ORDER BY event IN ({quoted(Event.ACTIVATED, Event.REBOUND)}) DESC, seq DESC",
            "ORDER BY seq DESC",
            f"{_FORGED}[a plan]",
        ),
        (
            "doctor: a start adds what is lacking",
            "AND coalesce(told.manifest -> key, 'null') = 'null'",
            "",
            f"{_FORGED}[an addition]",
        ),
        ("doctor: a provision ends once", " OR ends > 1", "", f"{_FORGED}[its own end again]"),
        (
            "doctor: an addition of no fields",
            "CASE jsonb_typeof({_ADDED}) WHEN 'object' THEN {_ADDED} END",
            "{_ADDED}",
            f"{_FORGED}[something else]",
        ),
        ("doctor: what a start added", "coalesce(added.fields, '{{}}')", "'{{}}'", _FOUND),
        (
            "doctor: what was planned",
            "Event.ENQUEUED, Event.STARTED, Event.ACTIVATED",
            "Event.ENQUEUED, Event.ACTIVATED",
            _FOUND,
        ),
        (
            "doctor: a job's backend",
            "WHERE outbox.backend <> resources.backend",
            "WHERE false",
            "tests/outbox/test_doctor.py::test_the_doctor_names_what_is_broken_and_nothing_else[manifest_altered]",
        ),
    ),
    *cut(
        "worker/intake.py",
        "",
        "tests/worker/test_intake.py",
        (
            "intake: an inspection adds",
            "manifest.get(name) not in (None, value)",
            "False",
            "test_an_inspection_that_would_change_a_manifest_is_refused",
        ),
    ),
    *cut(
        "outbox/queries/story.py",
        "",
        "tests/deprovisioner/test_sdk.py",
        (
            "events: no secret",
            "kinds.redacted(kind, value) if name in _MANIFESTS else",
            "value if name in _MANIFESTS else",
            "test_no_event_that_is_shown_has_a_manifest_s_secret",
        ),
    ),
)
