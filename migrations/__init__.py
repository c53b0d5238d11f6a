"""Alembic migrations of the control database, and how to run them without an ini file."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text


def config() -> Config:
    """Alembic's configuration; env.py takes the database from this process's settings."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    return made


def upgrade(revision: str = "head") -> None:
    """Bring the schema up to `revision`; does nothing when it is there already."""
    command.upgrade(config(), revision)


def downgrade(revision: str) -> None:
    """Take the schema back to `revision` (`base`: to an empty database)."""
    command.downgrade(config(), revision)


def head() -> str | None:
    """The newest revision that this version knows."""
    return ScriptDirectory.from_config(config()).get_current_head()


def current(db: Connection) -> str | None:
    """The revision of the database; None before the first migration."""
    if not inspect(db).has_table("alembic_version"):
        return None
    return str(db.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none())
