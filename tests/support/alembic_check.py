"""`alembic check` against a database of its own: `python -m tests.support.alembic_check`, a part of `make check`."""

import os
import sys
import tempfile
from pathlib import Path

from alembic import command

import migrations
from deprovisioner.up import servers as embedded


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="deprovisioner-check-") as folder:
        port = embedded.free_port()
        server = embedded.postgres(Path(folder), "check", port, "secret", {"fsync": "off"})
        dsn = embedded.postgres_dsn(port, "secret")
        server.spawn()
        try:
            server.wait_until(lambda: embedded.postgres_ready(dsn))
            os.environ["DEPROVISIONER_DATABASE_URL"] = dsn
            migrations.upgrade()
            command.check(migrations.config())
            migrations.downgrade("base")
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
