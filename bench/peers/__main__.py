"""`python -m bench.peers --smoke`: runs every peer with few jobs on temporary servers, to see that all run."""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import peers
from deprovisioner.up import servers

JOBS = 50
_PASSWORD = "bench"


def main() -> None:
    """Print a table; its figures mean nothing, since 50 jobs are mostly start-up."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--smoke", action="store_true", required=True, help=f"run {JOBS} jobs through each peer")
    parser.parse_args()
    if reason := peers.available():
        raise SystemExit(f"bench: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="deprovisioner-peers-", ignore_cleanup_errors=True) as home,
        ExitStack() as up,
    ):
        dsn, redis_url = _servers(Path(home), up)
        print(f"{'peer':<22} {'version':<8} {'jobs/s':>8} {'p50 ms':>8} {'p99 ms':>8}  settings")
        for peer in peers.PEERS:
            rate = peers.drain(peer, dsn, redis_url, round(JOBS / peer.scale), 2)
            waits = peers.latency(peer, dsn, redis_url, JOBS)
            figures = f"{rate:>8,.0f} {waits['p50']:>8.1f} {waits['p99']:>8.1f}"
            print(f"{peer.name:<22} {peers.version(peer):<8} {figures}  {peer.settings}", flush=True)


def _servers(home: Path, up: ExitStack) -> tuple[str, str]:
    os.chmod(home, 0o711)  # if we are root, PostgreSQL runs as another user
    postgres_port, broker_port = servers.free_port(), servers.free_port()
    dsn, redis_url = servers.postgres_dsn(postgres_port, _PASSWORD), servers.valkey_url(broker_port)
    postgres = servers.postgres(home, "control", postgres_port, _PASSWORD)
    broker = servers.valkey(home, "broker", broker_port, durable=False)
    for server in (postgres, broker):
        up.callback(server.stop)
        server.spawn()
    postgres.wait_until(lambda: servers.postgres_ready(dsn))
    broker.wait_until(lambda: servers.valkey_ready(redis_url))
    return dsn, redis_url


if __name__ == "__main__":
    main()
