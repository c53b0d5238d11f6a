"""`python -m outbox.cli`, where the command is not on the PATH."""

from outbox.cli import main

main()
