"""Score the labels of a run: how many of a head's first five texts are consistent with its label.

Here the votes are those that the labels include; `llm_judges` asks language models. `consistency` has the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from headspan.concepts.consistency import NO_VOTE, UNSOURCED, ConceptConsistency, Votes
from headspan.concepts.labels import LABELLED_TEXTS, Labels, read_labels, spans_of
from headspan.concepts.nulls import ConsistencyChance, consistency_chance
from headspan.errors import SettingsError, StoreError
from headspan.events import Listener, ignore
from headspan.spans.result import HeadSpans
from headspan.store import results
from headspan.store.lineage import lineage_of, refuse_older
from headspan.store.reader import Store
from headspan.store.write.save_result import save_result


def concept_consistency(
    store: Store,
    run: str | Labels | None = None,
    overwrite: bool = False,
    on_progress: Listener = ignore,
    *,
    save: bool = False,
) -> ConceptConsistency:
    """Score heads by the votes that their labels include. Source: Madasu, Lal, Howard, arXiv 2503.11103.

    `run` is the name of labels, or what `label_heads` returned; None means the store's only labels. If a run is named,
    or with `save`, the result is saved as `ccs/<run>`; otherwise nothing is written.

    Raises SettingsError if the labels have no votes because a language model gave them: judges vote on those, see
    `judge_heads`. Raises StoreError if the labels are of an older TEXTSPAN run, or if the run has different votes, such
    as those of judges, and `overwrite`, which replaces them, is false. Raises NotSavedError, which holds the result, if
    the store cannot be written.
    """
    labels = run if isinstance(run, Labels) else read_labels(store, run)
    if labels.consistent is None:
        raise SettingsError(
            f"labels of run {labels.run!r} are by {labels.source}, so judges must vote on them; name judges with "
            "--judge, or label another run by the pool's concepts: headspan textspan, then headspan label, each with "
            "--run NAME"
        )
    spans = spans_of(store, labels)
    texts = text_counts(spans)
    exists = np.arange(LABELLED_TEXTS) < texts[..., None]
    cast = np.where(exists & labels.labelled[..., None], labels.consistent.astype(np.int8), np.int8(NO_VOTE))
    votes = Votes((labels.source,), cast[None], texts)
    found = ConceptConsistency(labels, votes, consistency_chance(spans, labels))
    saved = save or isinstance(run, str)
    return save_scores(store, found, saved=saved, overwrite=overwrite, on_progress=on_progress)


def text_counts(spans: HeadSpans) -> Int[np.ndarray, "layer head"]:
    """How many of the first five texts each head has."""
    return (spans.indices[..., :LABELLED_TEXTS] >= 0).sum(axis=2).astype(np.int8)


def save_scores(
    store: Store,
    found: ConceptConsistency,
    arrays: dict[str, results.Named] | None = None,
    settings: dict[str, Any] | None = None,
    saved: bool = True,
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> ConceptConsistency:
    """Return `found` with its lineage, if `saved` written as `ccs/<run>`, with further arrays and settings.

    Raises StoreError as `save_result` does.
    """
    votes = found.votes
    return save_result(
        store,
        "ccs",
        found.labels.run,
        found,
        {
            "scores": (found.scores, ("layer", "head")),
            "votes": (votes.cast, ("judge", "layer", "head", "text")),
            "texts": (votes.texts, ("layer", "head")),
            **(arrays or {}),
        },
        {
            "source": votes.source,
            "labels_source": found.labels.source,
            # So that the scores can be read after their labels were replaced.
            "labels": [list(row) for row in found.labels.names],
            "labels_free": found.labels.free,
            "judges": list(votes.judges),
            "layers": list(found.labels.layers),
            **found.summary(),
            "by_layer": {str(layer): found.layer(layer).summary() for layer in found.labels.layers},
            "heads_per_concept": found.heads_per_concept,
            "unsourced": UNSOURCED,
            **(settings or {}),
        },
        {f"labels/{found.labels.run}": found.labels.lineage},
        saved,
        overwrite,
        on_progress,
    )


def read_scores(store: Store, run: str | None = None, spans: HeadSpans | None = None) -> ConceptConsistency:
    """Read the scores of a run from a store; without `run`, of the only one.

    `spans` are the text spans of that name, where they are read already.
    Raises StoreError if they are missing or damaged, or if there are several runs and none is named.
    """
    run = results.only_run(store, "ccs", run)
    arrays, settings = results.load(store, "ccs", run)
    if "votes" not in arrays:
        raise StoreError(
            f"{store.path}: ccs run {run!r} was made by an earlier headspan; run headspan ccs --run {run} --overwrite"
        )
    with results.as_written(store, "ccs", run):
        judges, votes, texts = tuple(map(str, settings["judges"])), arrays["votes"], arrays["texts"]
    labels, lineage = _scored_labels(store, run, settings), lineage_of(store, "ccs", run)
    chance = _chance(store, labels, spans) if judges == (labels.source,) else None
    return ConceptConsistency(labels, Votes(judges, votes, texts), chance, lineage=lineage)


def _chance(store: Store, labels: Labels, spans: HeadSpans | None) -> ConsistencyChance | None:
    """What chance gives, computed from the pool and the chosen texts: it costs milliseconds, so it is not stored."""
    try:
        is_same = spans is not None and labels.spans is None and labels.older is None and spans.run == labels.run
        return consistency_chance(spans if spans is not None and is_same else spans_of(store, labels), labels)
    except StoreError:
        # Scores are readable without the texts that they were made from.
        return None


def _scored_labels(store: Store, run: str, settings: Mapping[str, Any]) -> Labels:
    """The labels that were scored: those of the store, or if they were replaced since, those kept with the scores."""
    lineage, source = lineage_of(store, "ccs", run), f"labels/{run}"
    replaced = source in lineage.made_from and lineage.made_from[source] != lineage_of(store, "labels", run).checksum
    if not replaced:
        return read_labels(store, run)
    if "labels" not in settings:
        # Scores of earlier versions do not include their labels.
        refuse_older(store, "ccs", run)
    with results.as_written(store, "ccs", run):
        names = tuple(tuple(None if name is None else str(name) for name in row) for row in settings["labels"])
        source, layers = str(settings["labels_source"]), tuple(map(int, settings["layers"]))
        return Labels(run, source, layers, names, None, bool(settings["labels_free"]))
