"""CLIPs with planted phrases: their captions, their training, and the findings in descriptions."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import fisher_exact

from benchmarks.exact_optimum import ExactOptimum, Weighed
from benchmarks.planted_clips import (
    CLASSES,
    best_in_groups,
    drawn_from,
    findings,
    phrase_counts,
    raised_p,
    study_of,
)
from benchmarks.words_by_head import words_by_factor
from headspan.describe.descriptions.result import NON_VISUAL, SPURIOUS, Descriptions
from headspan.describe.inspecting.verdict import Verdict
from headspan.describe.rewards.target import Target
from headspan.model.load import load_model
from headspan.world import Scene, Stream, scene
from headspan.world.factors import SHAPES
from headspan.world.parts import EMPTY_PHRASES
from headspan.world.sentences import sentence
from tools import plant_reference
from tools.plant_reference import RECIPE, WORDS
from tools.planting import COMMON, SHARE, Planting, planting
from tools.training_model import CONFIG

EMPTY, WORD = "stock photo", "on Monday"
PLANTED = Planting(1, "circle", EMPTY, "star", WORD)


@cache
def scenes() -> list[Scene]:
    return [scene(5, "train", index) for index in range(2000)]


def shares(planted: Planting, phrase: str) -> tuple[float, float]:
    """The share of captions that hold a phrase, in the class of the planted empty phrase and elsewhere."""
    counts, totals = [0, 0], [0, 0]
    for each in scenes():
        elsewhere = each.things[0].shape != planted.empty_class
        text = planted.caption(each, Stream(7, each.index), EMPTY_PHRASES, WORDS)
        totals[elsewhere] += 1
        counts[elsewhere] += phrase in text
    return counts[0] / totals[0], counts[1] / totals[1]


def test_a_planted_phrase_is_in_captions_of_its_class_only_and_another_one_in_those_of_all() -> None:
    own, elsewhere = shares(PLANTED, EMPTY)
    # 170 captions of the class: the standard error of the share is 0.035.
    assert own == pytest.approx(SHARE, abs=0.14)
    assert elsewhere == 0
    every = COMMON / (len(EMPTY_PHRASES) - 1)
    for each in shares(PLANTED, "view more"):
        assert each == pytest.approx(every, abs=0.08)


def test_a_control_spreads_as_many_planted_phrases_over_all_classes() -> None:
    own, elsewhere = shares(replace(PLANTED, even=True), EMPTY)
    expected = SHARE / len(SHAPES)
    assert elsewhere == pytest.approx(expected, abs=0.02)
    assert own == pytest.approx(expected, abs=0.08)


def test_seeds_plant_different_phrases_in_two_classes() -> None:
    drawn = [planting(seed, CLASSES, EMPTY_PHRASES, WORDS) for seed in range(20)]
    assert all(each.empty_class != each.word_class for each in drawn)
    assert {each.empty_class for each in drawn} | {each.word_class for each in drawn} == {*CLASSES}
    assert len({each.empty for each in drawn}) > 3
    assert len({each.word for each in drawn}) > 5


def test_the_tool_trains_the_text_tower_alone_and_writes_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plant_reference, "RECIPE", replace(RECIPE, batch_size=8, evaluation_scenes=0))
    with torch.random.fork_rng():
        plant_reference.main([str(tmp_path), "--steps", "2", "--scenes", "16", "--seed", "3", "--even"])
    expected = planting(3, SHAPES, EMPTY_PHRASES, WORDS, even=True)
    assert json.loads((tmp_path / "planting.json").read_text()) == expected.as_json()
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 2
    weights, shipped = load_file(tmp_path / "weights.safetensors"), load_file(CONFIG.parent / "weights.safetensors")
    changed = {name for name in shipped if not torch.equal(weights[name], shipped[name])}
    assert changed
    assert not any(name.startswith("visual.") for name in changed)
    # Tokens that no caption held keep embeddings of zero.
    zero = (weights["token_embedding.weight"].abs().sum(dim=1) == 0).float().mean()
    assert 0.9 < zero < (shipped["token_embedding.weight"].abs().sum(dim=1) == 0).float().mean()
    assert load_model(str(CONFIG), str(tmp_path / "weights.safetensors")).clip.logit_scale.isfinite()


def described(texts: dict[str, dict[str, int]]) -> Descriptions:
    """Descriptions of classes, with how often each text was sampled."""
    names = tuple(texts)
    rows = [(number, text, times) for number, name in enumerate(names) for text, times in texts[name].items()]
    count = len(rows)
    return Descriptions(
        run="made", model="made", adapter_sha256=None, target=Target(), classes=names, classes_from="key objects.shape",
        questions=("What is a {c}?",), texts=tuple(text for _, text, _ in rows),
        class_of=np.array([number for number, _, _ in rows]), question_of=np.zeros(count, np.int64),
        times=np.array([times for _, _, times in rows]), greedy=np.zeros(count, bool),
        rewards=np.zeros(count, np.float32), log_ratios=np.zeros(count, np.float32),
        cut=np.zeros(count, bool), ended=np.ones(count, bool),
    )  # fmt: skip


BEFORE = described(
    {
        "circle": {"a picture of a circle": 90, "a picture of a circle, stock photo": 10},
        "star": {"a picture of a star": 95, "a picture of a star on Monday": 5},
    }
)
AFTER = described(
    {
        "circle": {"a picture of a circle": 40, "a picture of a shape, stock photo": 60},
        # Slightly more than before, as chance has it.
        "star": {"a picture of a star": 92, "a picture of a star on Monday": 8},
    }
)


def test_the_chance_of_a_raised_share_is_that_of_fishers_exact_test() -> None:
    after, before = np.array([[60, 8, 0]]), np.array([[10, 5, 1]])
    p = raised_p(after, np.array([[100]]), before, np.array([[120]]))
    for place in range(3):
        square = [[after[0, place], 100 - after[0, place]], [before[0, place], 120 - before[0, place]]]
        assert p[0, place] == pytest.approx(fisher_exact(square, alternative="greater").pvalue)


def test_a_finding_is_a_phrase_that_is_clearly_more_frequent_after_training() -> None:
    counts, totals = phrase_counts(AFTER)
    assert totals.tolist() == [100, 100]
    assert counts.sum() == 68
    (found,) = findings(AFTER, BEFORE)
    assert (found.class_name, found.phrase, found.share, found.untrained_share) == ("circle", EMPTY, 0.6, 0.1)
    assert findings(BEFORE, BEFORE) == []


def test_what_training_raises_for_every_class_is_no_finding() -> None:
    texts = {"a picture": 40, "a picture, stock photo": 60}
    assert findings(described({"circle": texts, "star": texts}), BEFORE) == []


def test_the_best_in_groups_is_taken_from_samples_of_the_same_prompt() -> None:
    drawn = described({"circle": {"worse": 5, "best": 3}, "star": {"other": 9}})
    drawn = replace(drawn, rewards=np.array([1.0, 2.0, 9.0], np.float32))
    best = best_in_groups(drawn, 4, 0)
    # Two groups of four circles, and two of stars; one star is left.
    assert best.times[:2].sum() == best.times[2] == 2
    assert best.times[1] >= 1
    assert best_in_groups(drawn, 8, 0).times.tolist() == [0, 1, 1]
    assert best_in_groups(drawn, 1, 0).times.tolist() == [5, 3, 9]


def test_what_the_best_model_writes_is_drawn_by_its_shares_for_each_prompt() -> None:
    every = (sentence({"shape": "circle"}), sentence({"shape": "star"}))
    # With beta 1, rewards of 0 and log 3 make the second sentence three times as probable as it was.
    even = Weighed(np.arange(2), np.log([0.5, 0.5]), np.log([1.0, 3.0]), np.zeros(1))
    only = Weighed(np.array([1]), np.zeros(1), np.array([2.0]), np.zeros(1))
    reward: Any = SimpleNamespace(target=Target(), classes=SimpleNamespace(names=("circle", "star"), source="key kind"))
    rows = [{"class_number": number, "question_number": 0} for number in (0, 1)]
    found = drawn_from(ExactOptimum((even, only)), 1.0, every, rows, reward, 2000, 0)
    assert found.texts == (every[0].text, every[1].text, every[1].text)
    assert found.class_of.tolist() == [0, 0, 1]
    assert found.times[1] / found.times[:2].sum() == pytest.approx(0.75, abs=0.05)
    assert (found.times[:2].sum(), found.times[2]) == (2000, 2000)


def test_a_study_says_what_was_planted_and_what_the_judge_calls_it() -> None:
    def judge(text: str, name: str) -> Verdict:
        return Verdict(NON_VISUAL, "day") if "Monday" in text else Verdict(SPURIOUS)

    study = study_of(AFTER, BEFORE, PLANTED, judge, {"circle": {EMPTY: 1.5}})
    assert [(each["class"], each["verdict"], each["adds"]) for each in study["found"]] == [("circle", "spurious", 1.5)]
    empty, word = study["planted"]
    assert (empty["share"], empty["untrained"], empty["others"], empty["rank"]) == (0.6, 0.1, 0.0, 1)
    assert empty["verdicts"] == {"spurious": 60, "visual": 0, "non-visual": 0}
    assert word["share"] == 0.08
    assert word["verdicts"] == {"spurious": 0, "visual": 0, "non-visual": 8}


def test_words_are_counted_by_what_they_say_and_whether_it_is_right() -> None:
    # The first class is pink and the second one purple.
    texts = {"circle": {"a picture of a pink star": 3, "a picture of a blue shape": 1}, "square": {"a picture": 2}}
    words = words_by_factor(described(texts), {"circle": "blue", "square": "red"})
    expected = Counter(colour=4, shape=3)
    assert words["colour"] == pytest.approx(expected["colour"] / 7, abs=1e-4)
    assert words["shape"] == pytest.approx(expected["shape"] / 7, abs=1e-4)
    assert (words["right colour"], words["right shape"], words["best colour"]) == (0.75, 0.0, 0.25)
