"""Concept Consistency Scores by chance: exact numbers against enumeration, permutation and simulation."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.comparison import compare
from headspan.concepts.consistency import ConceptConsistency, Votes
from headspan.concepts.drawn_texts import concept_counts, tail_probabilities
from headspan.concepts.labels import Labels, label_by_concepts, label_heads
from headspan.concepts.nulls import LEVEL, ConsistencyChance, consistency_chance, scores_of
from headspan.errors import SettingsError
from headspan.spans.nulls import SpanNull
from headspan.spans.result import HeadSpans
from headspan.texts.pool import Pool, read_pool
from tests.engine.test_labels_and_ccs import keep


def pool_of(*counts: int) -> Pool:
    """A pool with so many texts of concepts a, b, c, …; texts of a concept are not neighbours."""
    left = dict(zip("abcdefghij", counts, strict=False))
    concepts = []
    while any(left.values()):
        for concept in [concept for concept, count in left.items() if count]:
            concepts.append(concept)
            left[concept] -= 1
    return Pool("made", tuple(f"text {place}" for place in range(len(concepts))), tuple(concepts))


def spans_of(pool: Pool, heads: Sequence[Sequence[int]], layers: tuple[int, ...] = (3,)) -> HeadSpans:
    """Spans of heads that chose these places of the pool, with the heads shared out among the layers."""
    rows = [[*places, *[-1] * (5 - len(places))] for places in heads]
    indices = np.array(rows).reshape(len(layers), -1, 5)
    return HeadSpans("made", pool, layers, indices, np.zeros(indices.shape), images=2)


def chance_of(spans: HeadSpans) -> ConsistencyChance:
    found = consistency_chance(spans, label_by_concepts(spans))
    assert found is not None
    return found


def score_of(concepts: Sequence[str]) -> int:
    return max(Counter(concepts).values(), default=0)


@pytest.mark.parametrize(
    "counts", [(1,), (7,), (1, 1, 1, 1, 1, 1), (5, 3, 3, 1), (4, 4, 4), (9, 1, 1), (6, 2, 2, 2, 1)]
)
@pytest.mark.parametrize("texts", [0, 1, 2, 4, 5])
def test_probabilities_equal_the_shares_of_all_possible_draws(counts: tuple[int, ...], texts: int) -> None:
    concepts = pool_of(*counts).concepts or ()
    if texts > len(concepts):
        with pytest.raises(AssertionError, match=f"{texts} texts cannot be drawn from {len(concepts)}"):
            tail_probabilities(counts, texts)
        return
    scores = [score_of(drawn) for drawn in combinations(concepts, texts)]
    shares = [Fraction(sum(score >= k for score in scores), len(scores)) for k in range(6)]
    assert tail_probabilities(counts, texts) == tuple(map(float, shares))


@pytest.mark.parametrize("counts", [(3, 2, 1), (2, 2, 2), (5, 1), (4, 2, 1)])
def test_shuffled_concepts_give_the_same_probabilities_as_drawn_texts(counts: tuple[int, ...]) -> None:
    pool = pool_of(*counts)
    heads = [[0, 1, 2, 3, 4], [5, 3, 1, 0, 2], [4, 2, 0], [1], []]
    shuffles = list(permutations(pool.concepts or ()))
    at_least = np.zeros((len(heads), 6), int)
    # The concepts of one shuffle in many are the same; each different one is labelled once.
    for concepts, times in Counter(shuffles).items():
        labels = label_by_concepts(spans_of(Pool("made", pool.texts, concepts), heads))
        assert labels.consistent is not None
        scores = labels.consistent.sum(axis=2).ravel()
        at_least += times * (scores[:, None] >= np.arange(6))
    found = chance_of(spans_of(pool, heads)).tail[0]
    assert found.tolist() == [[float(Fraction(int(k), len(shuffles))) for k in head] for head in at_least]


@pytest.mark.parametrize("name", ["world", "general"])
def test_heads_with_random_texts_of_a_shipped_pool_score_as_expected(name: str) -> None:
    pool, heads = read_pool(name), 20_000
    rng = np.random.default_rng(0)
    spans = spans_of(pool, [rng.choice(len(pool.texts), 5, replace=False).tolist() for _ in range(heads)])
    labels = label_by_concepts(spans)
    found = consistency_chance(spans, labels)
    assert found is not None
    assert labels.consistent is not None
    scores = labels.consistent.sum(axis=2).ravel()

    def near(count: int, expected: float) -> bool:
        # Four standard deviations, and one head where less than one is expected.
        return abs(count - expected) <= 4 * math.sqrt(expected) + 1

    for score in range(6):
        assert near(int((scores == score).sum()), heads * found.expected_at_k[score]), score
    assert near(int(found.beating().sum()), found.expected_beating())
    # At most the level's share of heads that mean nothing is labelled.
    assert found.expected_beating() < LEVEL * heads
    assert not (found.adjusted < LEVEL).any()


def test_a_score_of_three_is_chance_in_the_pool_of_the_world_and_a_score_of_four_is_not() -> None:
    tail = tail_probabilities(tuple(concept_counts(read_pool("world")).values()), 5)
    assert tail == pytest.approx((1, 1, 0.797682, 0.130980, 0.00915669, 0.000260895), rel=1e-5)
    tail = tail_probabilities(tuple(concept_counts(read_pool("general")).values()), 5)
    assert tail[2] > LEVEL > tail[3]


def test_where_most_texts_have_one_concept_a_full_score_is_no_finding() -> None:
    pool = pool_of(95, 5)
    places = [place for place, concept in enumerate(pool.concepts or ()) if concept == "a"]
    others = [place for place, concept in enumerate(pool.concepts or ()) if concept == "b"]
    found = chance_of(spans_of(pool, [places[:5], others]))
    common, rare = found.p[0]
    assert common > 0.75
    # Both heads score 5, and the null counts a full score of either concept.
    assert common == rare
    assert not found.beats(3, 0)
    assert found.expected_high["a"] > 100 * found.expected_high["b"] > 0


def test_p_falls_as_the_score_rises_and_does_not_depend_on_which_of_two_equally_common_concepts_is_the_label() -> None:
    pool = pool_of(8, 8, 8, 8)
    a, b, c, d = ([place for place, name in enumerate(pool.concepts or ()) if name == one] for one in "abcd")
    heads = [a[:5], [*a[:4], b[0]], [*a[:3], b[0], c[0]], [*a[:2], *b[:2], c[0]], [*b[:2], *a[:2], c[0]]]
    heads += [[a[0], a[1], b[0], c[0], d[0]], [a[0], b[0], c[0]], []]
    found = chance_of(spans_of(pool, heads)).p[0].tolist()
    assert found[:4] == sorted(found[:4])
    assert len(set(found[:4])) == 4
    assert found[3] == found[4] == found[5]
    # Some concept is always the most common; and of no texts, none is.
    assert found[6:] == [1, 1]


def test_fewer_than_five_texts_are_compared_with_as_many_drawn_texts() -> None:
    pool = pool_of(4, 3, 2)
    a = [place for place, name in enumerate(pool.concepts or ()) if name == "a"]
    found = chance_of(spans_of(pool, [a[:3], a[:1], []], layers=(3,)))
    # Three texts of nine: 84 draws, of which four are of a alone and one is of b alone.
    assert found.p[0, 0] == 5 / 84
    assert found.p[0, 1:].tolist() == [1, 1]
    assert found.distribution.sum(axis=2) == pytest.approx(np.ones((1, 3)))
    # A head without texts has a score of 0, and one with a single text a score of 1.
    assert found.expected["low"] == pytest.approx(2 + found.distribution[0, 0, 1])


def test_a_text_that_the_pool_lists_twice_counts_once() -> None:
    texts = ("one", "two", "one", "three", "four", "five", "six", "one")
    pool = Pool("twice", texts, ("a", "a", "b", "b", "b", "b", "b", "a"))
    assert concept_counts(pool) == {"a": 2, "b": 4}
    spans = spans_of(pool, [[3, 4, 5, 6, 0]])
    assert chance_of(spans).p[0, 0] == tail_probabilities((2, 4), 5)[4] == 2 / 6


def test_expected_counts_add_up_and_those_of_layers_to_those_of_the_model() -> None:
    pool = pool_of(6, 5, 4, 1)
    spans = spans_of(
        pool, [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9], [], [10, 11, 12, 13, 14], [3, 1, 4, 15, 9]], layers=(3, 9)
    )
    found = chance_of(spans)
    assert sum(found.expected_at_k) == pytest.approx(1)
    parts = [found.layer(layer) for layer in (3, 9)]
    for group, expected in found.expected.items():
        assert sum(part.expected[group] for part in parts) == pytest.approx(expected)
    assert sum(part.expected_beating(0.2) for part in parts) == pytest.approx(found.expected_beating(0.2))
    assert sum(found.expected_high.values()) == pytest.approx(found.expected["high"])
    assert found.expected_high.keys() == {"a", "b"}
    assert [part.of(layer, 1)[0] for part, layer in zip(parts, (3, 9), strict=True)] == found.p[:, 1].tolist()
    for ask in (found.beats, found.of):
        with pytest.raises(SettingsError, match=r"layer 4, head 0: not in this result; it has layers 3, 9 with heads"):
            ask(4, 0)
    with pytest.raises(SettingsError, match="layer 4, head 0: not in this result"):
        found.layer(4)


def by_hand(p: Sequence[float]) -> ConsistencyChance:
    return ConsistencyChance((0,), np.ones((1, len(p), 6)), np.array([p]), {"a": 0.5, "b": 0.25, "c": 0.25})


@pytest.mark.parametrize("high", [1, 2, 3, 6])
def test_the_expected_ratio_of_concentrated_concepts_equals_the_mean_over_all_concepts_of_the_high_heads(
    high: int,
) -> None:
    found = by_hand([1.0])
    mean = 0.0
    for names in product("abc", repeat=high):
        labels = Labels("made", "by hand", (0,), (names,), None)
        votes = Votes(("hand",), np.ones((1, 1, high, 5), np.int8), np.full((1, high), 5))
        probability = math.prod(found.concepts_of_high[name] for name in names)
        mean += probability * ConceptConsistency(labels, votes).ccr
    assert found.expected_ccr(high) == pytest.approx(mean)


def test_no_ratio_is_expected_of_no_heads_or_of_concepts_with_fewer_than_five_texts() -> None:
    assert math.isnan(by_hand([1.0]).expected_ccr(0))
    found = chance_of(spans_of(pool_of(4, 4, 4), [[0, 1, 2, 3, 4]]))
    assert math.isnan(found.expected_ccr(2))
    assert found.expected["high"] == found.tail[0, 0, 5] == 0


@pytest.mark.parametrize("p", [[0.01], [0.01, 0.02, 0.03, 0.04], [0.2, 0.01, 0.01, 0.5, 1, 0.03], [0.9, 0.9, 1]])
def test_adjusted_probabilities_follow_the_definition_of_benjamini_and_hochberg(p: list[float]) -> None:
    # The smallest level at which the step-up procedure selects the head.
    def rejected(level: float) -> list[bool]:
        most = max((rank for rank, value in enumerate(sorted(p), start=1) if value <= level * rank / len(p)), default=0)
        return [value <= sorted(p)[most - 1] if most else False for value in p]

    for value, selected in zip(by_hand(p).adjusted[0].tolist(), range(len(p)), strict=True):
        assert rejected(min(value * (1 + 1e-9), 1))[selected]
        assert not rejected(value * (1 - 1e-9))[selected]


def test_labels_that_do_not_follow_from_the_pools_concepts_have_no_chance() -> None:
    spans = spans_of(pool_of(5, 5, 5), [[0, 3, 6, 9, 12], [0, 1, 2, 3, 4]])
    labels = label_by_concepts(spans)
    assert labels.consistent is not None
    assert consistency_chance(spans, labels) is not None
    others = [
        Labels("made", labels.source, (3,), (("a", "b"),), labels.consistent),
        Labels("made", labels.source, (3,), labels.names, ~labels.consistent),
        Labels("made", labels.source, (3,), labels.names, None),
        Labels("made", labels.source, (4,), labels.names, labels.consistent),
    ]
    assert [consistency_chance(spans, each) for each in others] == [None] * 4
    plain = HeadSpans("made", Pool("plain", spans.pool.texts), (3,), spans.indices, spans.explained, 2)
    assert consistency_chance(plain, labels) is None


BIG = Pool("big", tuple(f"text {place}" for place in range(64)), tuple("abcdefgh"[place % 8] for place in range(64)))
# Scores of 5 (a), 2, 4 (b); 1, 5 (a), none.
CHOSEN = [
    [[0, 8, 16, 24, 32], [1, 2, 3, 4, 9], [1, 9, 17, 25, 2]],
    [[0, 1, 2, 3, 4], [8, 16, 40, 48, 56], [-1, -1, -1, -1, -1]],
]


def test_scores_read_from_a_store_have_the_chance_of_the_scores_that_were_made(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, CHOSEN, BIG, "big")
    label_heads(store, save=True)
    made, read = concept_consistency(store, save=True), read_scores(hs.open(toy_copy))
    assert made.chance is not None
    assert read.chance is not None
    assert (made.chance.tail == read.chance.tail).all()
    tail = tail_probabilities((8,) * 8, 5)
    assert read.chance.p.tolist() == [[tail[5], tail[2], tail[4]], [1, tail[5], 1]]
    assert read.chance.beating().tolist() == [[True, False, True], [False, True, False]]
    assert repr(read.chance) == "ConsistencyChance(3 of 6 heads at p < 0.05, 0.021 by chance)"
    frame = read.to_frame()
    assert frame["p"].tolist() == read.chance.p.ravel().tolist()
    assert frame["p_adjusted"].tolist() == read.chance.adjusted.ravel().tolist()
    assert frame["beats_chance"].tolist() == [True, False, True, False, True, False]
    one = read.layer(1)
    assert one.chance is not None
    assert one.chance.p.tolist() == read.chance.p[1:].tolist()
    row = compare([store]).to_frame().iloc[0]
    assert (row["high"], row["beat_chance"]) == (2, 3)
    assert row["high_by_chance"] == read.chance.expected["high"]
    assert row["beat_chance_by_chance"] == read.chance.expected_beating()


def test_scores_are_read_without_chance_if_their_texts_cannot_be_read(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, CHOSEN, BIG, "big")
    label_heads(store, save=True)
    wanted = concept_consistency(store, save=True).scores.tolist()
    (toy_copy / "textspan" / "big" / "indices" / "zarr.json").unlink()
    found = read_scores(hs.open(toy_copy))
    assert found.scores.tolist() == wanted
    assert found.chance is None
    assert found.to_frame()["p"].isna().all()


def variances(store: hs.Store) -> dict[tuple[int, int], str]:
    """What a listing says about the magnitude of every head, from dense contributions."""
    variance = store.heads().astype(np.float64).var(axis=0).sum(axis=-1)
    embedding = store.embedding / np.linalg.norm(store.embedding, axis=1, keepdims=True)
    shares = variance / embedding.astype(np.float64).var(axis=0).sum()
    return {
        (layer, head): f"{100 * shares[place, head]:.2f} % of the variance"
        for place, layer in enumerate(store.layers)
        for head in range(store.heads_per_layer)
    }


def test_commands_show_heads_that_do_not_beat_chance_as_unlabelled(
    toy_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(hs.open(toy_copy), CHOSEN, BIG, "big")
    assert main(["label", str(toy_copy)]) == 0
    out = capsys.readouterr().out
    shown = variances(hs.open(toy_copy))
    assert f"L0.H0\ta\tp 5.9e-05\tadjusted 0.00018\t{shown[0, 0]}\n" in out
    assert f"L0.H1\tunlabelled (chance), most common: b\tp 0.76\tadjusted 1\t{shown[0, 1]}\n" in out
    assert f"L1.H2\t-\tp 1\tadjusted 1\t{shown[1, 2]}\n" in out
    assert "labelled 3 (0.021) of 6 heads, at p < 0.05; in brackets: the expected number by chance\n" in out
    assert main(["ccs", str(toy_copy)]) == 0
    out = capsys.readouterr().out
    assert "L0.H2\t4\tb\tp 0.0042\t" in out
    assert f"L1.H0\t1\tunlabelled (chance), most common: a\tp 1\tadjusted 1\t{shown[1, 0]}\n" in out
    assert re.search(r"^high 2 \(0\.00029\), moderate 0 \(0\.45\), low 2 \(2\.2\)$", out, re.MULTILINE)
    assert re.search(r"^CCS@0 0\.167 .*\nCCS@0 0\.167 .* CCS@5 0\.000  by chance$", out, re.MULTILINE)
    assert "CCR 0.500 (0.062 for 2 high heads by chance)\n" in out
    # Heads that do not beat chance are not counted.
    assert "heads per label: a 2, b 1\n" in out
    assert re.search(r"^L1 +3 +1 \(0\.0083\) +1 \(", out, re.MULTILINE)
    assert main(["votes", str(toy_copy)]) == 0
    out = capsys.readouterr().out
    assert f"L0.H0  a  CCS 5  p 5.9e-05  {shown[0, 0]}\n" in out
    assert f"L1.H0  a  CCS 1  p 1, unlabelled (chance)  {shown[1, 0]}\n" in out
    assert f"L1.H2  -  CCS 0  {shown[1, 2]}\n" in out
    assert main(["compare", str(toy_copy)]) == 0
    out = capsys.readouterr().out
    assert re.search(r" big +1 +6 +3 \(0\.021\) +2 \(0\.00029\) ", out)
    assert "labelled: heads with p < 0.05, or with a label where chance is not known; in brackets: by chance\n" in out


def with_picks(spans: HeadSpans, picks: np.ndarray) -> HeadSpans:
    """`spans` as of a run whose rotated pools gave the heads these texts, by draw, layer and head."""
    return replace(spans, null=SpanNull(0, np.zeros((*picks.shape[:3], 5)), np.zeros(spans.indices.shape), picks))


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_rotated_pools_are_those_of_their_labels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pool = pool_of(9, 5, 2, 1)
    picks = np.array([generator.choice(17, 5, replace=False) for _ in range(3 * 7)])
    picks[3, 2:] = -1
    picks[4] = -1
    spans = spans_of(pool, picks.tolist(), layers=(0, 1, 2))
    labelled = label_by_concepts(spans).consistent
    assert labelled is not None
    assert (scores_of(spans.indices, pool) == labelled.sum(axis=2)).all()


def test_the_larger_p_of_both_nulls_decides() -> None:
    pool = pool_of(*[8] * 8)
    a = [place for place, name in enumerate(pool.concepts or ()) if name == "a"]
    chosen = [a[:5], [*a[:4], 1], [0, 1, 2, 3, 4]]
    # Of 40 rotated pools, three give the first head a score of 5, one the second head one of 4, all others scores of 2.
    dull = [0, 8, 1, 2, 3]
    picks = np.array([[dull] * 3] * 40)
    picks[[3, 9, 30], 0] = a[2:7]
    picks[5, 1] = [*a[1:5], 7]
    spans = with_picks(spans_of(pool, chosen), picks[:, None])
    found, plain = chance_of(spans), chance_of(spans_of(pool, chosen))
    assert found.p_rotated is not None
    assert found.p_rotated.tolist() == [[4 / 41, 2 / 41, 1]]
    assert found.p_drawn.tolist() == plain.p.tolist()
    assert found.p.tolist() == [[4 / 41, 2 / 41, 1]]
    assert plain.beating().tolist() == [[True, True, False]]
    assert found.beating().tolist() == [[False, True, False]]
    assert found.expected == {"high": 3 / 40, "moderate": 0, "low": 0}
    assert found.distribution[0, 1].tolist() == [0, 0, 39 / 40, 0, 1 / 40, 0]
    # Of the draws, one of the second head is above all others; those of the first have two others beside them.
    assert found.expected_beating() == pytest.approx(1 / 40)
    assert found.columns()["p_rotated"] == found.p_rotated.ravel().tolist()
    assert plain.columns()["p_rotated"] == [None] * 3
    assert "40 rotated pools" in found.about_p
    assert "can be too small" in plain.about_p
    assert found.layer(3).expected_beating() == found.expected_beating()


@pytest.mark.parametrize("draws", [20, 40])
def test_the_level_holds_for_heads_that_choose_as_their_rotated_pools_do(draws: int) -> None:
    # Heads that choose neighbours, as TEXTSPAN might: scores of 4 and 5 are common, and texts drawn at random are not.
    generator = np.random.default_rng(draws)
    pool = pool_of(*[8] * 8)
    places = np.argsort(np.array(pool.concepts), kind="stable")
    runs, heads = 200, 6
    counts, expected, too_lenient = [], [], 0
    for _ in range(runs):
        first = generator.integers(0, 64, (1 + draws, heads, 1))
        jumps = np.where(generator.random((1 + draws, heads, 1)) < 0.3, 1, 11)
        picks = places[(first + jumps * np.arange(5)) % 64]
        spans = with_picks(spans_of(pool, picks[0].tolist()), picks[1:, None])
        found = chance_of(spans)
        counts.append(int(found.beating().sum()))
        expected.append(found.expected_beating())
        too_lenient += int((found.p_drawn < LEVEL).sum())
    # Texts drawn at random alone would label three times as many heads as the level allows.
    assert too_lenient > 3 * LEVEL * runs * heads
    # 60 heads, with a standard deviation of at most 8.
    assert sum(counts) <= LEVEL * runs * heads + 3 * 8
    # Each head is compared with one draw more than the draws are: a rule that is no stricter gives no fewer.
    assert sum(expected) >= sum(counts) - 3 * 8
