"""The analyses that the ground truth is checked against, from shards of scenes to Concept Consistency Scores.

The demo and `tools.score_reference` both run this chain over the same scenes.
"""

from __future__ import annotations

from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.config import PrecomputeSettings
from headspan.events import Listener, ignore
from headspan.run.precompute import precompute
from headspan.run.summary import Summary
from headspan.spans.over_store import textspan
from headspan.store.reader import Store

# The reference model was trained on seed 0 and tuned on seed 1.
IMAGES, IMAGES_PER_SHARD, SEED, SPLIT = 2000, 500, 2, "held_out"
# The name of the TEXTSPAN and CCS runs: that of the text pool.
RUN = "world"


def analyse_scenes(settings: PrecomputeSettings, on_progress: Listener = ignore) -> tuple[Store, Summary]:
    """Precompute a store, find the text spans of its last four layers' heads, label and score the heads.

    Four layers and the pool's concepts as labels follow the published procedure, with 20 texts for each head.
    """
    summary = precompute(settings, on_progress)
    store = Store(settings.out)
    textspan(store, RUN, texts_per_head=20, layers=store.layers[-4:], on_progress=on_progress)
    label_heads(store)
    concept_consistency(store)
    return store, summary
