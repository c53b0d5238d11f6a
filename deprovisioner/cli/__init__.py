"""The command `deprovisioner`: a module a group of commands, loaded when one of them is asked for.

What is heavy (SQLAlchemy, Celery, Alembic) is imported inside the command that needs it, so that help, and commands
that only read, come at once. Exit codes: 0 done, 1 refused, not found or not done yet, 2 usage.
"""

from deprovisioner.cli.shell import main

__all__ = ["main"]
