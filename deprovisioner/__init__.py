"""The command `deprovisioner`, and what third parties import. It imports everything; nothing imports it.

- `cli/`     the command: a module a noun
- `up/`      everything on one machine: `supervisor` (processes), `servers` (PostgreSQL and Valkey from wheels)
- `demo/`    the main job for a person to watch: `story`, and `witnesses`, which read the servers' own records
- `grants`   what the service's database role may do
"""
