"""Sketches leave every image that can be among the nearest, whatever the numbers are; results equal brute force."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from benchmarks import random_store
from headspan.background import finish
from headspan.explore.nearest import eight_bits, kept_sketches
from headspan.explore.nearest import sketch as sketch_module
from headspan.explore.nearest import survivors as survivors_module
from headspan.explore.nearest.eight_bits import EightBits
from headspan.explore.nearest.neighbours import (
    nearest_to_image,
    nearest_to_one_of,
    nearest_to_vector,
    query_vector,
)
from headspan.explore.nearest.property_neighbours import property_neighbours
from headspan.explore.nearest.scored import ScoredEmbedding, ScoredHeads, Sketchable
from headspan.explore.nearest.search import Question, answered, search, search_one_of
from headspan.explore.nearest.sketch import Sketch
from headspan.explore.nearest.survivors import survivors
from headspan.explore.query.query_image import query_image
from headspan.store.head_space import Head
from headspan.store.schema import Dimensions
from tests.conftest import ToyRun

IMAGES = 3001
SIZE = Dimensions(
    IMAGES,
    1024,
    layers=(1, 2),
    all_layers=3,
    direct_layers=3,
    heads=3,
    head_dim=16,
    tokens=5,
    prefix_tokens=1,
    joint=40,
    terms=4,
)
SOME_HEADS = [(1, 0), (2, 2), (1, 2), (2, 0)]


def isotropic(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return random.standard_normal((rows, width))


def low_rank(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return (
        random.standard_normal((rows, 3)) @ random.standard_normal((3, width))
        + 5
        + 1e-3 * isotropic(random, rows, width)
    )


def heavy_tailed(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return np.clip(random.standard_cauchy((rows, width)), -3e3, 3e3)


def equal(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return np.tile(np.linspace(1, 2, width), (rows, 1))


def few_distinct(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((7, width))[random.integers(0, 7, rows)]


def zero_but_one(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    found = np.zeros((rows, width))
    found[rows // 2] = random.standard_normal(width)
    return found


def far_mean(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return 500 + 0.5 * isotropic(random, rows, width)


Kind = Callable[[np.random.Generator, int, int], np.ndarray]
KINDS: tuple[Kind, ...] = (isotropic, low_rank, heavy_tailed, equal, few_distinct, zero_but_one, far_mean)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    return store_of(request.param, tmp_path_factory.mktemp("sketches"))


def store_of(kind: Kind, folder: Path) -> hs.Store:
    def batches(unit, size, emit, random, spectrum=None):  # type: ignore[no-untyped-def]
        for first in range(unit.first_row, unit.first_row + unit.rows, 256):
            rows = np.arange(first, min(first + 256, unit.first_row + unit.rows))
            embedding = kind(random, len(rows), size.joint)
            embedding[:, 0] += 1e-3
            heads = kind(random, len(rows), 2 * 3 * 16).reshape(len(rows), 2, 3, 16)
            norm = random.uniform(1, 2, (len(rows), 3))
            norm[:, 2] = np.linalg.norm(embedding, axis=1)
            yield (
                rows,
                {
                    "embedding": embedding.astype(np.float32),
                    "norm": norm.astype(np.float32),
                    "heads": heads.astype(np.float16),
                },
            )

    path = folder / f"{kind.__name__}.zarr"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(random_store, "unit_batches", batches)
        random_store.write_store(path, SIZE, ("heads",), np.random.default_rng(0))
    return hs.open(path)


def brute_force(store: hs.Store, heads: list[Head] | None, query: np.ndarray) -> np.ndarray:
    """Scores in float64 from the stored arrays, without headspan's own products."""
    norm = np.asarray(store.group["norm"][...], np.float64)
    if heads is None:
        return np.asarray(store.group["embedding"][...], np.float64) @ query.astype(np.float64) / norm[:, 2]
    total = np.zeros(len(norm))
    for layer, head in heads:
        own = np.asarray(store.group["heads"][:, store.layers.index(layer), head], np.float64)
        extra = np.stack([1 / norm[:, 1], norm[:, 0] / norm[:, 1], np.ones(len(norm))], axis=1)
        coordinates = np.concatenate([own / norm[:, 1:2], extra], axis=1) / norm[:, 2:]
        total += coordinates @ (store.head_directions(layer, head).astype(np.float64) @ query.astype(np.float64))
    return total / len(heads)


def queries(store: hs.Store) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    found = [random.standard_normal(store.joint), np.eye(store.joint)[3], np.zeros(store.joint)]
    found += [store.embedding[17] / store.norm[17, 2], store.head(2, 2)[5]]
    return [each.astype(np.float32) for each in found]


def scored_by(store: hs.Store, heads: list[Head] | None) -> Sketchable:
    return ScoredEmbedding(store) if heads is None else ScoredHeads(store, heads)


@pytest.mark.parametrize("few", [0, 19], ids=["further axes", "all axes at once"])
@pytest.mark.parametrize("heads", [None, SOME_HEADS, [(2, 1)]], ids=["embedding", "four heads", "one head"])
def test_the_nearest_images_survive_whatever_the_numbers_are(
    store: hs.Store, heads: list[Head] | None, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One head has 19 coordinates.
    monkeypatch.setattr(sketch_module, "_FEW", few)
    # Every query is tried, and every row may be left.
    monkeypatch.setattr(survivors_module, "_HOPELESS", np.inf)
    monkeypatch.setattr(survivors_module, "_MOST_LEFT", 1)
    # Many rows are farther than eight bits can say.
    monkeypatch.setattr(sketch_module, "FAR_ROWS", 0.2)
    scored = scored_by(store, heads)
    every_survives(store, heads, Sketch(scored, IMAGES), scored)


def test_the_nearest_images_survive_eight_bits_of_all_numbers(store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survivors_module, "_HOPELESS", np.inf)
    monkeypatch.setattr(survivors_module, "_MOST_LEFT", 1)
    monkeypatch.setattr(eight_bits, "FAR_ROWS", 0.2)
    scored = ScoredEmbedding(store)
    every_survives(store, None, EightBits(scored, IMAGES), scored)


def every_survives(store: hs.Store, heads: list[Head] | None, sketch: Sketch | EightBits, scored: Sketchable) -> None:
    """The rows that survive hold all that can be among the nearest, and their bounds are bounds."""
    answered = 0
    for query in queries(store):
        scores = brute_force(store, heads, query)
        rounding = 1e-12 * np.abs(scores).max()
        for count, without in ((1, None), (3, 2001), (257, 0)):
            found = survivors([sketch.products(query)], count, without, partial(scored.exact, query))
            if found is None:
                continue
            answered += 1
            rows, bounds = found
            assert (bounds >= scores[rows] - rounding).all()
            assert (bounds[:-1] >= bounds[1:]).all()
            rivals = np.delete(scores, without) if without is not None else scores
            least = np.sort(rivals)[-count]
            assert set(np.flatnonzero(scores > least + rounding)) - {without} <= set(rows.tolist())
            # Of images that tie, so many survive that `count` images are found.
            assert (scores[rows] >= least - rounding).sum() >= count
            assert len(set(rows.tolist())) == len(rows)
            assert without not in rows
    if store.path.name != "equal.zarr":
        assert answered


def test_few_images_are_left_if_numbers_are_like_those_of_a_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    spectrum = random_store.Spectrum(SIZE, random)
    random_store.write_store(tmp_path / "run.zarr", SIZE, ("heads",), random, spectrum=spectrum)
    like_model = hs.open(tmp_path / "run.zarr")
    for heads in (None, SOME_HEADS, [(2, 1)]):
        scored, left = scored_by(like_model, heads), []
        sketch = Sketch(scored, IMAGES)
        for image in range(20):
            query = query_vector(like_model, query_image(like_model, image), heads)
            found = survivors([sketch.products(query)], 5, image, partial(scored.exact, query))
            left.append(IMAGES if found is None else len(found[0]))
        assert np.median(left) < 60


def test_few_images_are_left_of_a_text_by_eight_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    random_store.write_store(
        tmp_path / "run.zarr", SIZE, ("heads",), random, spectrum=random_store.Spectrum(SIZE, random)
    )
    like_model = hs.open(tmp_path / "run.zarr")
    scored, left = ScoredEmbedding(like_model), []
    copy = EightBits(scored, IMAGES)
    for _ in range(20):
        text = random.standard_normal(like_model.joint).astype(np.float32)
        found = survivors([copy.products(text)], 5, None, partial(scored.exact, text))
        left.append(IMAGES if found is None else len(found[0]))
    assert np.median(left) < 30


def test_a_search_of_a_text_by_embedding_reads_eight_bits_and_equals_a_scan_to_the_bit(
    tmp_path: Path, counted: Count
) -> None:
    store, random = one_store(tmp_path), np.random.default_rng(3)
    for _ in range(3):
        text = random.standard_normal(store.joint).astype(np.float32)
        plain, found = (search(store, None, text, 10, sketched=sketched) for sketched in (False, True))
        np.testing.assert_array_equal(plain.images, found.images)
        np.testing.assert_array_equal(plain.scores, found.scores)
    # These numbers have no leading axes, so the sketch leaves too many images.
    assert kept_sketches.eight_bits_of(store, ScoredEmbedding(store)) is not None


@pytest.mark.parametrize("heads", [[(1, 0)], SOME_HEADS, None], ids=["one head", "four heads", "embedding"])
def test_the_axes_are_orthonormal_and_hold_every_vector(store: hs.Store, heads: list[Head] | None) -> None:
    scored = scored_by(store, heads)
    axes = scored.axes(IMAGES)
    np.testing.assert_allclose(axes.directions @ axes.directions.T, np.eye(len(axes.directions)), atol=1e-9)
    some = scored.block(30, 41).astype(np.float64)
    along = (some - axes.centre) @ axes.to_axes
    query = queries(store)[0]
    scores = along @ (axes.directions @ query) + axes.centre_vector @ query
    np.testing.assert_allclose(scores, brute_force(store, heads, query)[30:41], rtol=1e-4, atol=1e-6)
    assert (np.diff(axes.square) <= 1e-12).all()


@pytest.mark.parametrize("heads", [None, SOME_HEADS], ids=["embedding", "four heads"])
def test_a_search_by_sketch_equals_a_search_without_one_to_the_bit(
    store: hs.Store, heads: list[Head] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for query in queries(store):
        plain = search(store, heads, query, 10, without=5)
        with monkeypatch.context() as patched:
            patched.setattr(kept_sketches, "_LEAST_BYTES", 0)
            sketched = search(store, heads, query, 10, without=5, sketched=True)
        np.testing.assert_array_equal(plain.images, sketched.images)
        np.testing.assert_array_equal(plain.scores, sketched.scores)
        scores = brute_force(store, heads, query)
        scores[5] = -np.inf
        np.testing.assert_allclose(plain.scores, np.sort(scores)[::-1][:10], rtol=1e-6, atol=1e-9)
        assert 5 not in plain.images


@pytest.mark.parametrize("ablated", [[(1, 0)], SOME_HEADS], ids=["one head", "four heads"])
def test_a_search_of_ablated_embeddings_adds_the_bounds_of_other_sketches(
    store: hs.Store, ablated: list[Head], counted: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survivors_module, "_HOPELESS", np.inf)
    monkeypatch.setattr(survivors_module, "_MOST_LEFT", 1)
    monkeypatch.setattr(sketch_module, "FAR_ROWS", 0.2)
    for query in queries(store)[:2] + queries(store)[3:]:
        for count in (1, 10):
            plain = search(store, None, query, count, 5, False, ablated)
            sketched = search(store, None, query, count, 5, True, ablated)
            np.testing.assert_array_equal(plain.images, sketched.images)
            np.testing.assert_array_equal(plain.scores, sketched.scores)
    # One of the embedding, and one of each head.
    assert counted.calls == 1 + len(ablated)


@pytest.mark.parametrize("sketched", [False, True], ids=["by all numbers", "by a sketch"])
@pytest.mark.parametrize("heads", [SOME_HEADS, [(2, 1)]], ids=["four heads", "one head"])
def test_both_ends_are_the_nearest_of_a_query_and_of_its_negative(
    store: hs.Store, heads: list[Head], sketched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_sketches, "_LEAST_BYTES", 0)
    monkeypatch.setattr(sketch_module, "FAR_ROWS", 0.2)
    for query in queries(store):
        for count in (1, 9):
            top, bottom = answered(store, Question(heads, query, count, both_ends=True), sketched)
            for found, sign in ((top, 1), (bottom, -1)):
                wanted = search(store, heads, sign * query, count, sketched=False)
                np.testing.assert_array_equal(found.images, wanted.images)
                np.testing.assert_array_equal(found.scores, sign * wanted.scores)


def test_the_nearest_images_of_listed_texts_are_those_of_a_search_to_the_bit(
    store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_sketches, "_LEAST_BYTES", 0)
    texts = np.stack([*queries(store), *np.random.default_rng(2).standard_normal((30, store.joint))])
    texts = texts.astype(np.float32)
    kept_sketches.forget_sketches()
    answered = 0
    for place in range(len(texts)):
        for count in (1, 20, 128, 500):
            wanted = search(store, None, texts[place], count, sketched=False)
            found = search_one_of(store, texts, place, count, listed=True)
            np.testing.assert_array_equal(found.images, wanted.images)
            np.testing.assert_array_equal(found.scores, wanted.scores)
            lists = kept_sketches.lists_of(store, texts)
            assert lists is not None
            answered += lists.near(place, texts[place], count) is not None
    # Where many images are equal, or more are asked for than are listed, a search answers.
    assert answered > len(texts) or store.path.name in ("equal.zarr", "few_distinct.zarr", "zero_but_one.zarr")
    # Lists are those of the first texts.
    others = texts[::-1].copy()
    wanted = search(store, None, others[0], 3, sketched=False)
    np.testing.assert_array_equal(search_one_of(store, others, 0, 3, listed=True).images, wanted.images)


def test_a_listed_text_that_is_not_finite_is_refused(store: hs.Store) -> None:
    texts = np.full((2, store.joint), np.nan, np.float32)
    with pytest.raises(hs.HeadspanError, match="the query has numbers that are not finite; give another text"):
        nearest_to_one_of(store, texts, 1)


def test_lists_of_a_store_with_few_images_leave_out_failed_ones(
    toy_copy: Path, counted: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy, include_failed=True)
    texts = np.random.default_rng(2).standard_normal((3, store.joint)).astype(np.float32)
    for place in range(3):
        for count in (1, 5, 1000):
            wanted = search(store, None, texts[place], count, sketched=False)
            found = search_one_of(store, texts, place, count, listed=True)
            np.testing.assert_array_equal(found.images, wanted.images)
    assert kept_sketches.lists_of(store, texts).near(0, texts[0], 1000) is not None  # type: ignore[union-attr]


def test_the_second_question_about_listed_texts_has_lists_built(tmp_path: Path, counted: Count) -> None:
    store = one_store(tmp_path)
    texts = np.random.default_rng(2).standard_normal((3, store.joint)).astype(np.float32)
    wanted = [nearest_to_vector(store, text).images.tolist() for text in texts]
    found = []
    for place in range(3):
        found.append(nearest_to_one_of(store, texts, place).images.tolist())
        finish()
    assert found == wanted
    assert kept_sketches.lists_of(store, texts) is not None
    assert kept_sketches.lists_of(one_store(tmp_path / "other"), texts) is None


def test_of_equal_scores_the_first_images_are_chosen(toy_store: hs.Store) -> None:
    found = nearest_to_vector(toy_store, np.zeros(toy_store.joint, np.float32), [(0, 0)], count=4)
    assert found.images.tolist() == [0, 1, 2, 3]


class Count:
    """Counts the sketches that are built."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        self.calls, self._function = 0, function
        self.most_bytes = function.most_bytes

    def __call__(self, *arguments: object) -> object:
        self.calls += 1
        return self._function(*arguments)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Sketches of stores of any size are counted."""
    counter = Count(Sketch)
    kept_sketches.forget_sketches()
    monkeypatch.setattr(kept_sketches, "_LEAST_BYTES", 0)
    monkeypatch.setattr(kept_sketches, "Sketch", counter)
    return counter


def one_store(tmp_path: Path) -> hs.Store:
    random_store.write_store(tmp_path / "one.zarr", SIZE, ("heads",), np.random.default_rng(0))
    return hs.open(tmp_path / "one.zarr")


def test_a_property_beside_the_embedding_and_random_heads_reads_a_sketch_of_each(
    tmp_path: Path, counted: Count
) -> None:
    store = one_store(tmp_path)
    wanted = [property_neighbours(store, image, SOME_HEADS[:2], draws=2) for image in range(2)]
    finish()
    assert counted.calls == 4
    for image, plain in enumerate(wanted):
        found = property_neighbours(store, image, SOME_HEADS[:2], draws=2)
        assert [each.name for each in found.columns] == ["property", "embedding", "random 1", "random 2"]
        for by_sketch, by_scan in zip(found.columns, plain.columns, strict=True):
            np.testing.assert_array_equal(by_sketch.neighbours.images, by_scan.neighbours.images)
            np.testing.assert_array_equal(by_sketch.neighbours.scores, by_scan.neighbours.scores)
    finish()
    assert counted.calls == 4


def test_the_second_query_of_the_same_heads_has_a_sketch_built(tmp_path: Path, counted: Count) -> None:
    store = one_store(tmp_path)
    calls = []
    for image, heads in [(0, None), (1, SOME_HEADS), (2, None), (3, SOME_HEADS[::-1]), (4, None), (5, SOME_HEADS)]:
        nearest_to_image(store, image, heads)
        finish()
        calls.append(counted.calls)
    assert calls == [0, 0, 1, 2, 2, 2]


def test_queries_do_not_wait_for_a_sketch_that_is_being_built(
    tmp_path: Path, counted: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, begun, go_on = one_store(tmp_path), threading.Event(), threading.Event()
    threads = []

    def slow(*arguments: object) -> object:
        threads.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(60)
        return counted(*arguments)

    slow.most_bytes = Sketch.most_bytes  # type: ignore[attr-defined]
    monkeypatch.setattr(kept_sketches, "Sketch", slow)
    wanted = nearest_to_image(store, 3).images
    nearest_to_image(store, 3)
    assert begun.wait(60)
    for _ in range(3):
        assert (nearest_to_image(store, 3).images == wanted).all()
    assert not kept_sketches._kept._sketches
    go_on.set()
    finish()
    assert (nearest_to_image(store, 3).images == wanted).all()
    assert threads == ["headspan-later"]
    assert len(kept_sketches._kept._sketches) == 1


def test_sketches_of_a_small_store_are_never_built(
    tmp_path: Path, counted: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    store = one_store(tmp_path)
    before = len(kept_sketches._kept._sketches)
    for image in range(4):
        nearest_to_image(store, image)
    finish()
    assert len(kept_sketches._kept._sketches) == before


def test_kept_sketches_stay_within_their_memory_and_queries_that_alternate_do_not_build_them_again(
    tmp_path: Path, counted: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = one_store(tmp_path)
    # One sketch of one head, not two.
    monkeypatch.setattr(kept_sketches, "_KEPT_BYTES", Sketch.most_bytes(IMAGES, 19) * 3 // 2)

    def ask(head: Head | None) -> np.ndarray:
        found = nearest_to_image(store, 0, None if head is None else [head]).images
        finish()
        assert kept_sketches._kept.bytes <= kept_sketches._KEPT_BYTES
        return found

    wanted = {head: ask(head) for head in [(1, 0), (1, 1), (2, 0)]}
    for _ in range(4):
        for head, images in wanted.items():
            assert (ask(head) == images).all()
    assert counted.calls == 1
    # It is replaced when no query has used it for a while.
    monkeypatch.setattr(kept_sketches, "_UNUSED_QUERIES", 5)
    for _ in range(6):
        ask((2, 0))
    assert counted.calls == 2
    # A larger one does not fit, and is not built.
    monkeypatch.setattr(kept_sketches, "_KEPT_BYTES", Sketch.most_bytes(IMAGES, 19) * 11 // 10)
    monkeypatch.setattr(sketch_module, "_FEW", 19)
    monkeypatch.setattr(sketch_module, "_MOST_AXES", 100)
    for _ in range(9):
        ask(None)
    assert counted.calls == 2


def test_sketches_are_dropped_with_their_store(tmp_path: Path, counted: Count) -> None:
    store = one_store(tmp_path)
    for image in range(2):
        nearest_to_image(store, image)
    finish()
    assert len(kept_sketches._kept._sketches) == 1
    del store
    gc.collect()
    assert not kept_sketches._kept._sketches


def test_an_empty_query_leaves_every_shown_image(toy_run: ToyRun, counted: Count) -> None:
    store = hs.open(toy_run.path)
    for _ in range(3):
        found = nearest_to_vector(store, np.zeros(store.joint, np.float32), None, count=1000)
        finish()
        assert found.images.tolist() == list(range(store.images))
    assert counted.calls == 1


def test_failed_images_never_appear_by_sketch(toy_copy: Path, counted: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survivors_module, "_HOPELESS", np.inf)
    monkeypatch.setattr(survivors_module, "_MOST_LEFT", 1)
    store = hs.open(toy_copy, include_failed=True)
    good = np.isfinite(store.norm[:, 2])
    assert not good.all()
    for heads in (None, [(0, 0), (2, 1)]):
        for image in (0, 1, 2):
            for count in (3, 1000):
                found = nearest_to_image(store, image, heads, count)
                finish()
                assert good[found.images].all()
                assert len(found.images) == min(count, good.sum() - 1)
    assert counted.calls == 2
