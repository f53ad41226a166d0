"""One concept a head, and which of its first texts are consistent with it.

Source: Madasu et al., arXiv 2409.06579 (labels) and arXiv 2503.11103 (judging texts against them). This
file is the seam: whoever labels and whoever judges are two functions; here they are the pool's own
annotations, so that no language model is needed. Language models label in `model_labels`, judge in `judging`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from headspan.concepts.merging import merge_labels
from headspan.errors import SettingsError, TextsError, counted
from headspan.events import Listener, ignore
from headspan.spans.result import HeadSpans, read_spans
from headspan.store import results
from headspan.store.reader import Store

# Both studies look at the first five texts.
LABELLED_TEXTS = 5

# The head's first texts, by their places in the pool, to a label; None where nothing can be said.
Labeller = Callable[[Sequence[int]], str | None]
# A text, by its place in the pool, and a label to whether they are consistent.
Judge = Callable[[int, str], bool]


@dataclass(frozen=True, slots=True)
class Labels:
    """A label of every head (None where it has none), and the votes on its first five texts.

    `consistent` is None where judges are still to vote. `free` labels are words that a language model found,
    and several may stand for one concept; others are a pool's concepts as they are.
    """

    run: str
    source: str
    layers: tuple[int, ...]
    names: tuple[tuple[str | None, ...], ...]
    consistent: Bool[np.ndarray, "layer head text"] | None
    free: bool = False

    @property
    def concepts(self) -> tuple[tuple[str | None, ...], ...]:
        """The labels as they count: free ones that differ in plural, case or prefix alone are one."""
        if not self.free:
            return self.names
        one = merge_labels(name for row in self.names for name in row)
        return tuple(tuple(name and one[name] for name in row) for row in self.names)

    @property
    def labelled(self) -> Bool[np.ndarray, "layer head"]:
        """Whether each head has a label."""
        return np.array([[name is not None for name in row] for row in self.names])

    def name(self, layer: int, head: int) -> str | None:
        """The label of one head."""
        return self.names[self.layers.index(layer)][head]


def label_heads(
    store: Store, run: str | None = None, overwrite: bool = False, on_progress: Listener = ignore
) -> Labels:
    """Label every head of a TEXTSPAN run by the concepts of its pool, and keep it as `labels/<run>`.

    A head's label is the commonest concept among its first five texts (of equally common ones, the one
    chosen first), and a text is consistent where it carries that concept. Raises TextsError where the
    pool has no concepts, SettingsError where the run has fewer than five texts a head, StoreError where the run has
    other labels (a language model's, say), unless `overwrite`: then they and the scores made from them are deleted.
    """
    spans = read_spans(store, run)
    concepts = spans.pool.concepts
    if concepts is None:
        raise TextsError(
            f"pool {spans.pool.name}: its texts carry no concepts, so heads cannot be labelled by them; give "
            "text<TAB>concept lines, or use the pool general, or let a language model label with --llm"
        )
    check_texts(spans)
    labels = label_with(
        spans,
        labeller=lambda texts: Counter(concepts[text] for text in texts).most_common(1)[0][0] if texts else None,
        judge=lambda text, label: concepts[text] == label,
        source=f"concepts of pool {spans.pool.name}"
        + (f", written by {spans.pool.author}" if spans.pool.author else ""),
    )
    save_labels(store, labels, overwrite=overwrite, on_progress=on_progress)
    return labels


def check_texts(spans: HeadSpans) -> None:
    """Raise SettingsError where a run has too few texts a head for labels and scores."""
    chosen = spans.indices.shape[2]
    if chosen < LABELLED_TEXTS:
        raise SettingsError(
            f"textspan run {spans.run!r} has {counted(chosen, 'text')} a head, labels and scores look at the first "
            f"{LABELLED_TEXTS}; run headspan textspan with --texts-per-head {LABELLED_TEXTS} or more"
        )


def first_texts(spans: HeadSpans, kept: int, head: int) -> list[int]:
    """The places in the pool of the texts that labels and scores look at; `kept` is the layer's place."""
    return [text for text in spans.indices[kept, head, :LABELLED_TEXTS].tolist() if text >= 0]


def label_with(spans: HeadSpans, labeller: Labeller, judge: Judge, source: str) -> Labels:
    """Ask `labeller` for every head's label and `judge` for every vote."""
    votes = np.zeros((*spans.indices.shape[:2], LABELLED_TEXTS), bool)
    names: list[tuple[str | None, ...]] = []
    for kept, _ in enumerate(spans.layers):
        row: list[str | None] = []
        for head in range(spans.indices.shape[1]):
            texts = first_texts(spans, kept, head)
            label = labeller(texts)
            row.append(label)
            if label is not None:
                votes[kept, head, : len(texts)] = [judge(text, label) for text in texts]
        names.append(tuple(row))
    return Labels(spans.run, source, spans.layers, tuple(names), votes)


def read_labels(store: Store, run: str | None = None) -> Labels:
    """The stored labels of a run, or of the only one there is."""
    run = results.only_run(store, "labels", run)
    arrays, settings = results.load(store, "labels", run)
    with results.as_written(store, "labels", run):
        names = tuple(tuple(None if name is None else str(name) for name in row) for row in settings["labels"])
        source, layers = str(settings["source"]), tuple(map(int, settings["layers"]))
    return Labels(run, source, layers, names, arrays.get("consistent"), bool(settings.get("free", False)))


def save_labels(
    store: Store,
    labels: Labels,
    arrays: Mapping[str, results.Named] | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> None:
    """Keep `labels` as `labels/<run>`, with what else belongs to the way in which they were made.

    StoreError as in `results.save` where other labels are there.
    """
    votes: dict[str, results.Named] = {}
    if labels.consistent is not None:
        votes["consistent"] = (labels.consistent, ("layer", "head", "text"))
    results.save(
        store,
        "labels",
        labels.run,
        {**votes, **(arrays or {})},
        {
            "source": labels.source,
            "layers": list(labels.layers),
            "labels": [list(row) for row in labels.names],
            "free": labels.free,
            "concepts": [list(row) for row in labels.concepts],
            **(settings or {}),
        },
        overwrite,
        on_progress,
    )
