"""`python -m deprovisioner.cli`, where the command is not on the PATH."""

from deprovisioner.cli import main

main()
