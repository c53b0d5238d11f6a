"""The guards of the conformance suite, and those of the kinds that the suite alone shows."""

from tests.mutations.cut import cut

SUITE = "tests/deprovisioner/test_conformance.py"
FAULTS = "tests/deprovisioner/test_conformance_faults.py"
ON_REDIS = "tests/worker/backends/conformance/test_redis.py"
_KILLED = "test_a_fault_that_only_a_kill_shows_is_noticed_by_the_kills"
_WITHOUT = "test_a_run_without_a_subject_ends_with_words_and_no_traceback"

GUARDS_OF_CONFORMANCE = (
    *cut(
        "deprovisioner/conformance/kills.py",
        "                    return honest(*args, **words)",
        FAULTS,
        (
            "conformance: a process is killed after its call",
            "if mine == nth:",
            "if False:",
            _KILLED,
        ),
    ),
    *cut(
        "deprovisioner/conformance/table.py",
        "    for title, excuses in not_shown.items():",
        SUITE,
        (
            "conformance: a hole has a reason",
            "if wrong := unknown(excuses):",
            "if wrong := []:",
            "test_a_hole_needs_a_property_and_a_reason",
        ),
    ),
    *cut(
        "deprovisioner/conformance/plugin.py",
        "def pytest_configure(",
        SUITE,
        (
            "conformance: a run without a kind is no success",
            "if not named and any(",
            "if False and any(",
            _WITHOUT,
        ),
    ),
    *cut(
        "worker/backends/redis/session.py",
        "def meaning(",
        ON_REDIS,
        (
            "redis: a right that a script lacks is refused",
            'if code == "ERR" and _FORBIDDEN_IN_SCRIPT.search(str(error)):',
            "if False:",
            "test_an_account_that_lacks_a_documented_right_is_refused_and_destroys_nothing_by_halves",
        ),
    ),
)
