"""What the suite shows at length for some kinds: `make proof` runs it."""

import pytest

# By file: tests that take long there. The kills of PostgreSQL, Valkey and MariaDB stay quick; full kills are proof.
LONG = {
    "test_postgres15.py": ("test_killed_at",),
    "test_redis7.py": ("test_killed_at",),
    "test_rabbitmq.py": ("test_killed_at", "test_another_server_is_refused"),
    "test_s3.py": ("test_killed_at", "test_an_account_that_lacks_a_documented_right"),
    "test_webhook.py": ("test_killed_at",),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "conformance" and item.name.startswith(LONG.get(item.path.name, ("(none)",))):
            item.add_marker(pytest.mark.proof)
