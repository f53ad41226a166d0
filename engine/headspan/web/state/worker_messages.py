"""What the server and the process of a model send one another.

The first message to the process is a `WorkerSettings`; later ones are the name of a question and its arguments. The
process sends pairs of a word and a value.
"""

from __future__ import annotations

from dataclasses import dataclass

from headspan.io.locations import Location

# While the model is loaded: a note in words; nothing; why it cannot be loaded.
LOADING, READY, FAILED = "loading", "ready", "failed"
# After a question: the answer; the class and the text of a HeadspanError; another error in words.
ANSWER, REFUSED, BROKEN = "answer", "refused", "broken"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Which model to load."""

    store: Location
    # As in `text_vectors`.
    weights: str | None
    # Where the store's shards are now, if they have moved.
    shards: tuple[str, ...]
    # Bytes of stores in buckets that are kept on disk.
    cache_bytes: int = 0
