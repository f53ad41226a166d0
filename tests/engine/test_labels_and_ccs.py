"""Labels and Concept Consistency Scores of handmade text spans with known answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.consistency import ConceptConsistency, Votes
from headspan.concepts.labels import Labels, label_heads, label_with, read_labels
from headspan.errors import SettingsError, StoreError, TextsError
from headspan.spans.result import HeadSpans
from headspan.store import results
from headspan.store.write import analyses
from headspan.texts.pool import Pool
from tests.conftest import zarr_array

# Texts 0 to 2 are places, 3 to 5 colours, 6 animals; two texts of a concept need not be neighbours.
CONCEPTS = ("places", "places", "places", "colours", "colours", "colours", "animals")
POOL = Pool("hand", tuple(f"text {place}" for place in range(7)), CONCEPTS)


def keep(store: hs.Store, indices: Sequence[Sequence[Sequence[int]]], pool: Pool = POOL, run: str = "hand") -> None:
    """Write spans of the first layers into the store, as `textspan` does."""
    values = np.array(indices, np.int64)
    layers = list(range(len(values)))
    about = {"pool_sha256": pool.sha256, "texts": list(pool.texts), "concepts": pool.concepts and list(pool.concepts)}
    vectors = np.eye(len(pool.texts), 24, dtype=np.float32)
    analyses.save(store, "texts", pool.name, {"vectors": (vectors, ("text", "joint"))}, about)
    dims = ("layer", "head", "text")
    analyses.save(
        store,
        "textspan",
        run,
        {"indices": (values, dims), "explained": (np.zeros(values.shape), dims)},
        {"pool": pool.name, "pool_sha256": pool.sha256, "layers": layers, "images": store.images},
    )


HEADS = [
    # Layer 0: five places; three colours of five; a tie of two and two, places first.
    [[0, 1, 2, 0, 1, 6], [3, 0, 4, 6, 5, 0], [1, 3, 6, 4, 2, 3]],
    # Layer 1: five places again; one animal only; no texts.
    [[2, 1, 0, 2, 1, 6], [6, -1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]],
]


def test_the_label_is_the_most_common_concept_of_five_texts(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    labels = label_heads(store, save=True)
    assert labels.names == (("places", "colours", "places"), ("places", "animals", None))
    assert labels.consistent.astype(int).tolist() == [
        [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1]],
        [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ]
    assert labels.name(0, 1) == "colours"
    assert labels.name(1, 2) is None
    assert labels.source == "concepts of pool hand"


def test_only_the_first_five_texts_count(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    # Two animals among five, three among six.
    keep(store, [[[0, 6, 1, 6, 2, 6]] * 3])
    assert label_heads(store, save=True).names == (("places",) * 3,)


def test_of_equally_common_concepts_the_first_is_the_label(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, [[[6, 3, 0, -1, -1], [3, 0, 4, 1, 6], [0, 4, 3, 1, 6]]])
    assert label_heads(store, save=True).names == (("animals", "colours", "places"),)


def test_scores_groups_and_the_ratio_of_concentrated_concepts(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    label_heads(store, save=True)
    found = concept_consistency(store, save=True)
    assert found.scores.tolist() == [[5, 3, 2], [5, 1, 0]]
    assert found.at_k == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 6, 0, 2 / 6])
    assert found.groups == {"high": 2, "moderate": 1, "low": 2}
    # Two high heads share one concept.
    assert found.ccr == 1 / 2
    assert found.group(0, 0) == "high"
    assert found.group(0, 1) == "moderate"
    assert found.group(0, 2) is None
    assert found.group(1, 1) == found.group(1, 2) == "low"


def test_labels_and_scores_are_stored_and_read_back(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    labels = label_heads(store, save=True)
    found = concept_consistency(store, save=True)
    again = read_labels(hs.open(toy_copy))
    assert again.names == labels.names
    assert again.layers == (0, 1)
    assert (again.consistent == labels.consistent).all()
    group = hs.open(toy_copy).group["ccs/hand"]
    assert np.asarray(zarr_array(toy_copy, "ccs/hand/scores")[...]).tolist() == found.scores.tolist()
    assert dict(group.attrs)["groups"] == found.groups
    assert dict(group.attrs)["ccr"] == 0.5
    assert dict(group.attrs)["at_k"] == pytest.approx(found.at_k)


def scored(scores: list[list[int]], names: list[list[str | None]]) -> ConceptConsistency:
    votes = np.array([[[place < score for place in range(5)] for score in row] for row in scores])
    layers = tuple(range(8, 8 + len(scores)))
    labels = Labels("hand", "by hand", layers, tuple(tuple(row) for row in names), votes)
    return ConceptConsistency(labels, Votes(("hand",), votes[None].astype(np.int8), np.full(votes.shape[:2], 5)))


@pytest.mark.parametrize(
    ("scores", "names", "ccr"),
    [
        ([[5, 5, 5]], [["a", "a", "a"]], 1 / 3),
        ([[5, 5, 5]], [["a", "b", "c"]], 0.0),
        ([[5, 5, 4], [5, 5, 5]], [["a", "a", "b"], ["b", "b", "c"]], 2 / 5),
        # A concept shared with a head that is not high is not concentrated.
        ([[5, 4, 3]], [["a", "a", "a"]], 0.0),
    ],
)
def test_the_ratio_counts_concepts_of_more_than_one_high_head(
    scores: list[list[int]], names: list[list[str | None]], ccr: float
) -> None:
    assert scored(scores, names).ccr == pytest.approx(ccr)


def test_without_a_high_head_the_ratio_is_nan_and_stored_as_none(toy_copy: Path) -> None:
    assert math.isnan(scored([[4, 3, 0]], [["a", "a", None]]).ccr)
    store = hs.open(toy_copy)
    keep(store, [[[6, 0, 3, -1, -1]] * 3])
    label_heads(store, save=True)
    assert math.isnan(concept_consistency(store, save=True).ccr)
    assert dict(hs.open(toy_copy).group["ccs/hand"].attrs)["ccr"] is None


def test_groups_are_asked_for_by_the_models_layer_numbers() -> None:
    found = scored([[5, 2, 1], [0, 3, 4]], [["a"] * 3] * 2)
    assert found.group(8, 0) == "high"
    assert found.group(9, 1) == "moderate"
    assert found.group(9, 2) is None


def test_any_function_may_label_and_judge() -> None:
    indices = np.array([[[4, 2, -1], [-1, -1, -1]], [[0, 1, 2], [6, 5, 4]]])
    spans = HeadSpans("hand", POOL, (3, 7), indices, np.zeros(indices.shape), images=2)
    asked: list[list[int]] = []

    def labeller(texts: Sequence[int]) -> str | None:
        asked.append(list(texts))
        return f"label {texts[0]}" if texts else None

    labels = label_with(spans, labeller, judge=lambda text, label: text % 2 == 0, source="by hand")
    assert asked == [[4, 2], [], [0, 1, 2], [6, 5, 4]]
    assert labels.names == (("label 4", None), ("label 0", "label 6"))
    assert labels.consistent.shape == (2, 2, 5)
    assert labels.consistent[..., :3].astype(int).tolist() == [[[1, 1, 0], [0, 0, 0]], [[1, 0, 1], [1, 0, 1]]]
    assert not labels.consistent[..., 3:].any()


def test_a_pool_without_concepts_is_refused_with_what_to_give(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, HEADS, Pool("plain", POOL.texts))
    with pytest.raises(
        TextsError, match=r"pool plain: its texts have no concepts, .*; give text<TAB>concept lines, use"
    ):
        label_heads(store, save=True)
    assert results.runs(store, "labels") == []


def test_scores_without_labels_are_refused_with_the_command_to_run(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    with pytest.raises(StoreError, match=r"copy\.zarr: has no labels run; run headspan label"):
        concept_consistency(store, save=True)
    with pytest.raises(StoreError, match=r"copy\.zarr: has no textspan run; run headspan textspan"):
        label_heads(store, save=True)


def test_spans_labels_and_scores_of_a_whole_run_fit_together(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    pool = Pool("lines", tuple(f"{n} dogs in a row" for n in range(1, 12)), tuple("ab"[n % 2] for n in range(11)))
    spans = hs.textspan(store, pool, texts_per_head=6, save=True)
    labels = label_heads(store, "lines", save=True)
    found = concept_consistency(store, save=True)
    assert pool.concepts is not None
    for layer, head in spans.heads():
        first = [pool.concepts[index] for index in spans.indices[spans.layers.index(layer), head, :5]]
        commonest = max(first, key=lambda name: (first.count(name), -first.index(name)))
        assert labels.name(layer, head) == commonest
        assert found.scores[spans.layers.index(layer), head] == first.count(commonest)


def test_labels_of_fewer_than_five_texts_a_head_are_refused(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, [[[0, 1, 2]] * 3])
    with pytest.raises(SettingsError, match=r"has 3 texts per head, .* run headspan textspan with --texts-per-head 5"):
        label_heads(store, "hand", save=True)
