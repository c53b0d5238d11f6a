"""Evidence that can be checked: chains of events, checkpoints over their heads, and the proof of a deletion.

Each event bears the hash of itself and of the event before it of the same resource; a trigger writes it. A
checkpoint keeps the heads of all chains that have grown, and its hash takes the checkpoint before it. Its
hash is logged: a copy of the log elsewhere is an anchor that not even the database's owner can change.
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
