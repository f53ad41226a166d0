"""What chance explains: rotated and isotropic pools, counts of heads above chance, and stability under resampling.

Closed forms are compared with simulation, fast paths with `textspan_dense` and with explicit resampling of images.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError, StoreError
from headspan.events import NOTE, Progress
from headspan.spans.algorithm import Principal, Spread, principals, span_principals, textspan_dense
from headspan.spans.description import head_principals
from headspan.spans.draws import isotropic_shares, random_rotation, rotated_spans
from headspan.spans.greedy import greedy
from headspan.spans.nulls import chance_of, heads_above, range_of
from headspan.spans.saved import read_spans
from headspan.spans.stability import kept_share, sampled_heads
from tests import tolerances
from tests.conftest import ToyRun, relative_files
from tests.engine.test_textspan import TEXTS, problem
from tests.tolerances import relative_error

# Products with the pool are float32 in the draws: a share, a ratio of sums of squares, keeps seven digits at best.
SHARE = 1e-5


def head(contributions: np.ndarray, rank: int = 80) -> Principal:
    """A head's principal directions, from dense contributions."""
    exact = contributions.astype(np.float64)
    spread = Spread(len(exact), exact.sum(axis=0), exact.T @ exact, np.eye(exact.shape[1]))
    return principals([spread], rank)[0]


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same directions with length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pool_of(seed: int, texts: int, joint: int, crowded: float = 1.0) -> np.ndarray:
    """Unit vectors around a mean direction, as text vectors are."""
    generator = np.random.default_rng(seed)
    return unit(generator.standard_normal((texts, joint)) + crowded * generator.standard_normal(joint))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    joint=st.integers(1, 9),
    pool=st.integers(1, 30),
    ranks=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    rank=st.integers(1, 12),
    count=st.integers(1, 12),
)
def test_many_problems_together_give_the_texts_of_each_alone(
    seed: int, joint: int, pool: int, ranks: list[int], rank: int, count: int
) -> None:
    heads = [
        head(problem(seed + place, 20, joint, min(true, joint), pool)[0], rank) for place, true in enumerate(ranks)
    ]
    texts = problem(seed, 20, joint, 1, pool)[1].astype(np.float64)
    most = max(1, max(each.rank for each in heads))
    padded, covariances = np.zeros((len(heads), pool, most)), np.zeros((len(heads), most, most))
    for place, each in enumerate(heads):
        padded[place, :, : each.rank] = texts @ each.basis
        covariances[place, : each.rank, : each.rank] = each.covariance
    chosen, explained = greedy(padded, covariances, count)
    for place, (each, span) in enumerate(zip(heads, span_principals(heads, texts, count), strict=True)):
        assert chosen[place].tolist() == span.indices.tolist()
        np.testing.assert_allclose(explained[place], span.explained * each.variance, rtol=1e-9, atol=1e-12)


def test_a_draw_equals_textspan_on_an_explicitly_rotated_pool() -> None:
    # The texts of the second pool differ by a thousandth of their length, as those of an untrained model do.
    for crowded in (1.0, 1000.0):
        pool = pool_of(7, 51, 13, crowded)
        heads = [problem(seed, 40, 13, rank, 1)[0] for seed, rank in ((1, 9), (2, 5), (3, 12))]
        found = rotated_spans([head(each) for each in heads], pool, 11, 3, 257)
        assert found.explained.shape == (3, 3, 11)
        for draw in range(3):
            rotation = random_rotation(13, np.random.default_rng([257, draw]))
            for place, contributions in enumerate(heads):
                # A head along `b` sees the rotated basis `Q b` in the pool as it sees `b` in the pool times `Q`.
                dense = textspan_dense(contributions, pool @ rotation, 11)
                np.testing.assert_allclose(found.explained[draw, place], dense.explained, rtol=0, atol=SHARE * crowded)
                # In float32, texts of nearly equal score may change places in the last rounds.
                assert crowded > 1 or found.chosen[draw, place, :5].tolist() == dense.indices[:5].tolist()


def test_rotations_are_orthogonal_and_uniform() -> None:
    traces = []
    for seed in range(2000):
        rotation = random_rotation(5, np.random.default_rng(seed))
        traces.append(np.trace(rotation))
        if seed < 3:
            assert relative_error(rotation @ rotation.T, np.eye(5)) < tolerances.FLOAT64
    # The trace of a uniform orthogonal matrix has mean 0 and variance 1; a plain QR decomposition's has neither.
    assert abs(np.mean(traces)) < 4 / np.sqrt(2000)
    assert abs(np.var(traces) - 1) < 0.15


def test_one_rotated_text_explains_the_closed_form_of_a_random_direction() -> None:
    contributions, _ = problem(5, 200, 9, 6, 1)
    own = head(contributions)
    shares = rotated_spans([own], pool_of(1, 1, 9), 1, 1500, 3).explained[:, 0, 0]
    # u'Σu for u uniform on the sphere of r dimensions: mean tr Σ / r; second moment (tr² Σ + 2 tr Σ²) / r(r + 2).
    rank = own.rank
    assert rank == 6
    variance = (1 + 2 / own.effective_rank) / (rank * (rank + 2)) - 1 / rank**2
    assert abs(shares.mean() - 1 / rank) < 4 * np.sqrt(variance / 1500)
    assert abs(shares.var() / variance - 1) < 0.2


def test_every_text_of_an_isotropic_pool_explains_one_direction_of_an_isotropic_head() -> None:
    # Images at ± each axis: the covariance is a multiple of the identity.
    contributions = np.concatenate([np.eye(7), -np.eye(7)])
    own = head(contributions)
    assert own.effective_rank == pytest.approx(7)
    np.testing.assert_allclose(isotropic_shares([own], 30, 7, 9, 0)[0], np.minimum(np.arange(1, 10) / 7, 1), atol=1e-9)


def test_the_ceiling_is_what_random_unit_vectors_explain_in_heads_of_any_rank() -> None:
    heads = [problem(seed, 60, 12, rank, 1)[0] for seed, rank in ((1, 8), (2, 3))]
    found = np.mean([isotropic_shares([head(each) for each in heads], 40, 12, 5, seed) for seed in range(15)], axis=0)
    generator = np.random.default_rng(9)
    drawn = np.array(
        [
            [textspan_dense(each, unit(generator.standard_normal((40, 12))), 5).explained for each in heads]
            for _ in range(60)
        ]
    )
    error = drawn.std(axis=0) * np.sqrt(2 / 60)
    assert (np.abs(found - drawn.mean(axis=0)) < 4 * error + 1e-9).all()
    # The head with three directions is explained completely by three texts.
    assert found[1, 2] == pytest.approx(1)


def test_draws_depend_on_the_seed_alone() -> None:
    heads = [head(problem(seed, 30, 8, 5, 1)[0]) for seed in range(3)]
    pool = pool_of(2, 17, 8)
    first = rotated_spans(heads, pool, 4, 6, 1).explained
    assert (rotated_spans(heads, pool, 4, 6, 1).explained == first).all()
    # More draws begin with the same ones, and no two draws are the same.
    assert (rotated_spans(heads, pool, 4, 9, 1).explained[:6] == first).all()
    assert len(np.unique(first[:, 0, 0])) == 6
    assert not (rotated_spans(heads, pool, 4, 6, 2).explained == first).any()


def test_a_heads_share_is_ranked_among_the_draws() -> None:
    draws = np.array([[0.1, 0.2], [0.1, 0.3], [0.1, 0.4], [0.1, 0.5]])
    chance = chance_of(np.array([0.2, 0.4]), draws, np.array([0.3, 0.6], np.float32))
    assert (chance.texts, chance.rank, chance.draws, chance.p) == (2, 2, 4, 3 / 5)
    assert (chance.mean, chance.low, chance.high) == (pytest.approx(0.35), 0.2, 0.5)
    assert chance.excess == pytest.approx(0.05)
    assert chance.ceiling == pytest.approx(0.6)
    # All directions explained by every pool is no finding.
    assert chance_of(np.ones(1), np.ones((9, 1)) - 1e-8, np.ones(1, np.float32)).p == 1


def test_the_range_of_39_draws_is_from_the_lowest_to_the_highest() -> None:
    assert range_of(np.arange(39.0)) == (0, 38)
    assert range_of(np.arange(399.0)) == pytest.approx((9, 389))


def above_by_hand(own: np.ndarray, drawn: np.ndarray, level: float) -> int:
    """Heads whose share fewer than the level's part of the draws reach, counted one by one."""
    return sum(
        1 + sum(float(other) >= float(share) for other in others) <= level * (1 + len(others)) + 1e-9
        for share, others in zip(own, drawn.T, strict=True)
    )


@pytest.mark.parametrize("copies", [1, 20])
def test_the_count_of_heads_above_chance_is_calibrated_even_if_heads_are_copies(copies: int) -> None:
    generator = np.random.default_rng(copies)
    small, within = 0, 0
    for _ in range(200):
        # The run is exchangeable with the draws: a pool without meaning. Copies of a head are above together.
        shares = np.repeat(generator.random((41, 20 // copies)), copies, axis=1)
        found = heads_above(shares[0], shares[1:], 5, 0.05)
        assert found.above == above_by_hand(shares[0], shares[1:], 0.05)
        assert found.heads == 20
        # By symmetry, 2 of 40 draws are above the others in every head.
        assert found.expected == pytest.approx(20 * 2 / 40)
        small += found.p <= 0.05
        within += found.low <= found.above <= found.high
    # 5 % of 200 are 10, with a standard deviation of 3.1.
    assert small <= 23
    assert within >= 175


@pytest.mark.parametrize("draws", [20, 39, 40, 59])
def test_draws_are_counted_by_no_stricter_rule_than_the_run(draws: int) -> None:
    generator = np.random.default_rng(draws)
    small = 0
    for _ in range(200):
        # The run is exchangeable with the draws, and its heads are independent.
        shares = generator.random((1 + draws, 30))
        found = heads_above(shares[0], shares[1:], 5, 0.05)
        assert found.above == above_by_hand(shares[0], shares[1:], 0.05)
        assert found.expected >= 30 * np.floor(0.05 * (1 + draws)) / (1 + draws)
        small += found.p <= 0.05
    # 5 % of 200 are 10, with a standard deviation of 3.1.
    assert small <= 23


def test_heads_that_share_a_pool_are_counted_against_a_pool_without_meaning() -> None:
    # Twelve heads that see the same three directions, and a pool with a strong mean, are above chance together.
    generator = np.random.default_rng(4)
    contributions = generator.standard_normal((80, 3)) @ generator.standard_normal((3, 10))
    heads = [head(contributions + 0.05 * generator.standard_normal((80, 10))) for _ in range(12)]
    pool = pool_of(3, 25, 10)
    shares = rotated_spans(heads, pool, 2, 240, 0).explained[..., 1]
    counts = np.array([above_by_hand(shares[draw], np.delete(shares, draw, axis=0), 0.05) for draw in range(240)])
    # Independent heads' counts would have a variance of 12 · 0.05 · 0.95.
    assert counts.var() > 4 * 12 * 0.05 * 0.95
    small = 0
    for first in range(0, 240, 40):
        found = heads_above(shares[first], np.delete(shares[first : first + 40], 0, axis=0), 2, 0.05)
        small += found.p <= 0.05
        assert found.high >= 3
    assert small <= 2


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_a_level_outside_of_0_and_1_is_refused(level: float) -> None:
    with pytest.raises(SettingsError, match=r"is not a level; give a number between 0 and 1, such as 0\.05"):
        heads_above(np.zeros(2), np.zeros((3, 2)), 5, level)


def resampled_by_hand(contributions: np.ndarray, pool: np.ndarray, times: int, seed: int) -> float:
    """The mean share of the first five texts that TEXTSPAN keeps on resampled images."""
    first = textspan_dense(contributions, pool, 5).indices
    generator = np.random.default_rng(seed)
    kept = []
    for _ in range(times):
        again = textspan_dense(contributions[generator.integers(0, len(contributions), len(contributions))], pool, 5)
        kept.append(np.isin(first, again.indices).mean())
    return float(np.mean(kept))


@pytest.mark.parametrize(
    ("images", "most"), [*(pytest.param(each, each, marks=pytest.mark.full_size) for each in (60, 600)), (600, 200)]
)
def test_stability_is_that_of_textspan_on_resampled_images(images: int, most: int) -> None:
    # The last case resamples every third image and scales what it finds to all images.
    contributions, _ = problem(2, images, 12, 8, 1)
    contributions *= np.random.default_rng(1).choice([1, 3], (images, 1))
    own, pool = head(contributions), pool_of(8, 200, 12)
    chosen = span_principals([own], pool, 5)[0].indices
    along = (contributions @ own.basis)[:: images // most]
    found = np.mean([kept_share(along, own, pool, chosen, images, seed) for seed in range(20)])
    wanted = resampled_by_hand(contributions, pool, 200, 0)
    assert 0.2 < wanted < 0.95
    # 200 and 400 resamplings of five texts that leave together at worst: 0.5 / √200, and twice that for the sample.
    assert abs(found - wanted) < (0.1 if most == images else 0.15)


def test_clear_directions_are_stable_and_heads_without_texts_have_no_stability() -> None:
    contributions = np.random.default_rng(0).standard_normal((300, 6)) * [32, 16, 8, 4, 2, 1]
    own, pool = head(contributions), np.eye(6)
    along = contributions @ own.basis
    assert kept_share(along, own, pool, np.arange(5), 300, 0) == 1
    assert np.isnan(kept_share(along, own, pool, np.full(5, -1), 300, 0))
    # All texts of a pool stay, whatever the images.
    assert np.isnan(kept_share(along, own, pool[:5], np.arange(5), 300, 0))


def test_a_sample_has_evenly_spread_images_of_all_stores(toy_run: ToyRun, toy_copy: Path, tmp_path: Path) -> None:
    hs.precompute(out=tmp_path / "b.zarr", **toy_run.settings(shards=[str(toy_run.shards[0])]))
    stores = [hs.open(toy_copy), hs.open(tmp_path / "b.zarr")]
    everything = sampled_heads(stores, 1)
    assert len(everything) == stores[0].images + stores[1].images
    own = np.stack([store.head(1, 2) for store in stores[:1]])[0]
    directions = stores[0].head_directions(1, 2)
    assert relative_error(everything[: len(own), 2] @ directions, own) < tolerances.FLOAT32_SUM
    few = sampled_heads(stores, 1, 20)
    each = [20 * store.images // len(everything) for store in stores]
    places = np.concatenate(
        [
            first + np.linspace(0, store.images, count, endpoint=False, dtype=int)
            for store, count, first in zip(stores, each, (0, stores[0].images), strict=True)
        ]
    )
    assert len(np.unique(places)) == len(few) >= 18
    assert (few == everything[places]).all()


def test_images_that_failed_have_no_part_in_stability(toy_run: ToyRun, toy_copy: Path) -> None:
    store, whole = hs.open(toy_copy), hs.open(toy_copy, include_failed=True)
    assert whole.images > store.images
    assert (sampled_heads([whole], 2) == sampled_heads([store], 2)).all()
    spans = [hs.textspan(each, TEXTS, texts_per_head=6, run=run) for each, run in ((store, "a"), (whole, "b"))]
    assert (spans[0].stability == spans[1].stability).all()  # type: ignore[union-attr]


def described(path: Path, **changed: object) -> hs.HeadSpans:
    """A run of few texts over the toy store."""
    given_settings: dict[str, object] = {"texts_per_head": 6, "run": "own", "draws": 20, **changed}
    return hs.textspan(hs.open(path), TEXTS, **given_settings)  # type: ignore[arg-type]


def test_a_run_keeps_its_draws_and_is_read_back(toy_copy: Path) -> None:
    spans = described(toy_copy)
    again = read_spans(hs.open(toy_copy))
    assert spans.null is not None
    assert again.null is not None
    assert (again.null.explained == spans.null.explained).all()
    assert (again.null.ceiling == spans.null.ceiling).all()
    assert spans.null.picks is not None
    assert spans.null.picks.shape == (20, 3, 3, 5)
    assert spans.null.picks.dtype == np.int8
    assert (again.null.picks == spans.null.picks).all()
    assert again.null.seed == spans.null.seed == 0
    assert spans.null.explained.shape == (20, 3, 3, 6)
    assert again.chance(1, 2) == spans.chance(1, 2)
    assert again.above_chance() == spans.above_chance()
    for name in ("ranks", "effective_rank", "stability"):
        assert (getattr(again, name) == getattr(spans, name)).all()
    store = hs.open(toy_copy)
    vectors = np.asarray(zarr.open_group(toy_copy, mode="r")[f"texts/{spans.pool.name}/vectors"])
    heads = head_principals(store, store.layers, 80, store.moments())
    wanted = rotated_spans(heads, vectors, 6, 20, 0)
    np.testing.assert_allclose(spans.null.explained.reshape(20, 9, 6), wanted.explained, rtol=1e-6)
    assert (spans.null.picks.reshape(20, 9, 5) == wanted.chosen[..., :5]).all()
    contributions = store.head(0, 1).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(contributions.T))
    assert spans.effective_rank is not None
    assert [own.effective_rank for own in heads] == spans.effective_rank.ravel().tolist()
    assert spans.effective_rank[0, 1] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-3)


def test_other_draws_or_another_seed_are_another_run(toy_copy: Path) -> None:
    described(toy_copy)
    before = relative_files(toy_copy)
    for changed, why in (({"draws": 21}, "draws 20, now 21"), ({"seed": 4}, "seed 0, now 4")):
        with pytest.raises(StoreError, match=rf"was made differently \({why}\)"):
            described(toy_copy, **changed)
    described(toy_copy)
    assert relative_files(toy_copy) == before


def test_a_run_of_an_earlier_version_opens_without_chance(toy_copy: Path) -> None:
    spans = described(toy_copy)
    group = zarr.open_group(toy_copy, mode="r+")["textspan/own"]
    about = {name: value for name, value in group.attrs.items() if name not in ("draws", "seed")}
    group.attrs.clear()
    group.attrs.update(about)
    for name in ("null_explained", "ceiling", "ranks", "effective_rank", "stability"):
        shutil.rmtree(toy_copy / "textspan" / "own" / name)
    shutil.rmtree(toy_copy / "records" / "results")
    old = read_spans(hs.open(toy_copy))
    assert old.null is old.ranks is old.effective_rank is old.stability is None
    assert (old.explained == spans.explained).all()
    assert "null_mean" not in old.to_frame()
    assert "<th>p</th>" not in old._repr_html_()
    assert old.too_few_images() is None
    with pytest.raises(SettingsError, match=r"textspan run 'own' has no draws of chance; run headspan textspan again"):
        old.chance(0, 0)
    # The same settings are the same run: nothing says that it was made with other draws.
    assert described(toy_copy).null is None


def test_without_draws_only_moments_are_read(toy_copy: Path) -> None:
    shutil.rmtree(toy_copy / "heads" / "c")
    spans = described(toy_copy, draws=0)
    assert spans.null is spans.stability is None
    assert spans.ranks is not None
    with pytest.raises(SettingsError, match="has no draws of chance"):
        spans.above_chance()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"draws": 19}, r"19 draws: too few for a p of 0\.05; ask for at least 20, or for 0 to draw none"),
        ({"draws": -1}, r"-1 draws: too few"),
        ({"seed": -1}, r"seed -1 is negative; give a whole number from 0"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(changed: dict[str, int], text: str, toy_copy: Path) -> None:
    with pytest.raises(SettingsError, match=text):
        described(toy_copy, **changed)


def test_a_pool_smaller_than_the_texts_per_head_gives_all_of_its_texts_and_says_so(toy_copy: Path) -> None:
    events: list[Progress] = []
    spans = described(toy_copy, texts_per_head=60, on_progress=events.append)
    assert spans.indices.shape == (3, 3, len(TEXTS))
    notes = [event.note for event in events if event.stage == NOTE]
    assert notes == [f"the pool {spans.pool.name} has 12 texts, fewer than 60: each head gets at most 12"]
    # The same request is the same run.
    assert (described(toy_copy, texts_per_head=60).indices == spans.indices).all()
    assert hs.open(toy_copy).group["textspan/own"].attrs["texts_per_head"] == len(TEXTS)


def test_tables_have_chance_beside_every_share(toy_copy: Path) -> None:
    spans = described(toy_copy)
    frame = spans.to_frame()
    row = frame[(frame["layer"] == 1) & (frame["head"] == 2) & (frame["number"] == 5)].iloc[0]
    chance = spans.chance(1, 2, 5)
    assert row["explained"] == chance.explained
    assert row["excess"] == row["explained"] - row["null_mean"] == chance.excess
    assert (row["null_low"], row["null_high"], row["draws_below"], row["p"], row["ceiling"]) == (
        *(chance.low, chance.high, chance.rank, chance.p, chance.ceiling),
    )
    heads = spans.by_head().to_frame()
    assert len(heads) == 9
    assert [name for name in heads if name.startswith("explained")] == ["explained_1", "explained_5", "explained_6"]
    assert heads["excess_5"][5] == chance.excess
    assert heads[["rank", "effective_rank", "stability"]].notna().all(axis=None)
    page = spans._repr_html_()
    for name in ("excess at 5", "by chance", "stability"):
        assert f"<th>{name}</th>" in page


def test_few_images_are_said_to_be_few(toy_copy: Path) -> None:
    spans = described(toy_copy)
    assert spans.ranks is not None
    assert spans.images < 10 * spans.ranks.max()
    assert spans.too_few_images() is not None
    assert str(spans.too_few_images()).startswith(f"few data: 67 images for heads with {spans.ranks.max()} directions;")


def lines_of(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> list[str]:
    assert main([*arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_leads_with_the_excess_and_ends_with_the_count(
    toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "mine.txt"
    pool.write_text("\n".join(TEXTS))
    command = ["textspan", str(toy_copy), "--texts", str(pool), "--texts-per-head", "6"]
    lines = lines_of(capsys, [*command, "--draws", "20", "--seed", "3"])
    spans = read_spans(hs.open(toy_copy))
    chance, everything = spans.chance(0, 0), spans.chance(0, 0, 6)
    assert spans.stability is not None
    variance = f"{100 * hs.open(toy_copy).magnitudes().of(0, 0)[0]:.2f} % of the variance"
    assert lines[:7] == [
        f"L0.H0  {100 * chance.excess:+.1f} points over chance (p {chance.p:.3f})  {variance}",
        *(f"    {text}" for text in spans.texts(0, 0, 5)),
        f"  first 5 texts: {100 * chance.explained:.1f} % (chance {100 * chance.low:.1f} % to "
        f"{100 * chance.high:.1f} %, ceiling {100 * chance.ceiling:.1f} %); stability {spans.stability[0, 0]:.2f}; "
        f"all 6: {100 * everything.explained:.1f} % (chance {100 * everything.mean:.1f} %)",
    ]
    found = spans.above_chance()
    assert lines[-3] == spans.too_few_images()
    assert lines[-2].startswith(f"{found.above} of 9 heads above chance at 5 texts (p ≤ 0.05); chance gives ")
    without = lines_of(capsys, [*command, "--draws", "0", "--run", "plain"])
    assert without[0] == f"L0.H0  {variance}"
    assert not any("chance" in line for line in without)
