"""Migrations: reversible, repeatable, and the same schema as the code's tables."""

import subprocess
import sys

from alembic import command
from sqlalchemy import Connection, inspect, text

import migrations


def test_the_schema_is_the_code_s(db: Connection) -> None:
    command.check(migrations.config())
    assert migrations.current(db) == migrations.head()


def test_up_down_up_leaves_nothing_behind(db: Connection) -> None:
    def everything() -> list[tuple]:
        return db.execute(
            text("""
            SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint
             WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
            UNION ALL SELECT 'function', proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            ORDER BY 1, 2""")
        ).all()

    before = everything()
    migrations.downgrade("base")
    assert inspect(db).get_table_names() == ["alembic_version"]
    assert [kind for kind, name, _ in everything() if "alembic" not in name] == []
    migrations.upgrade()
    assert everything() == before


def test_two_migrations_at_once_take_turns(db: Connection) -> None:
    migrations.downgrade("base")
    argv = [sys.executable, "-m", "deprovisioner.cli", "migrate"]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert migrations.current(db) == migrations.head()


def test_a_revision_that_is_none_is_a_line_not_a_traceback(db: Connection) -> None:
    argv = [sys.executable, "-m", "deprovisioner.cli", "migrate", "--to", "nosuch"]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: --to nosuch: ")
    assert len(answer.stderr.splitlines()) == 1
