"""headspan: every attention head of CLIP image encoders, taken apart.

`open` reads a store and needs no torch; `precompute` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headspan.analyse.ccs import ConceptConsistency, concept_consistency
from headspan.analyse.labels import Labels, label_heads
from headspan.analyse.neighbours import nearest_to_image, nearest_to_vector, similarities
from headspan.analyse.pruning import mean_ablated
from headspan.analyse.segmentation import text_maps
from headspan.analyse.spans import HeadSpans, read_spans, textspan
from headspan.analyse.texts import Pool, read_pool, text_vectors
from headspan.analyse.textspan import TextSpan, textspan_dense
from headspan.analyse.verify import verify
from headspan.config import PrecomputeSettings
from headspan.errors import HeadspanError
from headspan.records import Listener, Summary, ignore
from headspan.store.reader import Store
from headspan.store.reader import open_store as open  # noqa: A004

if TYPE_CHECKING:
    from headspan.mending import Repaired

__all__ = [
    "ConceptConsistency",
    "HeadSpans",
    "HeadspanError",
    "Labels",
    "Pool",
    "PrecomputeSettings",
    "Store",
    "TextSpan",
    "concept_consistency",
    "label_heads",
    "mean_ablated",
    "nearest_to_image",
    "nearest_to_vector",
    "open",
    "precompute",
    "read_pool",
    "read_spans",
    "repair",
    "similarities",
    "text_maps",
    "text_vectors",
    "textspan",
    "textspan_dense",
    "verify",
]


def precompute(shards: str | Sequence[str], out: str | Path, listen: Listener = ignore, **settings: Any) -> Summary:
    """Stream `shards` through an image encoder into the store `out`; returns what was done.

    `settings` are the fields of PrecomputeSettings, as in `model="ViT-L-14", layers="all"`. Called again,
    it goes on where it was interrupted. Raises HeadspanError, with what to do.
    """
    # The only call here that needs torch; reading and analysing do not.
    from headspan.pipeline import precompute as run

    named = shards if isinstance(shards, str) else list(shards)
    return run(PrecomputeSettings.from_dict({"shards": named, "out": str(out), **settings}), listen)


def repair(store: str | Path, shards: Sequence[str] = (), listen: Listener = ignore, **settings: Any) -> Repaired:
    """Compute again what `verify` finds damaged, or what was set aside, in a store; see headspan.mending.

    Raises HeadspanError where the model or the shards are not those that the store was made with.
    """
    # Needs torch, as `precompute` does.
    from headspan.mending import repair as run

    return run(store, shards, listen, **settings)
