"""Spectra of a store's heads against explicit products of weights, dense contributions, and plain pursuit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

import headspan as hs
from headspan.errors import ModelError, SettingsError
from headspan.explore.heads.coherent_pursuit import _lawson_hanson, coherent_pursuit
from headspan.model.kept import forget_kept_models
from headspan.model.load import LoadedModel, load_model
from headspan.texts.pool import Pool
from tests import tolerances
from tests.conftest import ToyRun, relative_files
from tests.tolerances import relative_error

TEXTS = (
    *("red", "a blue thing", "green", "two dogs", "night", "a map", "old"),
    *("snow", "a church", "many cars", "soft", "text", "a face", "sea"),
)
CONCEPTS = {text: "colour" if text in ("red", "a blue thing", "green") else "other" for text in TEXTS}
POOL = Pool("words", TEXTS, tuple(CONCEPTS.values()))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plain_pursuit(direction: np.ndarray, texts: np.ndarray, count: int, coherence: float) -> tuple[list[int], float]:
    """Coherent non-negative pursuit of one direction, step by step, with SciPy's least squares."""
    chosen: list[int] = []
    weights = np.zeros(0)
    for _ in range(count):
        residual = direction - weights @ texts[chosen] if chosen else direction
        scores = texts @ residual
        allowed = scores > 1e-9
        allowed[chosen] = False
        if chosen:
            scores = scores + coherence * (texts @ texts[chosen].T).mean(axis=1)
        if not allowed.any():
            break
        chosen.append(int(np.where(allowed, scores, -np.inf).argmax()))
        weights = nnls(texts[chosen].T, direction)[0]
    total = weights @ texts[chosen]
    return chosen, float(total @ direction / np.linalg.norm(total)) if weights.any() else 0.0


@pytest.mark.parametrize(("pool", "joint", "count"), [(30, 7, 5), (3, 11, 3), (257, 24, 6), (5, 5, 5)])
@pytest.mark.parametrize("coherence", [0.0, 0.3, 1.5])
def test_descriptions_are_those_of_plain_pursuit(
    pool: int, joint: int, count: int, coherence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(pool)
    # Texts that crowd around a few centres, so that weights of earlier texts often reach zero.
    centres = random.standard_normal((3, joint))
    texts = unit(centres[random.integers(0, 3, pool)] + random.standard_normal((pool, joint)))
    directions = unit(random.standard_normal((19, joint)))
    found = coherent_pursuit(directions, texts, count, coherence)
    for number, direction in enumerate(directions):
        wanted, fidelity = plain_pursuit(direction, texts, count, coherence)
        assert [index for index in found.chosen[number].tolist() if index >= 0] == wanted
        assert found.fidelity[number] == pytest.approx(fidelity, abs=1e-9)
    assert (found.weights >= 0).all()
    # Batches, and pools whose cosines are not all kept.
    monkeypatch.setattr("headspan.explore.heads.coherent_pursuit._BATCH_NUMBERS", 1)
    monkeypatch.setattr("headspan.explore.heads.coherent_pursuit._MOST_PAIRS", 2)
    again = coherent_pursuit(directions, texts, count, coherence)
    assert (again.chosen == found.chosen).all()
    np.testing.assert_allclose(again.fidelity, found.fidelity, rtol=1e-9)


def test_without_coherence_and_negative_weights_it_is_scikit_learns_matching_pursuit() -> None:
    # Orthogonal texts: weights are the matches, so those of positive matches are positive.
    random = np.random.default_rng(3)
    texts = np.linalg.qr(random.standard_normal((12, 12)))[0]
    direction = unit(np.abs(random.standard_normal(12)) @ texts)
    found = coherent_pursuit(direction[None], texts, 4, 0.0)
    wanted = orthogonal_mp(texts.T, direction, n_nonzero_coefs=4)
    assert sorted(found.chosen[0].tolist()) == np.flatnonzero(wanted).tolist()
    assert relative_error(found.weights[0], wanted[found.chosen[0]]) < tolerances.FLOAT64


def test_a_direction_that_no_text_matches_has_no_texts() -> None:
    found = coherent_pursuit(np.array([[-1.0, 0], [0.6, 0.8]]), np.eye(2), 2, 0.3)
    assert found.chosen.tolist() == [[-1, -1], [1, 0]]
    assert found.fidelity.tolist() == pytest.approx([0, 1])


@pytest.fixture(scope="module")
def found(toy_store: hs.Store) -> hs.explore.HeadSpectra:
    """The spectra of all heads, by three texts each."""
    return hs.explore.spectra(toy_store, pool=POOL, count=3)


def test_directions_are_singular_vectors_of_the_explicit_product(
    found: hs.explore.HeadSpectra, toy_model: LoadedModel
) -> None:
    visual = toy_model.clip.visual
    for place, (layer, head) in enumerate(found.heads):
        block = visual.transformer.resblocks[layer]
        of_head = slice(head * 16, (head + 1) * 16)
        value = block.attn.in_proj_weight.double().numpy()[96:][of_head]
        product = (
            np.diag(block.ln_1.weight.double().numpy())
            @ value.T
            @ block.attn.out_proj.weight.double().numpy().T[of_head]
            @ np.diag(visual.ln_post.weight.double().numpy())
            @ visual.proj.double().numpy()
        )
        _, values, directions = np.linalg.svd(product)
        assert relative_error(found.singular_values[place], values[:16]) < tolerances.FLOAT32_SUM
        # Up to the sign, and for directions whose singular values are apart.
        cosines = np.abs((found.directions[place] * directions[:16]).sum(axis=1))
        assert cosines[:4].min() > 1 - 1e-4


def test_shares_are_those_of_dense_contributions(found: hs.explore.HeadSpectra, toy_store: hs.Store) -> None:
    for place, head in enumerate(found.heads):
        dense = toy_store.head(*head).astype(np.float64)
        centred = dense - dense.mean(axis=0)
        wanted = ((centred @ found.directions[place].T) ** 2).sum(axis=0) / (centred**2).sum()
        assert relative_error(found.share[place], wanted) < tolerances.FLOAT16_STORE
        assert found.covered[place] == pytest.approx(wanted.sum(), rel=tolerances.FLOAT16_STORE)
        # The rest are the parts of the biases and of the mean, outside of what the head's own weights span.
        own = toy_store.head_directions(*head)[:16].astype(np.float64)
        basis = np.linalg.qr(own.T)[0]
        assert relative_error(wanted.sum(), ((centred @ basis) ** 2).sum() / (centred**2).sum()) < 1e-5


def test_texts_are_those_of_plain_pursuit_without_the_gap(found: hs.explore.HeadSpectra, toy_store: hs.Store) -> None:
    vectors = hs.text_vectors(toy_store, POOL).astype(np.float64)
    images = toy_store.embedding.astype(np.float64) / toy_store.norm[:, 2:]
    gap = unit(images.mean(axis=0) - vectors.mean(axis=0))
    texts = vectors - vectors.mean(axis=0)
    texts = unit(texts - np.outer(texts @ gap, gap))
    for place, head in enumerate(found.heads):
        for direction, vector in enumerate(found.directions[place].astype(np.float64)):
            freed = unit(vector - (vector @ gap) * gap)
            sides = [plain_pursuit(sign * freed, texts, 3, 0.3) for sign in (1, -1)]
            assert sides[0][1] >= sides[1][1] - 1e-6
            for against, (chosen, fidelity) in enumerate(sides):
                assert found.texts(*head, direction, against=bool(against)) == [TEXTS[index] for index in chosen]
                assert found.fidelity[place, direction, against] == pytest.approx(fidelity, abs=1e-5)
    assert 0 < found.random.min() < np.median(found.random) < found.random.max() < 1


def test_a_concepts_share_is_what_its_texts_carry(found: hs.explore.HeadSpectra) -> None:
    shares = found.concept_shares("colour")
    for place, head in enumerate(found.heads):
        wanted = 0.0
        for direction in range(16):
            parts = [0.0, 0.0]
            for side in (0, 1):
                weights = found.weights[place, direction, side]
                texts = found.texts(*head, direction, against=bool(side))
                of_colour = sum(w for w, text in zip(weights, texts, strict=False) if CONCEPTS[text] == "colour")
                parts[side] = of_colour / weights.sum() if weights.sum() else 0.0
            fidelity = found.fidelity[place, direction]
            wanted += found.share[place, direction] * (parts @ fidelity) / fidelity.sum() if fidelity.sum() else 0.0
        assert shares[place] == pytest.approx(wanted, rel=1e-9)
    total = shares + found.concept_shares("other")
    described = (found.share * (found.fidelity.sum(axis=-1) > 0)).sum(axis=1)
    np.testing.assert_allclose(total, described)
    with pytest.raises(SettingsError, match="concept 'shape' is not in the pool words; it has colour, other"):
        found.concept_shares("shape")


def test_some_heads_alone_have_the_same_spectrum(found: hs.explore.HeadSpectra, toy_store: hs.Store) -> None:
    some = hs.explore.spectra(toy_store, [(2, 0), (0, 1)], POOL, 3)
    assert some.heads == ((2, 0), (0, 1))
    for head in some.heads:
        here, there = some.heads.index(head), found.heads.index(head)
        np.testing.assert_array_equal(some.indices[here], found.indices[there])
        np.testing.assert_array_equal(some.share[here], found.share[there])


def test_the_result_is_a_table_and_a_plot(found: hs.explore.HeadSpectra, tmp_path: Path) -> None:
    frame = found.to_frame()
    assert len(frame) == 9 * 16
    row = frame[(frame["layer"] == 1) & (frame["head"] == 2)].iloc[3]
    place = found.heads.index((1, 2))
    assert row["variance_share"] == found.share[place, 3]
    assert row["texts"] == "; ".join(found.texts(1, 2, 3))
    assert frame.groupby(["layer", "head"])["squared_share"].sum().tolist() == pytest.approx([1] * 9)
    assert repr(found) == "HeadSpectra(16 directions of each of 9 heads, described by 3 of 14 texts, over 67 images)"
    found.to_parquet(tmp_path / "spectra.parquet")
    ax = found.plot(1, 2)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(found.share[place].tolist())
    assert ax.lines[0].get_ydata().tolist() == pytest.approx(row_squares(found, place))  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match=r"layer 4, head 0: not in this result; it has L0.H0, L0.H1, .*, …"):
        found.texts(4, 0, 0)
    with pytest.raises(SettingsError, match="direction 16: not in this result; it has 0 to 15"):
        found.texts(1, 2, 16)


def row_squares(found: hs.explore.HeadSpectra, place: int) -> list[float]:
    squares: np.ndarray = found.singular_values[place] ** 2
    return (squares / squares.sum()).tolist()


def test_wrong_arguments_are_refused(toy_store: hs.Store) -> None:
    with pytest.raises(SettingsError, match="layer 8 is not stored; stored are 0-2"):
        hs.explore.spectra(toy_store, [(8, 0)], POOL)
    with pytest.raises(SettingsError, match="the list of heads is empty"):
        hs.explore.spectra(toy_store, [], POOL)
    with pytest.raises(SettingsError, match="0 texts per direction; ask for at least 1"):
        hs.explore.spectra(toy_store, None, POOL, 0)
    with pytest.raises(SettingsError, match=r"coherence -1\.0 is out of range"):
        hs.explore.spectra(toy_store, None, POOL, 1, -1.0)
    with pytest.raises(SettingsError, match=r"the pool list-\w+ has 2 texts, but 5 per direction are asked for"):
        hs.explore.spectra(toy_store, None, ["red", "blue"])
    with pytest.raises(SettingsError, match="has 1 text, but directions are described by how texts differ"):
        hs.explore.spectra(toy_store, None, ["red"], 1)


def test_a_store_of_one_image_has_directions_but_no_shares(toy_run: ToyRun, tmp_path: Path) -> None:
    hs.precompute(**toy_run.settings(shards=str(toy_run.shards[1]), out=tmp_path / "one.zarr"))
    found = hs.explore.spectra(hs.open(tmp_path / "one.zarr"), [(1, 1)], POOL, 2)
    assert np.isnan(found.share).all()
    assert (found.fidelity[..., 0] > 0).all()
    assert found.plot(1, 1) is not None


@pytest.fixture
def _loaded_anew() -> Iterator[None]:
    """No model of another test is kept."""
    forget_kept_models()
    yield
    forget_kept_models()


@pytest.mark.usefixtures("_loaded_anew")
def test_weights_that_have_moved_are_named_and_the_store_stays_as_it_was(toy_run: ToyRun, tmp_path: Path) -> None:
    weights = shutil.copy(toy_run.weights, tmp_path / "first.safetensors")
    store = tmp_path / "moved.zarr"
    hs.precompute(out=store, **toy_run.settings(pretrained=str(weights), shards=str(toy_run.shards[0])))
    before = relative_files(store)
    moved = shutil.move(weights, tmp_path / "second.safetensors")
    with pytest.raises(ModelError, match="--weights"):
        hs.explore.spectra(hs.open(store), pool=POOL, count=2)
    found = hs.explore.spectra(hs.open(store), pool=POOL, count=2, weights=moved)
    assert len(found.heads) == 9
    assert relative_files(store) == before


@pytest.mark.usefixtures("_loaded_anew")
def test_other_weights_than_the_stores_are_refused(toy_store: hs.Store, toy_run: ToyRun, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    hs.text_vectors(toy_store, POOL)
    other = load_model(str(toy_run.config), "random:5").clip
    path = tmp_path / "other.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in other.state_dict().items()}, path)
    with pytest.raises(ModelError, match=r"the image tower is .*, but .* was made with"):
        hs.explore.spectra(toy_store, pool=POOL, count=2, weights=path)


def test_non_negative_weights_of_nearly_equal_texts_are_found_although_sums_are_rounded() -> None:
    # Texts 0 and 3, and 1 and 2, are nearly equal. A round of this problem used to repeat for ever, since rounding left
    # the text that reaches zero just above it.
    cosines = {
        (0, 1): 0.46439605988974336, (0, 2): 0.46293935997450275, (0, 3): 0.9999408197523137,
        (0, 4): 0.15758471517298603, (1, 2): 0.9997829339237118, (1, 3): 0.45871834735879613,
        (1, 4): 0.1400440570439562, (2, 3): 0.457251094339847, (2, 4): 0.13381163304529184, (3, 4): 0.15440218647409135,
    }  # fmt: skip
    gram = np.diag([1.0000000000000004, 0.9999999999999994, 0.9999999999999999, 1.0000000000000002, 0.9999999999999998])
    for (one, other), cosine in cosines.items():
        gram[one, other] = gram[other, one] = cosine
    match = [0.1760159453159781, 0.1468529133568207, 0.14695996435035336, 0.175641104107335, 0.16625293882162484]
    found = _lawson_hanson(gram, np.array(match))
    upper = np.linalg.cholesky(gram).T
    wanted, _ = nnls(upper, np.linalg.solve(upper.T, match))
    np.testing.assert_allclose(found, wanted, atol=1e-10)
