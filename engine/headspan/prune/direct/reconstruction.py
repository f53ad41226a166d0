"""The accuracy table of TEXTSPAN: zero-shot accuracy with heads replaced by what their texts reconstruct.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024: the contributions of the last layers' heads are replaced by their
reconstruction from m texts, the attention of earlier layers by its mean over images, and the MLPs are kept. A
reconstruction is the head's mean plus the part of the contribution that lies in the span of its first m texts, after
these are projected to the head's principal directions. In head coordinates this is one fixed matrix per head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from headspan.config import as_ranges
from headspan.errors import SettingsError, counted, percent
from headspan.events import Listener, ignore
from headspan.frames import Tabular
from headspan.prune.direct.ablation import direct_effect, unit_embeddings
from headspan.prune.direct.head_changes import Matrices, changed_embeddings
from headspan.prune.direct.judged import Judged
from headspan.spans.algorithm import Principal
from headspan.spans.description import head_principals
from headspan.spans.result import HeadSpans
from headspan.store.head_space import stored_heads
from headspan.store.reader import Store
from headspan.store.results import load_settings
from headspan.tasks.zero_shot import Classes
from headspan.texts.vectors import embed_pool

# The numbers of texts of the published table and of the published commands.
TEXT_COUNTS = (5, 20, 60)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Reconstruction(Tabular):
    """How many images are right with the heads of `layers` replaced by their m-text reconstructions.

    In all rows but the first, the attention of all other layers is at its mean.
    """

    run: str
    layers: tuple[int, ...]
    images: int
    # By the whole embedding.
    whole: int
    # With the full contributions of the heads of `layers`, and with their means: all of their information removed.
    full: int
    means: int
    # By the number of texts of each head.
    correct: Mapping[int, int]

    def __repr__(self) -> str:
        of_texts = "".join(f", {percent(right / self.images)} with {m} texts" for m, right in self.correct.items())
        return (
            f"Reconstruction({self.run!r}: layers {as_ranges(self.layers)}, {counted(self.images, 'image')}, "
            f"{percent(self.whole / self.images)} right{of_texts}, {percent(self.means / self.images)} with means)"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        of_texts = sorted(self.correct, reverse=True)
        right = [self.whole, self.full, *(self.correct[count] for count in of_texts), self.means]
        return {
            "heads": ["whole model", "full contributions", *["reconstructions"] * len(of_texts), "means"],
            "texts": [None, None, *of_texts, 0],
            "correct": right,
            "images": [self.images] * len(right),
            "accuracy": [each / self.images for each in right],
        }


def reconstruction(
    store: Store,
    spans: HeadSpans,
    classes: Classes,
    truths: Int[np.ndarray, " images"],
    texts: Sequence[int] | None = None,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Reconstruction:
    """Classify the store's images with the heads of a TEXTSPAN run replaced by their reconstructions.

    The attention of all other layers is at its mean over images, and the MLPs are kept. So the store must hold `mlps`,
    or the heads of all layers. A head with fewer texts than asked for is reconstructed from all it has.

    Args:
        store: The store that the run describes. It is not changed.
        spans: The run; `headspan.textspan` returns it, and `headspan.spans.read_spans` reads it from the store.
        classes: The classes, as `embed_classes` returns them.
        truths: As in `single_heads`.
        texts: Numbers of texts of each head; by default those of 5, 20 and 60 that the run has.
        on_progress: Called with a `headspan.events.Progress` as texts are embedded.
        weights: As in `text_vectors`, if the store does not hold the vectors of the run's pool.

    Raises SettingsError if the run has fewer texts or is not over all of this store's images, if the store does not
    hold what is needed, or if sizes do not fit; StoreError if no unit is finished.
    """
    moments = store.moments()
    if spans.stores > 1 or spans.selection is not None or spans.images != moments.count:
        over = f"{spans.over} of {counted(spans.stores, 'store')}"
        raise SettingsError(
            f"{store.path}: textspan run {spans.run!r} is over {over}, but reconstructions are of all "
            f"{counted(moments.count, 'image')} of this store; run headspan textspan on it"
        )
    counts = _counts(spans, texts)
    judged = Judged.of(store, classes, truths)
    (base,) = direct_effect(store, [stored_heads(store)], judged.images, earlier=True)
    vectors = embed_pool(store, spans.pool, on_progress, weights=weights).vectors.astype(np.float64)
    heads = list(spans.heads())
    principals = head_principals(store, spans.layers, _rank(store, spans), moments)
    full: dict[tuple[int, int], Float[np.ndarray, "coordinate joint"]] = {
        head: store.head_directions(*head) for head in heads
    }
    variants: list[Matrices] = [full]
    for count in counts:
        variants.append(
            {
                head: _onto(full[head], _span(principal, vectors[spans.places(*head, count)]))
                for head, principal in zip(heads, principals, strict=True)
            }
        )
    right = [
        int(judged.right(embeddings).sum()) for embeddings in changed_embeddings(store, judged.images, base, variants)
    ]
    return Reconstruction(
        spans.run,
        spans.layers,
        len(judged.images),
        whole=int(judged.right(unit_embeddings(store, judged.images)).sum()),
        full=right[0],
        means=int(judged.right(base).sum()),
        correct=dict(zip(counts, right[1:], strict=True)),
    )


def _counts(spans: HeadSpans, texts: Sequence[int] | None) -> list[int]:
    """The numbers of texts, ascending. Raises SettingsError if the run has fewer."""
    most = spans.indices.shape[-1]
    if texts is None:
        return [count for count in TEXT_COUNTS if count <= most] or [most]
    for count in texts:
        if not 1 <= count <= most:
            raise SettingsError(
                f"{counted(count, 'text')} of each head: textspan run {spans.run!r} has {most}; ask for 1 to {most}, "
                "or run headspan textspan with a larger --texts-per-head"
            )
    return sorted(set(texts))


def _rank(store: Store, spans: HeadSpans) -> int:
    """The number of principal directions, at most, in which the run compared texts."""
    if spans.ranks is None:
        # A saved run of an earlier version.
        return int(load_settings(store, "textspan", spans.run)["rank"])
    # A head that has fewer directions has fewer here too.
    return max(1, int(spans.ranks.max()))


def _span(principal: Principal, texts: Float64[np.ndarray, "text joint"]) -> Float64[np.ndarray, "joint direction"]:
    """An orthonormal basis of the span of texts, projected to the head's principal directions."""
    if not len(texts):
        return np.empty((texts.shape[1], 0))
    directions, _ = np.linalg.qr((texts @ principal.basis).T)
    return np.asarray(principal.basis @ directions)


def _onto(
    matrix: Float[np.ndarray, "coordinate joint"], span: Float64[np.ndarray, "joint direction"]
) -> Float[np.ndarray, "coordinate joint"]:
    """The matrix whose products are those of `matrix`, projected onto `span`."""
    return np.asarray((matrix.astype(np.float64) @ span) @ span.T)
