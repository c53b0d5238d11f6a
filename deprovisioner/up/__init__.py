"""Everything on one machine: `supervisor` watches the processes, `servers` makes PostgreSQL and Valkey from wheels."""

# Of which kinds `up --with` starts a backend; `further` has the how. Here, so that `--help` loads no server's client.
FURTHER = ("mysql", "rabbitmq", "s3", "webhook")
