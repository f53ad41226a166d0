"""TEXTSPAN, compared with the published choices and with dense float64 loops, and over a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.metadata import ArrayV3Metadata

import headspan as hs
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.labels import label_heads, read_labels
from headspan.decompose.formula import head_coordinates
from headspan.errors import ModelError, SettingsError, StoreError, TextsError
from headspan.events import Progress
from headspan.spans.algorithm import Spread, span_heads, textspan_dense
from headspan.spans.description import span_store
from headspan.spans.saved import read_spans
from tests import tolerances
from tests.conftest import ToyRun, relative_files, zarr_array
from tests.golden import recipe
from tests.oracle import textspan as oracle_textspan
from tests.tolerances import relative_error

CASES = json.loads((Path(__file__).resolve().parents[1] / "golden" / "textspan.json").read_text())
# Texts of many different words, so that the toy's text vectors differ by more than rounding.
TEXTS = [f"a {what} in {where}" for what in ("dog", "red car", "tree", "5 cups") for where in ("rain", "Rome", "a box")]


@pytest.mark.parametrize("case", CASES)
def test_the_published_sixty_texts_are_chosen_even_if_the_last_bit_changes(case: str) -> None:
    golden = CASES[case]
    contributions, texts = recipe.textspan_inputs(golden["seed"], **golden["make"])
    generator = np.random.default_rng(60)
    for perturbed in (False, True):
        if perturbed:
            up = generator.integers(0, 2, contributions.shape, dtype=bool)
            towards = np.where(up, np.float32(np.inf), np.float32(-np.inf))
            contributions = np.nextafter(contributions, towards)
        span = textspan_dense(contributions, texts, 60, golden["rank"])
        assert span.indices.tolist() == golden["chosen"]
        assert round(float(span.explained[-1]), 5) == golden["explained"]
        assert (np.diff(span.explained) > 0).all()


def problem(seed: int, images: int, joint: int, true_rank: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 texts, and contributions of rank `true_rank` with falling spread and a mean that is not zero."""
    generator = np.random.default_rng(seed)
    spread = generator.standard_normal((images, true_rank)) * np.geomspace(1, 0.1, true_rank)
    spread += generator.standard_normal(true_rank)
    contributions = spread @ generator.standard_normal((true_rank, joint))
    return contributions.astype(np.float32), generator.standard_normal((pool, joint)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(8, 40),
    joint=st.integers(1, 9),
    true_rank=st.integers(1, 7),
    rank=st.integers(1, 12),
    pool=st.integers(1, 30),
)
def test_small_problems_agree_with_dense_float64_loops(
    seed: int, images: int, joint: int, true_rank: int, rank: int, pool: int
) -> None:
    true_rank = min(true_rank, joint)
    contributions, texts = problem(seed, images, joint, true_rank, pool)
    # As many rounds as there are dimensions. In later rounds, the published procedure divides rounding errors.
    rounds = min(rank, true_rank, pool)
    chosen, explained, reconstruction = oracle_textspan(contributions, texts, rounds, rank)
    span = textspan_dense(contributions, texts, pool, rank)
    assert span.indices[:rounds].tolist() == chosen.tolist()
    # Products of float32 numbers in float64; `explained` is at most 1.
    np.testing.assert_allclose(span.explained[:rounds], explained, rtol=0, atol=1e-9)
    assert (span.indices[rounds:] == -1).all()
    np.testing.assert_allclose(span.explained[rounds:], explained[-1], rtol=0, atol=1e-9)
    assert len(span.directions) == rounds
    assert relative_error(span.reconstruct(contributions), reconstruction) < tolerances.FLOAT32_SUM


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), copies=st.integers(2, 4))
def test_a_text_that_is_twice_in_the_pool_is_chosen_once(seed: int, copies: int) -> None:
    contributions, texts = problem(seed, 30, 6, 4, 9)
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(9), copies))
    span = textspan_dense(contributions, texts[order], 9 * copies, 80)
    once = textspan_dense(contributions, texts, 4, 80)
    assert order[span.indices[:4]].tolist() == once.indices.tolist()
    assert (span.indices[4:] == -1).all()


def test_of_two_equal_texts_the_first_is_chosen() -> None:
    contributions, texts = problem(3, 30, 6, 4, 1)
    span = textspan_dense(contributions, np.repeat(texts, 257, axis=0), 3, 80)
    assert span.indices.tolist() == [0, -1, -1]


def test_texts_orthogonal_to_the_contributions_explain_nothing() -> None:
    contributions = np.zeros((7, 3))
    contributions[:, 0] = np.arange(7)
    span = textspan_dense(contributions, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]), 2, 80)
    assert span.indices.tolist() == [-1, -1]
    assert span.explained.tolist() == [0, 0]
    assert (span.reconstruct(contributions) == [3, 0, 0]).all()


@pytest.mark.parametrize("seed", [None, 0, 1, 11])
def test_a_head_that_is_the_same_for_all_images_has_no_text(seed: int | None) -> None:
    generator = np.random.default_rng(seed or 0)
    # Zeros, and numbers whose sums are rounded, so that the variance is not exactly zero.
    row = np.zeros(8) if seed is None else generator.standard_normal(8)
    contributions = np.tile(row.astype(np.float32), (67, 1))
    span = textspan_dense(contributions, generator.standard_normal((9, 8)).astype(np.float32), 3, 80)
    assert span.indices.tolist() == [-1, -1, -1]
    assert ((span.explained >= 0) & (span.explained <= 1)).all()
    np.testing.assert_allclose(span.reconstruct(contributions), contributions, rtol=1e-6)


def test_large_means_do_not_hide_the_variance() -> None:
    # The Gram matrix is uncentred: a mean 1,000 times the spread costs six of float64's sixteen digits.
    contributions, texts = problem(9, 40, 8, 5, 30)
    shifted = contributions.astype(np.float64) + 1000 * np.random.default_rng(1).standard_normal(8)
    chosen, explained, _ = oracle_textspan(shifted, texts, 5, 80)
    span = textspan_dense(shifted, texts, 5, 80)
    assert span.indices.tolist() == chosen.tolist()
    np.testing.assert_allclose(span.explained, explained, rtol=0, atol=1e-8)


def test_moments_of_coordinates_give_the_result_of_dense_contributions() -> None:
    generator = np.random.default_rng(257)
    coordinates = generator.standard_normal((257, 7)) + generator.standard_normal(7)
    directions, texts = generator.standard_normal((7, 24)), generator.standard_normal((51, 24))
    spread = Spread(257, coordinates.sum(axis=0), coordinates.T @ coordinates, directions)
    (span,) = span_heads([spread], texts, 9, 80)
    dense = textspan_dense(coordinates @ directions, texts, 9, 80)
    assert span.indices.tolist() == dense.indices.tolist()
    np.testing.assert_allclose(span.explained, dense.explained, rtol=0, atol=1e-9)
    assert relative_error(span.mean, dense.mean) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"texts_per_head": 0}, r"0 texts per head from a pool of 5; ask for 1 to 5"),
        ({"texts_per_head": 6}, r"6 texts per head from a pool of 5; ask for 1 to 5"),
        ({"rank": 0}, r"rank 0 is too small; ask for at least 1"),
        ({"contributions": np.ones((1, 4))}, r"1 image, but TEXTSPAN needs at least 2, to have a variance"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, object], text: str) -> None:
    given_sizes = {"contributions": np.ones((3, 4)), "texts": np.ones((5, 4)), "texts_per_head": 2, **changed}
    with pytest.raises(SettingsError, match=text):
        textspan_dense(**given_sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("contributions", "shape"), [(np.ones(4), r"\(4,\)"), (np.ones((3, 5)), r"\(3, 5\)")])
def test_arrays_without_one_joint_dimension_are_refused(contributions: np.ndarray, shape: str) -> None:
    # The function without the tests' shape checks, as users call it.
    unchecked = textspan_dense.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(
        SettingsError, match=rf"contributions {shape} and texts \(5, 4\) do not fit; give \[images, joint\] and \[texts"
    ):
        unchecked(contributions, np.ones((5, 4)))


def test_a_stores_spans_are_those_of_its_float32_contributions(
    toy_copy: Path, toy_exact: dict[str, np.ndarray]
) -> None:
    store = hs.open(toy_copy)
    spans = hs.textspan(store, TEXTS, texts_per_head=7, layers=(0, 2), save=True)
    vectors = np.asarray(zarr_array(toy_copy, f"texts/{spans.pool.name}/vectors")[...])
    assert relative_error(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS))) < tolerances.FLOAT32_SUM
    assert spans.indices.shape == spans.explained.shape == (2, 3, 7)
    assert list(spans.heads()) == [(layer, head) for layer in (0, 2) for head in range(3)]
    found = span_store(store, vectors, 7, (0, 2), 80, store.moments())
    for (layer, head), span in zip(spans.heads(), found, strict=True):
        coordinates = head_coordinates(toy_exact["heads"][:, layer, head], toy_exact["norm"], normalised=True)
        exact = coordinates @ store.head_directions(layer, head)
        dense = textspan_dense(exact, vectors, 7, 80)
        place = spans.layers.index(layer)
        assert spans.indices[place, head].tolist() == span.indices.tolist() == dense.indices.tolist()
        np.testing.assert_allclose(spans.explained[place, head], dense.explained, rtol=0, atol=1e-5)
        assert spans.texts(layer, head) == [TEXTS[index] for index in dense.indices]
        assert spans.texts(layer, head, 2) == [TEXTS[index] for index in dense.indices[:2]]
        assert relative_error(span.reconstruct(exact), dense.reconstruct(exact)) < tolerances.FLOAT32_SUM


def test_spans_are_stored_with_their_settings_and_read_back(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    spans = hs.textspan(store, TEXTS, texts_per_head=3, rank=5, run="first")
    again = read_spans(hs.open(toy_copy), "first")
    assert again.pool == spans.pool
    assert again.layers == spans.layers == (0, 1, 2)
    assert (again.indices == spans.indices).all()
    assert (again.explained == spans.explained).all()
    about = dict(hs.open(toy_copy).group["textspan/first"].attrs)
    assert about["rank"] == 5
    assert about["texts_per_head"] == 3
    assert about["images"] == 67
    assert about["convention"] == "uniform"
    metadata = zarr_array(toy_copy, "textspan/first/indices").metadata
    assert isinstance(metadata, ArrayV3Metadata)
    assert metadata.dimension_names == ("layer", "head", "text")


def test_heads_are_described_over_the_images_of_several_stores(toy_run: ToyRun, toy_copy: Path, tmp_path: Path) -> None:
    parts = []
    for number, shard in enumerate(toy_run.shards):
        hs.precompute(out=tmp_path / f"{number}.zarr", **toy_run.settings(shards=[str(shard)]))
        parts.append(hs.open(tmp_path / f"{number}.zarr"))
    assert len(parts) > 1
    wanted = hs.textspan(hs.open(toy_copy), texts=TEXTS, texts_per_head=5, save=True)
    found = hs.textspan(parts[0], texts=TEXTS, texts_per_head=5, also=parts[1:], save=True)
    assert (found.indices == wanted.indices).all()
    np.testing.assert_allclose(found.explained, wanted.explained, rtol=1e-6)
    alone = hs.textspan(parts[0], texts=TEXTS, texts_per_head=5, run="alone")
    assert not np.allclose(alone.explained, wanted.explained, rtol=1e-3)
    settings = zarr.open_group(parts[0].path, mode="r")[f"textspan/{found.run}"].attrs
    assert settings["images"] == sum(part.images for part in parts)
    assert settings["also"] == [str(part.path.resolve()) for part in parts[1:]]


def test_stores_that_cannot_be_added_are_refused_by_name(toy_run: ToyRun, toy_copy: Path, tmp_path: Path) -> None:
    store = hs.open(toy_copy)
    with pytest.raises(SettingsError, match="named twice"):
        hs.textspan(store, texts=TEXTS, texts_per_head=5, also=[hs.open(toy_copy)], save=True)
    for changed in ({"layers": "1-2"}, {"pretrained": "random:1"}):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        hs.precompute(out=out, **toy_run.settings(shards=[str(toy_run.shards[0])], **changed))
        with pytest.raises(
            StoreError, match=f"{out}: was made with .*; add stores of the same model, preprocessing and layers"
        ):
            hs.textspan(store, texts=TEXTS, texts_per_head=5, also=[hs.open(out)], save=True)
    assert "textspan" not in zarr.open_group(toy_copy, mode="r")


def scored(path: Path) -> hs.Store:
    """A store with spans, labels and scores under the run `pool`."""
    store = hs.open(path)
    hs.textspan(store, CONCEPTS, texts_per_head=5, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    return store


CONCEPTS = hs.Pool("pool", tuple(TEXTS), tuple(text.split(" in ")[1] for text in TEXTS))


def test_repeating_a_textspan_changes_nothing_and_reports_it(toy_copy: Path) -> None:
    store = scored(toy_copy)
    before = relative_files(toy_copy)
    events: list[Progress] = []
    again = hs.textspan(hs.open(toy_copy), CONCEPTS, texts_per_head=5, on_progress=events.append, save=True)
    assert (again.indices == read_spans(store).indices).all()
    label_heads(store, on_progress=events.append, save=True)
    concept_consistency(store, on_progress=events.append, save=True)
    assert [event.note.split(" ")[0] for event in events] == ["textspan/pool", "labels/pool", "ccs/pool"]
    assert relative_files(toy_copy) == before


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"texts_per_head": 6}, "texts per head 5, now 6"),
        ({"rank": 3}, "rank 80, now 3"),
        ({"layers": (2, 1, 0)}, "other layers"),
        ({"texts": hs.Pool("pool", CONCEPTS.texts[::-1], CONCEPTS.concepts)}, "other texts"),
        ({"texts": hs.Pool("pool", CONCEPTS.texts, CONCEPTS.texts)}, "other texts"),
    ],
)
def test_other_settings_under_the_same_name_are_refused_and_nothing_is_deleted(
    changed: dict[str, Any], why: str, toy_copy: Path
) -> None:
    store = scored(toy_copy)
    before = relative_files(toy_copy)
    settings = {"texts": CONCEPTS, "texts_per_head": 5, "run": "pool", **changed}
    with pytest.raises(
        StoreError,
        match=rf"copy\.zarr: textspan run 'pool' was made differently \({why}\); choose another --run, or give "
        r"--overwrite \(in Python overwrite=True\), which replaces textspan/pool; labels/pool, ccs/pool "
        r"would be kept, marked as of an older run$",
    ):
        hs.textspan(store, **settings, save=True)
    assert relative_files(toy_copy) == before
    events: list[Progress] = []
    hs.textspan(store, **settings, overwrite=True, on_progress=events.append, save=True)
    notes = [event.note for event in events]
    assert "kept labels/pool, ccs/pool, now marked as of an older textspan/pool" in notes
    after = relative_files(toy_copy)
    for name, data in before.items():
        if name.startswith(("labels/", "ccs/", "records/results/labels/", "records/results/ccs/")):
            assert after[name] == data
    assert read_labels(store).older == read_scores(store).older == "textspan/pool"
    assert "of an older textspan/pool" in repr(read_labels(store))


def test_a_run_over_other_images_needs_another_name(toy_run: ToyRun, toy_copy: Path, tmp_path: Path) -> None:
    others = []
    for name, shard in zip(("b", "c"), toy_run.shards[::2], strict=True):
        hs.precompute(out=tmp_path / f"{name}.zarr", **toy_run.settings(shards=[str(shard)], emit=("heads",)))
        others.append(hs.open(tmp_path / f"{name}.zarr"))
    store = scored(toy_copy)
    with pytest.raises(StoreError, match=rf"number of images {store.images}, now {store.images + others[0].images}"):
        hs.textspan(store, CONCEPTS, texts_per_head=5, also=others[:1], save=True)
    both = hs.textspan(store, CONCEPTS, texts_per_head=5, also=others, run="both")
    before = relative_files(toy_copy)
    # The order of the stores and their places do not matter.
    moved = hs.open(shutil.move(others[0].path, tmp_path / "moved.zarr"))
    again = hs.textspan(store, CONCEPTS, texts_per_head=5, also=[others[1], moved], run="both")
    assert (again.explained == both.explained).all()
    assert relative_files(toy_copy) == before


def test_a_run_of_an_earlier_version_is_compared_by_the_settings_that_it_records(toy_copy: Path) -> None:
    store = scored(toy_copy)
    group = zarr.open_group(toy_copy, mode="r+")["textspan/pool"]
    # Earlier versions recorded only the number of images.
    about = {name: value for name, value in group.attrs.items() if name != "moments_sha256"}
    group.attrs.clear()
    group.attrs.update(about)
    shutil.rmtree(toy_copy / "records" / "results")
    before = relative_files(toy_copy)
    hs.textspan(store, CONCEPTS, texts_per_head=5, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    after = relative_files(toy_copy)
    # The files of runs without a record are recorded now.
    recorded = {name for name in after if name.startswith("records/results/")}
    assert {name: data for name, data in after.items() if name not in recorded} == before
    with pytest.raises(StoreError, match="rank 80, now 3"):
        hs.textspan(store, CONCEPTS, texts_per_head=5, rank=3, save=True)


def test_a_run_that_records_the_earlier_name_of_the_convention_is_the_same_run(toy_copy: Path) -> None:
    store = scored(toy_copy)
    group = zarr.open_group(toy_copy, mode="r+")["textspan/pool"]
    group.attrs["convention"] = "even"
    shutil.rmtree(toy_copy / "records" / "results")
    hs.textspan(store, CONCEPTS, texts_per_head=5, save=True)
    assert group.attrs["convention"] == "even"
    with pytest.raises(StoreError, match=r"was made differently \(rank 80, now 3\)"):
        hs.textspan(store, CONCEPTS, texts_per_head=5, rank=3, save=True)


def test_a_damaged_run_that_is_made_again_identically_keeps_its_labels(toy_copy: Path) -> None:
    store = scored(toy_copy)
    before = relative_files(toy_copy)
    damaged = toy_copy / "textspan" / "pool" / "indices" / "zarr.json"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(
        StoreError, match=r"is damaged or missing, and its new content would differ; .*replaces textspan"
    ):
        hs.textspan(store, CONCEPTS, texts_per_head=5, rank=3, save=True)
    shutil.rmtree(toy_copy / "textspan" / "pool" / "explained")
    hs.textspan(store, CONCEPTS, texts_per_head=5, save=True)
    assert relative_files(toy_copy) == before
    shutil.rmtree(toy_copy / "textspan" / "pool")
    hs.textspan(store, CONCEPTS, texts_per_head=5, save=True)
    assert relative_files(toy_copy) == before


def test_only_the_first_analysis_over_a_pool_needs_the_model(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = hs.open(toy_copy)
    first = hs.textspan(store, TEXTS, texts_per_head=3, save=True)

    def refuse(*args: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("headspan.model.load.load_stored_model", refuse)
    # The first analysis left it loaded.
    hs.explore.forget_models()
    second = hs.textspan(store, TEXTS, texts_per_head=3, run="second")
    assert (second.indices == first.indices).all()
    # Some of the texts are found in the user's cache, as every text is cached by itself.
    hs.textspan(store, TEXTS[1:], texts_per_head=3, run="third")
    with pytest.raises(AssertionError, match="the model was loaded"):
        hs.textspan(store, [*TEXTS[1:], "new"], texts_per_head=3, run="fourth")


def test_weights_of_another_model_are_refused(toy_copy: Path) -> None:
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    metadata["attributes"]["headspan"]["pretrained"] = "random:1"
    (toy_copy / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(
        ModelError, match=r"random:1: the image tower is [0-9a-f]{12}, but .*copy\.zarr was made with [0-9a-f]"
    ):
        hs.textspan(hs.open(toy_copy), TEXTS, texts_per_head=3, save=True)


def test_a_missing_or_ambiguous_run_is_refused(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    with pytest.raises(StoreError, match=r"copy\.zarr: has no textspan run; run headspan textspan"):
        read_spans(store)
    for run in ("one", "two"):
        hs.textspan(store, TEXTS, texts_per_head=1, run=run, save=True)
    with pytest.raises(StoreError, match=r"copy\.zarr: has the textspan runs one, two; name one with --run"):
        read_spans(store)
    with pytest.raises(
        StoreError, match=r"holds no textspan run 'three' \(has one, two\); run headspan textspan --run three$"
    ):
        read_spans(store, "three")


def test_a_pool_that_changed_since_the_run_is_noticed(toy_copy: Path, tmp_path: Path) -> None:
    store, pool = hs.open(toy_copy), tmp_path / "mine.txt"
    pool.write_text("\n".join(TEXTS))
    hs.textspan(store, pool, texts_per_head=2, run="old")
    pool.write_text("\n".join(TEXTS[::-1]))
    hs.textspan(store, pool, texts_per_head=2, run="new")
    assert read_spans(store, "new").pool.texts == tuple(TEXTS[::-1])
    # The earlier pool of the same name is still there.
    assert read_spans(store, "old").pool.texts == tuple(TEXTS)


@pytest.mark.parametrize("name", ["my texts (v2).txt", "général.txt", "_mine.txt"])
def test_a_pool_may_have_any_file_name(name: str, toy_copy: Path, tmp_path: Path) -> None:
    pool = tmp_path / name
    pool.write_text("\n".join(TEXTS))
    spans = hs.textspan(hs.open(toy_copy), pool, texts_per_head=2, run="mine")
    assert read_spans(hs.open(toy_copy), "mine").pool.texts == spans.pool.texts == tuple(TEXTS)


def test_a_run_name_that_would_leave_the_store_is_refused(toy_copy: Path) -> None:
    for run in ("../out", "a/b", ".hidden", "two words"):
        with pytest.raises(SettingsError, match=r"run name .*: use letters, digits"):
            hs.textspan(hs.open(toy_copy), TEXTS, texts_per_head=2, run=run, save=True)


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [(3, "layer 3 is not stored; stored are 0-2"), (-1, "layer -1 does not exist; layers count from 0 to 2")],
)
def test_a_layer_that_is_not_stored_is_refused(layer: int, wanted: str, toy_copy: Path) -> None:
    with pytest.raises(SettingsError, match=wanted):
        hs.textspan(hs.open(toy_copy), TEXTS, texts_per_head=2, layers=(layer,), save=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"pool\.txt: contains no texts; write one per line"),
        (b" \n\t\n", r"pool\.txt: contains no texts"),
        (b"caf\xe9", r"pool\.txt: byte 3 is not UTF-8; save the file as UTF-8"),
        (
            b"a dog\tanimals\na cat\n",
            r"pool\.txt: text 2 \('a cat'\) is not text<TAB>concept, but other lines are",
        ),
        (b"a dog\tanimals\na cat\t\n", r"pool\.txt: text 2 .* is not text<TAB>concept"),
    ],
)
def test_a_pool_that_cannot_be_used_is_refused_with_its_line(content: bytes, text: str, tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_bytes(content)
    with pytest.raises(TextsError, match=text):
        hs.read_pool(pool)


def test_a_missing_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsError, match=r"nowhere\.txt: cannot be read \(No such file or directory\); give a file"):
        hs.read_pool(tmp_path / "nowhere.txt")
    with pytest.raises(TextsError, match=r"the list of texts is empty"):
        hs.read_pool([])


def test_every_head_of_a_large_model_gets_sixty_different_texts() -> None:
    generator = np.random.default_rng(64)
    images, head_dim, joint = 500, 64, 768
    texts = generator.standard_normal((3498, joint)).astype(np.float32)
    spreads = []
    for _ in range(64):
        coordinates = generator.standard_normal((images, head_dim)) * np.geomspace(1, 0.02, head_dim) + 0.3
        directions = generator.standard_normal((head_dim, joint))
        spreads.append(Spread(images, coordinates.sum(axis=0), coordinates.T @ coordinates, directions))
    # benchmarks/bench_textspan.py measures how long this takes.
    spans = span_heads(spreads, texts, 60, 80)
    assert all(len(set(span.indices.tolist())) == 60 for span in spans)


def test_contributions_of_failed_images_are_refused() -> None:
    contributions, texts = problem(5, 20, 6, 4, 9)
    contributions[3] = np.nan
    with pytest.raises(SettingsError, match="contain NaN or infinity; leave out images that failed"):
        textspan_dense(contributions, texts, 3, 80)


@pytest.mark.parametrize("rank", [80, 200])
def test_a_rank_above_the_true_one_chooses_the_same_texts_under_changes_of_one_ulp(rank: int) -> None:
    contributions, texts = problem(11, 300, 96, 24, 400)
    chosen = textspan_dense(contributions, texts, 24, rank).indices.tolist()
    assert chosen == textspan_dense(contributions, texts, 24, 24).indices.tolist()
    for seed in range(3):
        towards = np.where(np.random.default_rng(seed).random(contributions.shape) < 0.5, -np.inf, np.inf)
        moved = np.nextafter(contributions, towards.astype(np.float32))
        assert textspan_dense(moved, texts, 24, rank).indices.tolist() == chosen


def test_wrong_arguments_are_refused_before_texts_are_embedded(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.spans.over_store.embed_pool", lambda *_: pytest.fail("texts were embedded"))
    store = hs.open(toy_copy)
    for wrong in (
        {"rank": 0},
        {"texts_per_head": 0},
        {"draws": 1},
        {"seed": -1},
        {"run": "../x"},
        {"layers": [7]},
        {"layers": []},
    ):
        with pytest.raises(SettingsError):
            hs.textspan(store, TEXTS, **wrong, save=True)  # type: ignore[arg-type]


def test_a_run_whose_writing_was_interrupted_counts_as_missing(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    hs.textspan(store, TEXTS, texts_per_head=2, run="whole")
    hs.textspan(store, TEXTS, texts_per_head=2, run="half")
    # The settings are written last, and then the record of the files.
    (toy_copy / "records" / "results" / "textspan" / "half.json").unlink()
    group = zarr.open_group(toy_copy, mode="r+")["textspan/half"]
    group.attrs.clear()
    assert read_spans(store).run == "whole"
    with pytest.raises(StoreError, match="holds no textspan run 'half'"):
        read_spans(store, "half")
