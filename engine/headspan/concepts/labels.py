"""Label every head with one concept, and vote on whether its first texts fit the label.

Source: Madasu et al., arXiv 2409.06579 (labels) and arXiv 2503.11103 (votes of texts on a label). Here the labels and
votes are the pool's own concepts, without a language model. `llm_labels` and `llm_judges` ask language models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool

from headspan.concepts.merging import merge_labels
from headspan.config import as_ranges
from headspan.errors import SettingsError, TextsError, counted
from headspan.events import Listener, ignore
from headspan.frames import Tabular
from headspan.spans.result import HeadSpans, place_of
from headspan.spans.saved import read_spans
from headspan.store import results
from headspan.store.lineage import Lineage, lineage_of, refuse_older
from headspan.store.reader import Store
from headspan.store.write.save_result import save_result

# Both studies use the first five texts of a head.
LABELLED_TEXTS = 5

# From the pool places of a head's first texts to a label, or None if no label fits.
Labeller = Callable[[Sequence[int]], str | None]
# From the pool place of a text, and a label, to whether they are consistent.
Judge = Callable[[int, str], bool]


@dataclass(frozen=True, slots=True, repr=False)
class Labels(Tabular):
    """The label of every head, and, if they were made together, the votes on its first five texts.

    `names` and the array follow `layers`, which are the model's layer numbers; methods take these numbers.
    """

    run: str
    # Who gave the labels, in words.
    source: str
    layers: tuple[int, ...]
    # For each layer, the label of each head; None without a label.
    names: tuple[tuple[str | None, ...], ...]
    # None if judges have not voted yet.
    consistent: Bool[np.ndarray, "layer head text"] | None
    # Whether a language model chose the words freely, so that several labels may name one concept.
    free: bool = False
    # What the labels were made from: the text spans, unless they were read from a store, and their checksum.
    spans: HeadSpans | None = field(default=None, kw_only=True, repr=False, compare=False)
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __repr__(self) -> str:
        labelled = self.labelled
        return (
            f"Labels({self.run!r}: {int(labelled.sum())} of {counted(labelled.size, 'head')} labelled, layers "
            f"{as_ranges(self.layers)}, by {self.source}{of_older(self.older)})"
        )

    @property
    def older(self) -> str | None:
        """The run that the labels were made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else None

    @property
    def concepts(self) -> tuple[tuple[str | None, ...], ...]:
        """The labels after merging: free labels that differ only in plural, case or prefix become one."""
        if not self.free:
            return self.names
        one = merge_labels(name for row in self.names for name in row)
        return tuple(tuple(name and one[name] for name in row) for row in self.names)

    @property
    def labelled(self) -> Bool[np.ndarray, "layer head"]:
        """Whether each head has a label."""
        return np.array([[name is not None for name in row] for row in self.names])

    def name(self, layer: int, head: int) -> str | None:
        """The label of one head. Raises SettingsError if the head is not in the result."""
        place, head = place_of(self.layers, len(self.names[0]), layer, head)
        return self.names[place][head]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        heads = len(self.names[0])
        return {
            "layer": [layer for layer in self.layers for _ in range(heads)],
            "head": list(range(heads)) * len(self.layers),
            "label": [name for row in self.names for name in row],
            "concept": [name for row in self.concepts for name in row],
        }


def label_heads(
    store: Store,
    run: str | HeadSpans | None = None,
    overwrite: bool = False,
    on_progress: Listener = ignore,
    *,
    save: bool = False,
) -> Labels:
    """Label every head with a concept of the pool, by its text span.

    The label is the most common concept of the head's first five texts; of equally common ones, that of the text
    chosen first. A text is consistent if it has that concept. Source: Madasu et al., arXiv 2409.06579. Every head with
    texts gets a label, whatever it means; `concept_consistency` says which labels beat chance.

    `run` is the name of a TEXTSPAN run, or what `textspan` returned; None means the store's only run. If a run is
    named, or with `save`, the result is saved as `labels/<run>`; otherwise nothing is written.

    Raises TextsError if the pool has no concepts, SettingsError if the run has fewer than five texts per head, and
    StoreError if the run has different labels, such as a language model's, and `overwrite` is false. `overwrite`
    replaces them; scores made from them stay, marked as of an older run. Raises NotSavedError, which holds the result,
    if the store cannot be written.
    """
    spans = run if isinstance(run, HeadSpans) else read_spans(store, run)
    saved = save or isinstance(run, str)
    return save_labels(store, label_by_concepts(spans), saved=saved, overwrite=overwrite, on_progress=on_progress)


def label_by_concepts(spans: HeadSpans) -> Labels:
    """The labels and votes of `label_heads`; nothing is written. Raises TextsError and SettingsError as it does."""
    concepts = spans.pool.concepts
    if concepts is None:
        raise TextsError(
            f"pool {spans.pool.name}: its texts have no concepts, so heads cannot be labelled with them; give "
            "text<TAB>concept lines, use the pool general, or let a language model label with --llm"
        )
    check_texts(spans)
    return label_with(
        spans,
        labeller=lambda texts: Counter(concepts[text] for text in texts).most_common(1)[0][0] if texts else None,
        judge=lambda text, label: concepts[text] == label,
        source=f"concepts of pool {spans.pool.name}"
        + (f", written by {spans.pool.author}" if spans.pool.author else ""),
    )


def of_older(source: str | None) -> str:
    """What a result's representation says about a source that has changed since: nothing if there is none."""
    return f", of an older {source}" if source else ""


def check_texts(spans: HeadSpans) -> None:
    """Raise SettingsError if a run has too few texts per head for labels and scores."""
    chosen = spans.indices.shape[2]
    if chosen < LABELLED_TEXTS:
        raise SettingsError(
            f"textspan run {spans.run!r} has {counted(chosen, 'text')} per head, but labels and scores use the first "
            f"{LABELLED_TEXTS}; run headspan textspan with --texts-per-head {LABELLED_TEXTS} or more"
        )


def label_with(spans: HeadSpans, labeller: Labeller, judge: Judge, source: str) -> Labels:
    """Ask `labeller` for the label of every head, and `judge` for every vote; nothing is written."""
    votes = np.zeros((*spans.indices.shape[:2], LABELLED_TEXTS), bool)
    names = [
        [labeller(spans.places(layer, head, LABELLED_TEXTS)) for head in range(spans.indices.shape[1])]
        for layer in spans.layers
    ]
    for index, layer in enumerate(spans.layers):
        for head, label in enumerate(names[index]):
            if label is not None:
                texts = spans.places(layer, head, LABELLED_TEXTS)
                votes[index, head, : len(texts)] = [judge(text, label) for text in texts]
    return Labels(spans.run, source, spans.layers, tuple(map(tuple, names)), votes, spans=spans)


def read_labels(store: Store, run: str | None = None) -> Labels:
    """Read the labels of a run from a store; without `run`, of the only one.

    Raises StoreError if they are missing or damaged, or if there are several runs and none is named.
    """
    run = results.only_run(store, "labels", run)
    arrays, settings = results.load(store, "labels", run)
    with results.as_written(store, "labels", run):
        names = tuple(tuple(None if name is None else str(name) for name in row) for row in settings["labels"])
        source, layers = str(settings["source"]), tuple(map(int, settings["layers"]))
    lineage = lineage_of(store, "labels", run)
    return Labels(
        run, source, layers, names, arrays.get("consistent"), bool(settings.get("free", False)), lineage=lineage
    )


def spans_of(store: Store, labels: Labels) -> HeadSpans:
    """The text spans that `labels` were made from.

    Raises StoreError if their run was replaced or removed since, or is damaged.
    """
    if labels.spans is not None:
        return labels.spans
    if labels.older is not None:
        refuse_older(store, "labels", labels.run)
    return read_spans(store, labels.run)


def save_labels(
    store: Store,
    labels: Labels,
    arrays: Mapping[str, results.Named] | None = None,
    settings: Mapping[str, Any] | None = None,
    saved: bool = True,
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> Labels:
    """Return `labels` with their lineage, if `saved` written as `labels/<run>`.

    `arrays` and `settings` say how they were made. Raises StoreError as `save_result` does.
    """
    votes: dict[str, results.Named] = {}
    if labels.consistent is not None:
        votes["consistent"] = (labels.consistent, ("layer", "head", "text"))
    return save_result(
        store,
        "labels",
        labels.run,
        labels,
        {**votes, **(arrays or {})},
        {
            "source": labels.source,
            "layers": list(labels.layers),
            "labels": [list(row) for row in labels.names],
            "free": labels.free,
            "concepts": [list(row) for row in labels.concepts],
            **(settings or {}),
        },
        {f"textspan/{labels.run}": labels.spans.lineage} if labels.spans is not None else {},
        saved,
        overwrite,
        on_progress,
    )
