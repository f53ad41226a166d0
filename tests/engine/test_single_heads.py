"""The mean ablation of every head alone, and greedy removal, against brute force in float64."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.decompose.formula import head_coordinates
from headspan.errors import SettingsError
from headspan.events import Progress
from headspan.prune import Classes, greedy, single_heads
from headspan.prune.direct import block_margins as margins_module
from headspan.prune.direct import sweep as sweep_module
from headspan.prune.direct.block_margins import BlockMargins, HeadScores, margins
from headspan.prune.direct.judged import rightly_named
from headspan.store.head_space import Head, stored_heads
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files
from tests.engine.test_store import unfinished  # noqa: F401
from tests.tolerances import FLOAT32_SUM, relative_error


def classes_of(count: int, joint: int, seed: int = 0) -> Classes:
    vectors = np.random.default_rng(seed).standard_normal((count, joint)).astype(np.float32)
    vectors += 1
    return Classes(tuple(map(str, range(count))), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def truths_of(store: hs.Store, classes: Classes, seed: int = 0) -> np.ndarray:
    """The class that the model names, or another one of three in four, or none."""
    random = np.random.default_rng(seed)
    named = (store.embedding @ classes.vectors.T).argmax(axis=1)
    other = random.integers(0, len(classes.names), store.images)
    known = np.where(random.random(store.images) < 0.6, named, other)
    return np.where(random.random(store.images) < 0.2, -1, known)


def scores_without(store: hs.Store, classes: Classes, heads: Sequence[Head]) -> np.ndarray:
    """The scores of all classes in float64, by dense contributions; each product of two vectors by itself."""
    moments = store.moments()
    embeddings = store.embedding.astype(np.float64) / store.norm[:, 2:]
    for layer, head in heads:
        outputs = store.head_coordinates(layer, head).astype(np.float64)
        mean = moments.total[store.layers.index(layer), head] / moments.count
        own = head_coordinates(outputs, store.norm.astype(np.float64), normalised=True) - mean
        embeddings -= own @ store.head_directions(layer, head).astype(np.float64)
    return np.einsum("ij,cj->ic", embeddings, classes.vectors.astype(np.float64))


def brute_force(
    store: hs.Store, classes: Classes, truths: np.ndarray, heads: Sequence[Head]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image of known class is right, and its margin."""
    known = np.flatnonzero(truths >= 0)
    scores = scores_without(store, classes, heads)[known]
    right = scores.argmax(axis=1) == truths[known]
    return right, margins(scores, truths[known])


def agrees(store: hs.Store, classes: Classes, truths: np.ndarray) -> None:
    found = single_heads(store, classes, truths)
    before, whole = brute_force(store, classes, truths, [])
    assert found.heads == tuple(stored_heads(store))
    np.testing.assert_array_equal(found.images, np.flatnonzero(truths >= 0))
    np.testing.assert_array_equal(found.before, before)
    for place, head in enumerate(found.heads):
        right, left = brute_force(store, classes, truths, [head])
        np.testing.assert_array_equal(found.right(*head), right)
        assert found.correct[place] == right.sum()
        assert found.accuracy[place] == right.mean()
        wrong, now_right = found.flipped(*head)
        np.testing.assert_array_equal(wrong, found.images[before & ~right])
        np.testing.assert_array_equal(now_right, found.images[~before & right])
        assert abs(found.margin_loss[place] - (whole - left).mean()) < 1e-6


@pytest.mark.parametrize("count", [2, 3, 70, 257])
def test_the_sweep_equals_brute_force_over_dense_contributions(count: int, toy_store: hs.Store) -> None:
    classes = classes_of(count, toy_store.joint)
    agrees(toy_store, classes, truths_of(toy_store, classes))


@pytest.mark.parametrize(("block_rows", "product_rows", "together"), [(8, 1, 1), (16, 3, 10**5), (1024, 257, 1)])
def test_the_sweep_does_not_depend_on_its_blocks(
    block_rows: int, product_rows: int, together: int, toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = classes_of(80, toy_store.joint)
    truths = truths_of(toy_store, classes)
    wanted = single_heads(toy_store, classes, truths)
    monkeypatch.setattr(sweep_module, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(margins_module, "_PRODUCT_ROWS", product_rows)
    monkeypatch.setattr(sweep_module, "_TOGETHER_BYTES", together)
    found = single_heads(toy_store, classes, truths)
    np.testing.assert_array_equal(found.before, wanted.before)
    np.testing.assert_array_equal(found.swept.after, wanted.swept.after)
    assert relative_error(found.margin_loss, wanted.margin_loss) < FLOAT32_SUM


def test_of_equal_classes_the_first_is_named(toy_store: hs.Store) -> None:
    classes = classes_of(66, toy_store.joint)
    vectors = classes.vectors.copy()
    often, second = np.argsort(-np.bincount((toy_store.embedding @ vectors.T).argmax(axis=1), minlength=66))[:2]
    # The two classes that are named most, each of them three times.
    vectors[[3, 30, 65]] = vectors[often]
    vectors[[7, 40, 64]] = vectors[second]
    vectors[[often, second]] = -1
    classes = Classes(classes.names, vectors)
    for truth in (3, 7, 30, 64):
        agrees(toy_store, classes, np.full(toy_store.images, truth))
    assert single_heads(toy_store, classes, np.full(toy_store.images, 3)).before.sum() > 5
    found = single_heads(toy_store, classes, np.full(toy_store.images, 65))
    # A class that equals an earlier one is never named.
    assert not found.before.any()
    assert not found.correct.any()


def test_a_tie_is_found_although_products_of_matrices_round_equal_classes_apart() -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 5))
    vectors[3] = vectors[1]
    embeddings = np.stack([vectors[1], vectors[2], vectors[0]])
    scores = embeddings @ vectors.T
    scores[:, 3] = np.nextafter(scores[:, 1], 100)
    assert rightly_named(embeddings, scores, np.array([1, 2, 3]), vectors).tolist() == [True, True, False]


def test_images_that_float32_cannot_decide_are_decided_in_float64(
    toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = classes_of(70, toy_store.joint)
    vectors = classes.vectors.copy()
    named = (toy_store.embedding @ vectors.T).argmax(axis=1)
    most = np.bincount(named).argmax()
    # The next float32 numbers, up or down, in half of the dimensions each.
    vectors[(most + 1) % 70] = np.nextafter(vectors[most], np.where(np.arange(toy_store.joint) % 2, 2, -2), dtype="f")
    again: list[int] = []
    plain = sweep_module._Pass._again

    def count(self: sweep_module._Pass, place: int, images: np.ndarray) -> None:
        again.extend(images.tolist())
        plain(self, place, images)

    monkeypatch.setattr(sweep_module._Pass, "_again", count)
    agrees(toy_store, Classes(classes.names, vectors), np.where(named == most, most, -1))
    assert len(again) > 9


@pytest.mark.parametrize("images", [1, 3, 130])
@pytest.mark.parametrize("strength", [0, 1e-3, 0.03, 0.3, 10])
def test_few_scored_classes_give_the_margin_of_all(
    images: int, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(images)
    vectors = random.standard_normal((300, 40)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = random.standard_normal((images, 40))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    truths = random.integers(0, 300, images)
    directions = random.standard_normal((19, 40)) * strength / 27
    coordinates = random.standard_normal((images, 19)).astype(np.float32)
    scored: list[int] = []
    plain = BlockMargins._score_all

    def count(self: BlockMargins, head: HeadScores, own: np.ndarray, some: Any, left: np.ndarray) -> None:
        scored.append(len(np.arange(images)[some]))
        plain(self, head, own, some, left)

    monkeypatch.setattr(BlockMargins, "_score_all", count)
    reach = np.array([np.linalg.norm(vectors - vector, axis=1).max() for vector in vectors])
    block = BlockMargins(embeddings @ vectors.T, truths, reach)
    head = HeadScores(np.zeros(19), directions, vectors)
    left, errors = block.without(head, coordinates)
    exact = (embeddings - coordinates.astype(np.float64) @ directions) @ vectors.T
    wanted = margins(exact, truths)
    assert (np.abs(left - wanted) <= errors).all()
    assert errors.max() < 1e-4 * max(1, strength)
    if images == 130:
        # Weak heads need no images' other classes, strong ones all of them, and those between some.
        expected = {0: sum(scored) == 0, 1e-3: sum(scored) < 13, 0.03: 0 < sum(scored) < 130, 0.3: True, 10: True}
        assert expected[strength], scored
        assert strength < 0.3 or sum(scored) == 130


def test_the_bound_holds_for_contributions_along_the_difference_of_two_classes() -> None:
    # A class far down the order overtakes the best, since the contribution points from the one to the other.
    vectors = np.eye(100)[:, :90].copy()
    vectors[90:] = np.linalg.qr(np.random.default_rng(0).standard_normal((90, 10)))[0].T
    embedding = np.zeros(90)
    embedding[:9] = np.linspace(0.5, 0.3, 9)
    for size in (0.05, 0.15, 0.3):
        directions = (vectors[1] - vectors[8])[None] * size / np.sqrt(2)
        block = BlockMargins((embedding @ vectors.T)[None], np.array([0]), np.full(100, 2**0.5 + 1))
        left, errors = block.without(HeadScores(np.zeros(1), directions, vectors), np.ones((1, 1), np.float32))
        wanted = margins(((embedding - directions[0]) @ vectors.T)[None], np.array([0]))
        assert abs(left[0] - wanted[0]) <= errors[0]


def test_images_that_failed_and_images_without_a_class_are_left_out(toy_run: ToyRun) -> None:
    shown, every = hs.open(toy_run.path), hs.open(toy_run.path, include_failed=True)
    classes = classes_of(5, shown.joint)
    truths = truths_of(shown, classes)
    of_all = np.full(every.images, 3)
    of_all[shown.rows] = truths
    wanted, found = single_heads(shown, classes, truths), single_heads(every, classes, of_all)
    assert not set(found.images.tolist()) & set(BROKEN_ROWS)
    np.testing.assert_array_equal(found.images, shown.rows[wanted.images])
    np.testing.assert_array_equal(found.swept.after, wanted.swept.after)


def test_some_heads_have_the_numbers_that_they_have_among_all(toy_store: hs.Store) -> None:
    classes = classes_of(9, toy_store.joint)
    truths = truths_of(toy_store, classes)
    events: list[Progress] = []
    every = single_heads(toy_store, classes, truths, events.append)
    assert (events[-1].stage, events[-1].done, events[-1].total) == ("heads", 9, 9)
    some = single_heads(toy_store, classes, truths, heads=[(2, 1), (0, 2)])
    assert some.heads == ((2, 1), (0, 2))
    for head in some.heads:
        np.testing.assert_array_equal(some.right(*head), every.right(*head))
    with pytest.raises(SettingsError, match="layer 1, head 0: is not among the 2 heads of this result"):
        some.right(1, 0)


def test_the_table_has_a_row_for_each_head_and_the_ranking_begins_with_the_largest_loss(toy_store: hs.Store) -> None:
    classes = classes_of(9, toy_store.joint)
    found = single_heads(toy_store, classes, truths_of(toy_store, classes))
    table = found.to_frame()
    assert list(zip(table["layer"], table["head"], strict=True)) == list(found.heads)
    whole = found.before.sum()
    np.testing.assert_array_equal(whole - table["became_wrong"] + table["became_right"], found.correct)
    np.testing.assert_allclose(table["accuracy_loss"], found.accuracy_before - found.accuracy)
    ranked = [found.accuracy[found.heads.index(head)] for head in found.ranking()]
    assert ranked == sorted(ranked)
    assert repr(found).startswith(f"SingleHeads(9 heads, {len(found.images)} images, ")


def test_sizes_that_do_not_fit_are_refused(toy_store: hs.Store) -> None:
    classes, images = classes_of(5, toy_store.joint), toy_store.images
    wrong: list[tuple[Classes, Any, str]] = [
        (classes, np.zeros(images - 1, int), rf"truths of shape \({images - 1},\) .* for each of the {images} images"),
        (classes, np.zeros(images), "type float64: give a class number"),
        (classes, np.full(images, 5), "truths from 5 to 5: classes are numbered from 0 to 4"),
        (classes, np.full(images, -2), "truths from -2 to -2"),
        (classes, np.full(images, -1), "no image has a known class; give the class of at least one"),
        (classes_of(1, toy_store.joint), np.zeros(images, int), "give those of at least two classes"),
        (
            classes_of(5, 7),
            np.zeros(images, int),
            r"shape \(5, 7\): give those of at least two classes, \[class, 24\]",
        ),
    ]
    for given, truths, said in wrong:
        with pytest.raises(SettingsError, match=said):
            inspect.unwrap(single_heads)(toy_store, given, truths)
    with pytest.raises(SettingsError, match="head 3 does not exist"):
        single_heads(toy_store, classes, np.zeros(images, int), heads=[(0, 3)])
    with pytest.raises(SettingsError, match="the list of heads is empty"):
        single_heads(toy_store, classes, np.zeros(images, int), heads=[])


def test_the_sweep_writes_nothing_and_reads_committed_rows_only(unfinished: Path) -> None:  # noqa: F811
    store = hs.open(unfinished)
    classes = classes_of(70, store.joint)
    before = relative_files(unfinished)
    agrees(store, classes, truths_of(store, classes))
    greedy(store, classes, truths_of(store, classes), 2)
    assert relative_files(unfinished) == before
    for path in (unfinished / "records" / "commits").iterdir():
        path.unlink()
    empty = hs.open(unfinished)
    with pytest.raises(SettingsError, match="no image has a known class"):
        single_heads(empty, classes, np.zeros(0, int))


@pytest.mark.parametrize("order", ["least", "most"])
@pytest.mark.parametrize("count", [3, 70])
def test_greedy_removal_equals_a_search_by_brute_force(order: str, count: int, toy_store: hs.Store) -> None:
    classes = classes_of(count, toy_store.joint)
    truths = truths_of(toy_store, classes)
    sign = 1 if order == "least" else -1
    removed: list[Head] = []
    correct = []
    while len(removed) < 9:
        tried = {}
        for head in stored_heads(toy_store):
            if head not in removed:
                right, left = brute_force(toy_store, classes, truths, [*removed, head])
                tried[head] = (-sign * int(right.sum()), -sign * left.mean())
        removed.append(min(tried, key=lambda head: tried[head]))
        correct.append(abs(tried[removed[-1]][0]))
    found = greedy(toy_store, classes, truths, 9, order)  # type: ignore[arg-type]
    assert found.heads == tuple(removed)
    assert found.correct.tolist() == correct
    assert found.correct_before == brute_force(toy_store, classes, truths, [])[0].sum()
    some = greedy(toy_store, classes, truths, 4, order)  # type: ignore[arg-type]
    assert some.heads == found.heads[:4]
    assert some.to_frame()["accuracy"].tolist() == [right / some.images for right in correct[:4]]
    assert repr(some).startswith(f"GreedyRemoval(4 heads that cost {order}, ")


def test_greedy_removal_refuses_other_orders_and_counts(toy_store: hs.Store) -> None:
    classes, truths = classes_of(5, toy_store.joint), np.zeros(toy_store.images, int)
    with pytest.raises(SettingsError, match="order 'best' is unknown; use 'least' or 'most'"):
        inspect.unwrap(greedy)(toy_store, classes, truths, 1, "best")
    for count in (0, 10):
        with pytest.raises(SettingsError, match=f"{count} heads to remove of 9; ask for 1 to 9"):
            greedy(toy_store, classes, truths, count)
