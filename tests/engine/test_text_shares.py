"""Shares of a text's score against dense contributions in float64, and the percentile among a pool's texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError, StoreError
from headspan.store import magnitudes
from headspan.texts.vectors import forget_vectors, known_vectors
from tests import tolerances
from tests.conftest import ToyRun, relative_files
from tests.tolerances import relative_error

TEXTS = ["red", "a blue thing", "green", "two dogs", "night"]


def dense_shares(store: hs.Store, unit: np.ndarray) -> dict[str, np.ndarray]:
    """The shares and means of a unit vector's score, from dense contributions."""
    heads, unit = store.heads().astype(np.float64), unit.astype(np.float64)
    score = store.embedding.astype(np.float64) / store.norm[:, 2:].astype(np.float64) @ unit
    parts = np.concatenate([(heads @ unit).reshape(store.images, -1), store.mlps().astype(np.float64) @ unit], axis=1)
    covariance = ((parts - parts.mean(axis=0)) * (score - score.mean())[:, None]).mean(axis=0) / score.var()
    shape = heads.shape[1:3]
    count = shape[0] * shape[1]
    return {
        "share": (parts[:, :count].var(axis=0) / score.var()).reshape(shape),
        "mean": parts[:, :count].mean(axis=0).reshape(shape),
        "covariance_share": covariance[:count].reshape(shape),
        "term_covariance_share": covariance[count:],
    }


def test_shares_are_those_of_dense_contributions(toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several blocks of rows, the last one shorter.
    monkeypatch.setattr(magnitudes, "_BLOCK_ROWS", 16)
    (vector,) = hs.text_vectors(toy_store, ["a blue thing"])
    found = hs.explore.text_shares(toy_store, "a blue thing", covariance=True)
    for name, wanted in dense_shares(toy_store, vector).items():
        assert relative_error(getattr(found, name), wanted) < tolerances.FLOAT16_STORE, name
    assert found.covariance_share is not None
    assert found.term_covariance_share is not None
    total = found.covariance_share.sum() + found.term_covariance_share.sum()
    assert total == pytest.approx(1, abs=tolerances.FLOAT16_STORE)
    scores = toy_store.embedding @ vector / toy_store.norm[:, 2]
    assert found.score_mean == pytest.approx(scores.mean(), rel=1e-4)
    assert found.score_deviation == pytest.approx(scores.std(), rel=1e-4)


def test_shares_of_a_vector_do_not_depend_on_its_length(toy_store: hs.Store) -> None:
    vector = np.random.default_rng(2).standard_normal(toy_store.joint)
    one, other = (hs.explore.text_shares(toy_store, scale * vector) for scale in (1, 7))
    np.testing.assert_allclose(one.share, other.share, rtol=1e-12)
    assert one.text is None
    assert repr(one) == "TextShares(a vector: 9 heads of layers 0-2, 67 images)"


def test_random_directions_have_the_share_that_is_given_for_them(toy_store: hs.Store) -> None:
    heads = toy_store.heads()[:, 1].astype(np.float64)
    unit = toy_store.embedding / toy_store.norm[:, 2:]
    drawn = np.random.default_rng(0).standard_normal((20_000, toy_store.joint))
    of_heads = ((heads - heads.mean(axis=0)) @ drawn.T).var(axis=0).mean(axis=-1)
    of_scores = ((unit - unit.mean(axis=0)) @ drawn.T).var(axis=0).mean()
    found = hs.explore.text_shares(toy_store, drawn[0])
    assert relative_error(found.random[1], of_heads / of_scores) < 0.05


def test_the_percentile_is_the_texts_place_in_a_pool(toy_store: hs.Store) -> None:
    found = hs.explore.text_shares(toy_store, "a map", pool=TEXTS)
    vectors = hs.text_vectors(toy_store, TEXTS)
    others = np.stack([dense_shares(toy_store, vector)["share"] for vector in vectors])
    assert found.percentile is not None
    np.testing.assert_allclose(found.percentile, (others < found.share).mean(axis=0))
    assert found.pool_texts == 5


def test_without_a_pool_known_vectors_are_used_and_no_others(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    # The store holds no pool, and `general` is not cached.
    assert hs.explore.text_shares(store, "a map").percentile is None
    assert known_vectors(store, TEXTS) is None
    hs.textspan(store, TEXTS, texts_per_head=2, save=True, run="five", draws=0)
    forget_vectors()
    before = relative_files(toy_copy)
    found = hs.explore.text_shares(store, "a map")
    assert found.percentile is not None
    assert found.pool is not None
    assert found.pool.startswith("list-")
    assert relative_files(toy_copy) == before


def test_ranking_and_table_begin_with_the_largest_share(toy_store: hs.Store) -> None:
    found = hs.explore.text_shares(toy_store, "red")
    order = found.ranking()
    assert found.of(*order[0]) == found.share.max()
    frame = found.to_frame()
    assert list(zip(frame["layer"], frame["head"], strict=True)) == order
    assert frame["share"].is_monotonic_decreasing
    assert found.plot().get_title(loc="left") == "Share of the variance of the score of “red”"
    with pytest.raises(SettingsError, match="layer 9, head 0: not in this result"):
        found.of(9, 0)


def test_wrong_vectors_are_refused(toy_store: hs.Store) -> None:
    with pytest.raises(SettingsError, match=r"vectors of shape \(1, 5\)"):
        hs.explore.text_shares(toy_store, np.ones(5))
    for vector in (np.zeros(24), np.full(24, np.nan)):
        with pytest.raises(SettingsError, match="a vector of zeros, NaN or infinity has no direction"):
            hs.explore.text_shares(toy_store, vector)


def test_a_store_of_one_image_is_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    # The second shard has one image.
    hs.precompute(**toy_run.settings(shards=str(toy_run.shards[1]), out=tmp_path / "one.zarr"))
    store = hs.open(tmp_path / "one.zarr")
    with pytest.raises(StoreError, match="the score of this text does not vary over 1 image"):
        hs.explore.text_shares(store, "red")
    with pytest.raises(StoreError, match="1 image, but a variance needs at least 2"):
        hs.explore.head_pursuit(store, ["red"])


def test_shares_pursuit_and_spectra_of_some_images_are_those_of_their_contributions(toy_store: hs.Store) -> None:
    some = np.arange(3, 60, 4)
    unit = hs.text_vectors(toy_store, ["red", "night"]).astype(np.float64)
    heads = toy_store.heads()[some].astype(np.float64)
    score = toy_store.embedding[some] / toy_store.norm[some, 2:] @ unit[0]
    parts = heads @ unit[0]
    found = hs.explore.text_shares(toy_store, "red", images=some, covariance=True)
    assert found.images == len(some)
    assert relative_error(found.share, parts.var(axis=0) / score.var()) < tolerances.FLOAT16_STORE
    crossed = ((parts - parts.mean(axis=0)) * (score - score.mean())[:, None, None]).mean(axis=0) / score.var()
    assert relative_error(found.covariance_share, crossed) < tolerances.FLOAT16_STORE
    centred = heads - heads.mean(axis=0)
    variance = (centred**2).sum(axis=(0, 3))
    span = np.linalg.qr(unit.T)[0]
    pursued = hs.explore.head_pursuit(toy_store, ["red", "night"], 2, draws=0, images=some)
    assert relative_error(pursued.explained[..., 1], ((centred @ span) ** 2).sum(axis=(0, 3)) / variance) < 1e-3
    spectrum = hs.explore.spectra(toy_store, [(2, 1)], TEXTS, 2, images=some)
    along = ((centred[:, 2, 1] @ spectrum.directions[0].T) ** 2).sum(axis=0) / variance[2, 1]
    assert relative_error(spectrum.share[0], along) < tolerances.FLOAT16_STORE
    with pytest.raises(SettingsError, match="the list of images is empty"):
        hs.explore.text_shares(toy_store, "red", images=[])
    with pytest.raises(StoreError, match="1 image, but a variance needs at least 2"):
        hs.explore.head_pursuit(toy_store, ["red"], images=[4])
