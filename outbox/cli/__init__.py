"""The command `deprovisioner`. Heavy parts are imported by the command that needs them.

Exit codes: 0 done, 1 refused or not found, 2 usage.
"""

from outbox.cli import audit, breakers, doctor, holds, jobs, operations, resources, serve, tokens
from outbox.cli.shell import main

__all__ = ["audit", "breakers", "doctor", "holds", "jobs", "main", "operations", "resources", "serve", "tokens"]
