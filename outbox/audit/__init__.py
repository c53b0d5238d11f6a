"""Evidence that can be checked: chains of events, checkpoints over their heads, and the proof of a deletion.

A trigger gives each event a hash over itself and the previous event of the same resource. A checkpoint keeps the heads
of all chains that have grown; its hash covers them and the previous checkpoint. Workers log this hash: a copy of the
log on another machine is an anchor that not even the database's owner can change.
"""

from outbox.audit.chain import LINK, LINKS, Chain
from outbox.audit.checkpoint import (
    CHECKPOINT_EVERY,
    CHECKPOINT_TIMEOUT_SECONDS,
    HEADS,
    SEAL,
    SETTLES,
    Checkpoint,
    checkpoint,
    last_checkpoint,
)
from outbox.audit.proof import PAGE, Attempt, Proof, proofs

__all__ = [
    "CHECKPOINT_EVERY",
    "CHECKPOINT_TIMEOUT_SECONDS",
    "HEADS",
    "LINK",
    "LINKS",
    "PAGE",
    "SEAL",
    "SETTLES",
    "Attempt",
    "Chain",
    "Checkpoint",
    "Proof",
    "checkpoint",
    "last_checkpoint",
    "proofs",
]
