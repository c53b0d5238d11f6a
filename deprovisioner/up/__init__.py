"""Everything on one machine: `supervisor` watches the processes, `servers` makes PostgreSQL and Valkey from wheels."""
