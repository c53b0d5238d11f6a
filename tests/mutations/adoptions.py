"""Guards of labels, external ids and filters, and of adoption in bulk."""

from tests.mutations.cut import cut

_FILTERS = "tests/outbox/test_resource_filters.py"
_OVER_HTTP = "test_external_id_and_labels_come_back_and_filter_over_http"

GUARDS_OF_ADOPTIONS = (
    *cut(
        "outbox/labels.py",
        "",
        _FILTERS,
        (
            "labels: texts",
            "not isinstance(value, str) or len(value) > LONGEST_VALUE or not storable",
            "not storable",
            _OVER_HTTP,
        ),
        ("labels: no colon in a key", ' or ":" in key', "", _OVER_HTTP),
        ("labels: at most so many", "if len(labels) > MOST:", "if False:", _OVER_HTTP),
    ),
    *cut(
        "outbox/queries/resources.py",
        "",
        _FILTERS,
        (
            "filters: labels by their index",
            """ + [column.labels != sa.text("'{}'")]""",
            "",
            "test_each_filter_reads_a_page_and_not_the_table",
        ),
        ("filters: each label", "for pair in self.labels]", "for pair in self.labels[:1]]", _OVER_HTTP),
        ("filters: not adopted", "flag if wanted else sa.not_(flag)", "flag", _OVER_HTTP),
    ),
    *cut(
        "migrations/versions/0017_adoption_at_scale.py",
        "",
        _FILTERS,
        (
            "resources_external_id",
            '"WHERE external_id IS NOT NULL AND status NOT IN',
            "\"WHERE name = '' AND status NOT IN",
            "test_an_external_id_belongs_to_one_resource_of_a_tenant_that_is_there",
        ),
        (
            "resources_labels_object",
            "jsonb_typeof(labels) = 'object'",
            "true",
            "test_the_database_itself_takes_labels_only_as_an_object",
        ),
    ),
)
