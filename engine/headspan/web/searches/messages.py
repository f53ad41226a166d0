"""What the server and a searching process send one another.

The process first sends `worker_messages.READY`. For each question, the server sends an `Asked` and then the descriptors
of the memory files of its new sketches. The process sends the answer, or None if it cannot give one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headspan.explore.nearest.search import Question
from headspan.explore.nearest.shared import Shared


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a store, with the numbers of the sketches that answer it."""

    store: Path
    # Of the store's images: the process must see the same ones.
    version: str
    question: Question
    sketches: Sequence[int]
    # Whether the last one is the embedding in eight bits.
    has_eight_bits: bool
    # Sketches that are new to the process; their descriptors are the server's.
    new: Sequence[Shared]
    # Numbers of sketches that the server no longer has.
    forgotten: Sequence[int]
