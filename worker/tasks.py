"""What a message starts. A message carries no authority: lost, doubled or late, it only makes the pool claim."""

from outbox import doorbell
from worker.app import app, pool


@app.task(name=doorbell.DRAIN)
def drain() -> None:
    """The doorbell rang, at a broker other than Redis."""
    pool().drain()


@app.task(name=doorbell.OBSERVE)
def observe() -> None:
    """An operator waits for the inspection of a stuck job."""
    pool().observe()


@app.task(name=doorbell.SWEEP)
def sweep() -> None:
    """Celery beat asks for a sweep; every worker sweeps without it too."""
    pool().sweep()
