"""PgQueuer with a batch size of 1: each job is claimed alone, and each completion is sent at once."""

from bench.peers import harness, pgqueuer

QUEUE = pgqueuer.queue(1)

if __name__ == "__main__":
    harness.main("bench.peers.pgqueuer_each")
