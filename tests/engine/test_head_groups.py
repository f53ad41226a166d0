"""Groups of heads by name, and random sets of heads to compare them with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import headspan as hs
from headspan.errors import SettingsError, StoreError
from headspan.prune.choice.draws import equal_draws, matched_draws, unmatched_draws
from headspan.prune.choice.groups import head_group
from headspan.store.head_space import Head

# Four layers of six heads.
HEADS = [(layer, head) for layer in range(8, 12) for head in range(6)]


def by_layer(heads: tuple[Head, ...] | list[Head]) -> Counter[int]:
    return Counter(layer for layer, _ in heads)


def test_a_list_names_heads_once_and_in_order(toy_store: hs.Store) -> None:
    assert head_group(toy_store, "L2.H1, L1.H0,L2.H1").heads == ((1, 0), (2, 1))


def test_a_file_names_a_head_in_each_line(toy_store: hs.Store, tmp_path: Path) -> None:
    path = tmp_path / "chosen.txt"
    path.write_text("\ufeff# by hand\n\nL2.H1\n  L1.H0 \r\n", encoding="utf-8")
    found = head_group(toy_store, str(path))
    assert (found.name, found.heads) == ("chosen", ((1, 0), (2, 1)))
    path.write_text("# nothing yet\n")
    assert head_group(toy_store, str(path)).why_empty == f"{path} names no head"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("L2.H1\nL2-H1\n", r"line 2: 'L2-H1' is not a head; write layer and head as in L22.H13"),
        ("L9.H0\n", r"line 1: L9.H0: is not a head of the store, which has layers 0-2 with heads 0 to 2"),
        ("\n\nL1.H3\n", r"line 3: L1.H3: is not a head of the store"),
    ],
)
def test_a_line_that_is_no_head_is_named(text: str, error: str, toy_store: hs.Store, tmp_path: Path) -> None:
    path = tmp_path / "chosen.txt"
    path.write_text(text)
    with pytest.raises(SettingsError, match=error):
        head_group(toy_store, str(path))


def test_what_is_no_group_is_refused(toy_store: hs.Store, tmp_path: Path) -> None:
    for name in ("highest", "L1.H0;L1.H1", "L1", "high:", "label:", str(tmp_path)):
        with pytest.raises(SettingsError, match="is no group of heads; give high, moderate, low, label:NAME"):
            head_group(toy_store, name)
    with pytest.raises(SettingsError, match=r"L1\.H7: is not a head of the store"):
        head_group(toy_store, "L1.H0,L1.H7")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00L")
    with pytest.raises(SettingsError, match="cannot be read as a list of heads"):
        head_group(toy_store, str(tmp_path / "bytes.txt"))


def test_a_store_without_scores_or_labels_is_refused_for_groups_that_need_them(toy_store: hs.Store) -> None:
    with pytest.raises(StoreError, match="has no ccs run; run headspan ccs"):
        head_group(toy_store, "high")
    with pytest.raises(SettingsError, match="the store holds no labels; run headspan textspan and headspan label"):
        head_group(toy_store, "label:colours")


def test_matched_draws_have_as_many_heads_of_each_layer_and_none_of_the_group() -> None:
    group = [(8, 1), (10, 0), (10, 4), (11, 5)]
    found = matched_draws(group, HEADS, draws=20, seed=3)
    assert len(found.sets) == len(set(found.sets)) == 20
    assert not found.remarks
    for heads in found.sets:
        assert by_layer(heads) == by_layer(group)
        assert not set(heads) & set(group)
        assert list(heads) == sorted(set(heads))
    assert found == matched_draws(list(reversed(group)), HEADS, draws=20, seed=3)
    assert found != matched_draws(group, HEADS, draws=20, seed=4)


def test_every_head_outside_is_drawn_equally_often() -> None:
    found = matched_draws([(9, 0)], HEADS, draws=3, seed=0)
    assert len(found.sets) == 3
    drawn: Counter[Head] = Counter()
    for seed in range(300):
        drawn.update(heads[0] for heads in matched_draws([(9, 0)], HEADS, draws=2, seed=seed).sets)
    assert set(drawn) == {(9, head) for head in range(1, 6)}
    # 600 draws of five heads: 120 each, with a standard deviation of about 10.
    assert max(abs(count - 120) for count in drawn.values()) < 50


def test_if_few_sets_exist_all_are_given_and_it_is_said() -> None:
    found = matched_draws([(9, 0)], HEADS, draws=20)
    assert sorted(found.sets) == [((9, head),) for head in range(1, 6)]
    assert found.remarks == ("only 5 different sets of heads can be drawn",)


def test_a_layer_with_too_few_others_is_filled_from_the_nearest_layers() -> None:
    group = [(11, head) for head in range(4)]
    found = matched_draws(group, HEADS, draws=4)
    assert found.remarks[0] == "layer 11 has 2 heads outside for 4 inside; the rest is of the nearest layers"
    for heads in found.sets:
        assert by_layer(heads) == {10: 2, 11: 2}
    full = matched_draws(HEADS[:13], HEADS, draws=4)
    assert full.sets == ()
    assert full.remarks == ("only 11 heads outside for 13 inside",)


def test_unmatched_draws_are_of_any_layer_outside_the_group() -> None:
    group = [(11, head) for head in range(5)]
    found = unmatched_draws(group, HEADS, draws=20)
    assert len(found.sets) == 20
    assert {layer for heads in found.sets for layer, _ in heads} == {8, 9, 10, 11}
    assert not any(set(heads) & set(group) for heads in found.sets)


def test_equal_draws_have_as_many_heads_of_both_groups() -> None:
    first, second = [(8, 0), (9, 0), (9, 1), (10, 2), (11, 3)], [(8, 4), (9, 4), (9, 5)]
    of_first, of_second = equal_draws(first, second, draws=7)
    assert {len(heads) for heads in of_first.sets} == {3}
    assert of_second.sets == (tuple(second),)
    of_first, of_second = equal_draws(first, second, in_layer=True, draws=7)
    for heads in (*of_first.sets, *of_second.sets):
        assert by_layer(heads) == {8: 1, 9: 2}
    apart, nothing = equal_draws([(8, 0)], [(9, 0)], in_layer=True)
    assert apart.sets == nothing.sets == ()
    assert apart.remarks == ("no layer has heads of both groups",)
