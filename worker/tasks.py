"""What a message starts. A message carries no authority: lost, doubled or late, it only makes the hands look."""

from outbox import doorbell
from worker.app import app, hands


@app.task(name=doorbell.DRAIN)
def drain() -> None:
    """The doorbell rang, at a broker that is not Redis."""
    hands().drain()


@app.task(name=doorbell.OBSERVE)
def observe() -> None:
    """An operator waits for a look at a stuck job."""
    hands().observe()


@app.task(name=doorbell.SWEEP)
def sweep() -> None:
    """Beat's knock; every worker sweeps by itself too."""
    hands().sweep()
