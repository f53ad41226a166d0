"""headspan: every attention head of CLIP image encoders, taken apart.

`open` reads a store and needs no torch; `precompute` makes one. Names are imported from their modules when they are
first used, so that `import headspan` takes no time and Ctrl-C is answered while the command line loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headspan.concepts.agreement import rater_agreement
    from headspan.concepts.ccs import ConceptConsistency, concept_consistency, read_scores
    from headspan.concepts.comparison import compare
    from headspan.concepts.examples import read_examples
    from headspan.concepts.labels import Labels, label_heads
    from headspan.concepts.llm_judges import judge_heads
    from headspan.concepts.llm_labels import label_by_model
    from headspan.concepts.pool_writer.request import PoolRequest
    from headspan.concepts.pool_writer.write import write_pool
    from headspan.config import PrecomputeSettings
    from headspan.errors import HeadspanError
    from headspan.events import Listener
    from headspan.explore.neighbours import nearest_to_image, nearest_to_vector, similarities
    from headspan.explore.segmentation import text_maps
    from headspan.llm.asking import Asker
    from headspan.llm.cache import AnswerCache
    from headspan.llm.endpoint import Endpoint
    from headspan.prune.ablation import mean_ablated
    from headspan.prune.zero_shot import Accuracy, Classes, accuracy, embed_classes
    from headspan.run.repair import Repaired
    from headspan.run.summary import Summary
    from headspan.run.verify import verify
    from headspan.spans.algorithm import TextSpan, textspan_dense
    from headspan.spans.over_store import textspan
    from headspan.spans.result import HeadSpans, read_spans
    from headspan.store.reader import Store
    from headspan.store.reader import open_store as open  # noqa: A004
    from headspan.texts.pool import Pool, read_pool
    from headspan.texts.vectors import text_vectors
    from headspan.world.ground_truth import GroundTruth, check_ground_truth, read_ground_truth

# Public names by the module that they come from; the same as the imports above.
_MODULES = {
    "concepts.ccs": ("ConceptConsistency", "concept_consistency", "read_scores"),
    "concepts.comparison": ("compare",),
    "concepts.examples": ("read_examples",),
    "world.ground_truth": ("GroundTruth", "check_ground_truth", "read_ground_truth"),
    "concepts.llm_judges": ("judge_heads",),
    "concepts.labels": ("Labels", "label_heads"),
    "concepts.llm_labels": ("label_by_model",),
    "concepts.pool_writer.write": ("write_pool",),
    "explore.neighbours": ("nearest_to_image", "nearest_to_vector", "similarities"),
    "concepts.pool_writer.request": ("PoolRequest",),
    "prune.ablation": ("mean_ablated",),
    "concepts.agreement": ("rater_agreement",),
    "explore.segmentation": ("text_maps",),
    "spans.over_store": ("textspan",),
    "spans.result": ("HeadSpans", "read_spans"),
    "texts.pool": ("Pool", "read_pool"),
    "texts.vectors": ("text_vectors",),
    "spans.algorithm": ("TextSpan", "textspan_dense"),
    "run.verify": ("verify",),
    "prune.zero_shot": ("Accuracy", "Classes", "accuracy", "embed_classes"),
    "config": ("PrecomputeSettings",),
    "errors": ("HeadspanError",),
    "llm.asking": ("Asker",),
    "llm.cache": ("AnswerCache",),
    "llm.endpoint": ("Endpoint",),
    "store.reader": ("Store", "open"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Accuracy",
    "AnswerCache",
    "Asker",
    "Classes",
    "ConceptConsistency",
    "Endpoint",
    "GroundTruth",
    "HeadSpans",
    "HeadspanError",
    "Labels",
    "Pool",
    "PoolRequest",
    "PrecomputeSettings",
    "Store",
    "TextSpan",
    "accuracy",
    "check_ground_truth",
    "compare",
    "concept_consistency",
    "embed_classes",
    "judge_heads",
    "label_by_model",
    "label_heads",
    "mean_ablated",
    "models",
    "nearest_to_image",
    "nearest_to_vector",
    "open",
    "precompute",
    "rater_agreement",
    "read_examples",
    "read_ground_truth",
    "read_pool",
    "read_scores",
    "read_spans",
    "repair",
    "similarities",
    "text_maps",
    "text_vectors",
    "textspan",
    "textspan_dense",
    "verify",
    "write_pool",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first used."""
    if name in _MODULE_OF:
        module = import_module(f"headspan.{_MODULE_OF[name]}")
        found = getattr(module, "open_store" if name == "open" else name)
    elif find_spec(f"headspan.{name}"):
        found = import_module(f"headspan.{name}")
    else:
        raise AttributeError(f"module 'headspan' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names too that have not been used yet."""
    return sorted({*globals(), *__all__})


def models() -> dict[str, str | None]:
    """Every model that open_clip has, by name: None where headspan decomposes it, else why not."""
    # This call needs torch too.
    from headspan.model.convert import catalogue

    return catalogue()


def precompute(
    shards: str | Sequence[str], out: str | Path, on_progress: Listener | None = None, **settings: Any
) -> Summary:
    """Stream `shards` through an image encoder into the store `out`; returns what was done.

    `settings` are the fields of PrecomputeSettings, as in `model="ViT-L-14", layers="all"`. Called again,
    it goes on where it was interrupted. Raises HeadspanError, with what to do.
    """
    # A call that needs torch; reading and analysing do not.
    from headspan.config import PrecomputeSettings
    from headspan.events import ignore
    from headspan.run.precompute import precompute as run

    named = shards if isinstance(shards, str) else list(shards)
    return run(PrecomputeSettings.from_dict({"shards": named, "out": str(out), **settings}), on_progress or ignore)


def repair(
    store: str | Path, shards: Sequence[str] = (), on_progress: Listener | None = None, **settings: Any
) -> Repaired:
    """Compute again what `verify` finds damaged, or what was set aside, in a store; see headspan.run.repair.

    Raises HeadspanError where the model or the shards are not those that the store was made with.
    """
    # Needs torch, as `precompute` does.
    from headspan.events import ignore
    from headspan.run.repair import repair as run

    return run(store, shards, on_progress or ignore, **settings)
