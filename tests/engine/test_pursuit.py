"""Head pursuit against SOMP on dense contributions, in float64 and with scikit-learn, and its chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import orthogonal_mp

import headspan as hs
from headspan.errors import SettingsError, TextsError
from headspan.events import Progress
from headspan.explore.heads.pursuit import pursue, pursue_rotated
from headspan.spans.algorithm import Principal, Spread, principals
from headspan.spans.draws import random_rotation
from tests import tolerances
from tests.tolerances import relative_error

WORDS = ["red", "a blue thing", "green", "two dogs", "night", "a map", "old"]


def somp(outputs: np.ndarray, vectors: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Simultaneous orthogonal matching pursuit as it is defined: least squares of all images on the words chosen."""
    centred = outputs - outputs.mean(axis=0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    residual, chosen, shares = centred, [], []
    for _ in range(count):
        match = ((residual @ unit.T) ** 2).sum(axis=0)
        match[chosen] = -1
        chosen.append(int(match.argmax()))
        atoms = unit[chosen].T
        residual = centred - (atoms @ np.linalg.lstsq(atoms, centred.T, rcond=None)[0]).T
        shares.append(1 - float((residual**2).sum() / (centred**2).sum()))
    return chosen, shares


def principals_of(outputs: np.ndarray) -> list[Principal]:
    """The principal directions of plain contributions, all of them."""
    spread = Spread(len(outputs), outputs.sum(axis=0), outputs.T @ outputs, np.eye(outputs.shape[1]))
    return principals([spread], outputs.shape[1])


@pytest.mark.parametrize(("images", "rank", "joint", "words"), [(257, 6, 13, 5), (40, 13, 13, 30), (3, 2, 11, 3)])
def test_words_and_shares_are_those_of_somp_on_dense_contributions(
    images: int, rank: int, joint: int, words: int
) -> None:
    random = np.random.default_rng(images)
    outputs = random.standard_normal((images, rank)) @ random.standard_normal((rank, joint)) + random.standard_normal(
        joint
    )
    vectors = random.standard_normal((words, joint))
    count = min(words, 4, rank)
    wanted, shares = somp(outputs, vectors, count)
    chosen, explained = pursue(principals_of(outputs), vectors, count)
    assert chosen[0].tolist() == wanted
    assert relative_error(explained[0], shares) < tolerances.FLOAT64


def test_with_one_direction_it_is_scikit_learns_orthogonal_matching_pursuit() -> None:
    # The contributions of a head of rank one are multiples of one target.
    random = np.random.default_rng(4)
    target, vectors = random.standard_normal(17), random.standard_normal((9, 17))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    outputs = random.standard_normal((31, 1)) * target
    chosen, explained = pursue(principals_of(outputs), vectors, 4)
    for count in (1, 2, 3, 4):
        coefficients = orthogonal_mp(unit.T, target, n_nonzero_coefs=count)
        assert sorted(chosen[0, :count].tolist()) == np.flatnonzero(coefficients).tolist()
        left = target - unit.T @ coefficients
        assert explained[0, count - 1] == pytest.approx(1 - left @ left / (target @ target), rel=tolerances.FLOAT64)


def test_the_pursuit_of_a_store_is_that_of_its_dense_contributions(toy_store: hs.Store) -> None:
    found = hs.explore.head_pursuit(toy_store, WORDS, 3, draws=0)
    vectors = hs.text_vectors(toy_store, WORDS).astype(np.float64)
    # The moments were summed before the head outputs were rounded to float16.
    for layer, head in found.heads():
        wanted, shares = somp(toy_store.head(layer, head).astype(np.float64), vectors, 3)
        assert found.texts(layer, head) == [WORDS[index] for index in wanted]
        got = [found.explained_by(layer, head, count) for count in (1, 2, 3)]
        assert relative_error(got, shares) < tolerances.FLOAT16_STORE


def test_the_best_share_is_that_of_as_many_singular_directions(toy_store: hs.Store) -> None:
    found = hs.explore.head_pursuit(toy_store, WORDS, 4, draws=0)
    dense = toy_store.head(2, 1).astype(np.float64)
    squares = np.linalg.svd(dense - dense.mean(axis=0), compute_uv=False) ** 2
    assert relative_error(found.best[2, 1], np.cumsum(squares)[:4] / squares.sum()) < tolerances.FLOAT16_STORE
    assert (found.best >= found.explained - 1e-9).all()


def test_chance_is_the_pursuit_of_rotated_vectors() -> None:
    # With as many vectors as dimensions, the rotation of their span is that of the whole space.
    random = np.random.default_rng(9)
    outputs, vectors = random.standard_normal((50, 7)) * np.arange(1, 8), random.standard_normal((7, 7))
    heads = principals_of(outputs)
    drawn = pursue_rotated(heads, vectors, 3, 5, seed=11)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    basis = np.linalg.qr(unit.T)[0]
    for draw in range(5):
        rotated = unit @ basis @ random_rotation(7, np.random.default_rng([11, draw])).T
        # The rotation keeps the angles among the words.
        assert relative_error(rotated @ rotated.T, unit @ unit.T) < tolerances.FLOAT64
        assert relative_error(drawn[draw, 0], somp(outputs, rotated, 3)[1]) < tolerances.FLOAT32_SUM


def test_rotated_words_explain_their_share_of_the_dimensions_on_average() -> None:
    # One random direction of d explains 1/d of any covariance on average, so one word does.
    random = np.random.default_rng(1)
    outputs = random.standard_normal((200, 12)) * np.geomspace(1, 20, 12)
    drawn = pursue_rotated(principals_of(outputs), random.standard_normal((1, 12)), 1, 2000, seed=3)
    assert drawn.mean() == pytest.approx(1 / 12, abs=4 * drawn.std() / 2000**0.5)


def test_a_head_made_of_the_words_is_explained_and_ranked_above_chance() -> None:
    random = np.random.default_rng(2)
    vectors = random.standard_normal((4, 60))
    of_words = random.standard_normal((300, 4)) @ vectors
    other = random.standard_normal((300, 60))
    heads = [*principals_of(other), *principals_of(of_words)]
    _, explained = pursue(heads, vectors, 4)
    drawn = pursue_rotated(heads, vectors, 4, 20, seed=0)
    assert explained[1, -1] == pytest.approx(1, abs=1e-9)
    assert explained[0, -1] < 0.2
    assert (drawn[:, 1, -1] < 0.5).all()


def test_chance_and_ranking_of_a_store(toy_store: hs.Store) -> None:
    found = hs.explore.head_pursuit(toy_store, WORDS, 2, draws=20)
    order = found.ranking()
    shares = [found.explained_by(*head) for head in order]
    assert shares == sorted(shares, reverse=True)
    assert found.ranking(1)[0] == max(found.heads(), key=lambda head: found.explained_by(*head, 1))
    chance = found.chance(*order[0])
    assert found.null is not None
    drawn = found.null[:, order[0][0], order[0][1], -1]
    assert chance.excess == pytest.approx(shares[0] - drawn.mean())
    assert chance.p == (1 + (drawn >= shares[0] - 1e-6).sum()) / 21
    assert found.excess()[order[0]] == pytest.approx(chance.excess)
    assert found.above_chance().heads == 9
    frame = found.to_frame()
    assert list(zip(frame["layer"], frame["head"], strict=True)) == order
    assert frame["word_1"][0] == found.texts(*order[0])[0]
    assert repr(found) == "HeadPursuit(9 heads of layers 0-2 by 2 of 7 words, over 67 images)"
    assert found.plot().get_title(loc="left")


def test_other_texts_are_drawn_from_a_pool_and_pursued(toy_store: hs.Store) -> None:
    pool = [*WORDS, "snow", "a church", "many cars"]
    found = hs.explore.head_pursuit(toy_store, ["red", "green", "old"], 2, against=pool, draws=20, seed=4)
    vectors = hs.text_vectors(toy_store, pool).astype(np.float64)
    assert found.others is not None
    for draw in (0, 19):
        places = np.random.default_rng([4, draw, 2]).choice(len(pool), 3, replace=False)
        wanted = somp(toy_store.head(1, 2).astype(np.float64), vectors[places], 2)[1]
        assert relative_error(found.others[draw, 1, 2], wanted) < tolerances.FLOAT16_STORE
    beside = found.beside_others(1, 2)
    reached = int((found.others[:, 1, 2, -1] >= found.explained_by(1, 2) - 1e-6).sum())
    assert beside.p == (1 + reached) / 21
    assert found.to_frame()["others_p"][found.ranking().index((1, 2))] == beside.p
    with pytest.raises(SettingsError, match=r"7 texts are drawn from the pool .*, but it has 2; give a larger pool"):
        hs.explore.head_pursuit(toy_store, WORDS, 2, against=["a", "b"])
    with pytest.raises(SettingsError, match="no lists, since draws is 0; ask for draws"):
        hs.explore.head_pursuit(toy_store, WORDS, 2, against=pool, draws=0)
    with pytest.raises(SettingsError, match="has no other texts beside the list"):
        hs.explore.head_pursuit(toy_store, WORDS, 2, draws=0).beside_others(0, 0)


def test_wrong_words_and_counts_are_refused_and_few_words_are_said(toy_store: hs.Store) -> None:
    with pytest.raises(TextsError, match="the list of texts is empty"):
        hs.explore.head_pursuit(toy_store, [])
    with pytest.raises(SettingsError, match="0 words per head; ask for at least 1"):
        hs.explore.head_pursuit(toy_store, WORDS, 0)
    with pytest.raises(SettingsError, match="ask for at least 20"):
        hs.explore.head_pursuit(toy_store, WORDS, draws=3)
    said: list[Progress] = []
    found = hs.explore.head_pursuit(toy_store, ["red", "blue", "red"], 5, said.append, draws=0)
    assert found.words == ("red", "blue")
    assert found.explained.shape[-1] == 2
    assert "the list has 2 words, fewer than 5: each head gets at most 2" in [event.note for event in said]
    with pytest.raises(SettingsError, match="layer 7, head 0: not in this result"):
        found.texts(7, 0)
    with pytest.raises(SettingsError, match="has no draws of chance"):
        found.chance(0, 0)
