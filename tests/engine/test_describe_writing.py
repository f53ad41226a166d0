"""Written descriptions: their KL and best-of-N against exact ones of a tiny model, entries, zero-shot and bad input."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import headspan as hs
from headspan.cli.describe_show import print_descriptions
from headspan.cli.main import main
from headspan.describe import Descriptions, Policy, Reward, described_classes, open_policy, quality_table
from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.asked.questions import prompt
from headspan.describe.descriptions.saved import read_descriptions
from headspan.describe.policy.diversity import distinct
from headspan.describe.policy.silence import silent
from headspan.describe.training.prompts import every_prompt
from headspan.describe.training.settings import TrainingSettings
from headspan.describe.training.trained import ADAPTER, LOG, RESULT, SETTINGS, adapter_sha256
from headspan.describe.writing.entries import entries_of
from headspan.describe.writing.prompting import zero_shot_figures
from headspan.describe.writing.quality import compared_with, quality_of
from headspan.describe.writing.samples import Samples
from headspan.describe.writing.write import write
from headspan.errors import ModelError, SettingsError, StoreError
from headspan.events import Progress
from tests.conftest import relative_files
from tests.engine.described_store import make_described_store
from tests.engine.hand_made_descriptions import hand_made_descriptions
from tests.engine.test_best_of import exact_best_of
from tests.engine.test_reading_buckets import printed_in_bucket
from tests.engine.tiny_language_model import make_language_model
from tests.s3_server import serving

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ("red", "circle", "square")
QUESTIONS = ("red {c}", "{c} {c}?")
TOKENS = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Nine pictures of two kinds."""
    kinds = [["circle", "square"][number % 2] for number in range(9)]
    return make_described_store(tmp_path_factory.mktemp("described"), kinds)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("language"), WORDS)


@pytest.fixture(scope="module")
def reward(store: hs.Store) -> Reward:
    return Reward(store, described_classes(store, key="kind"))


@pytest.fixture(scope="module")
def trained(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `train` writes it, whose adapter is random."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter") / "small.trained"
    policy = open_policy(language_model)
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), silent():
        torch.manual_seed(1)
        get_peft_model(policy.model, adapter).save_pretrained(str(folder))
    assert (folder / ADAPTER).is_file()
    made = {
        "language_model": str(language_model),
        "language_model_sha256": "0" * 64,
        "model": "reference",
        "target": hs.describe.Target().as_json(),
        "classes": ["circle", "square"],
        "classes_from": "key kind",
        "questions": list(QUESTIONS),
        "training": TrainingSettings(steps=2, tokens=TOKENS).as_json(),
    }
    (folder / SETTINGS).write_text(json.dumps(made))
    (folder / LOG).write_text(json.dumps({"step": [1, 2], "reward": [3.0, 4.5]}))
    (folder / RESULT).write_text(json.dumps({"figures": {}, "adapter_sha256": adapter_sha256(folder)}))
    return folder


def every_answer(policy: Policy, asked: str) -> list[tuple[str, float, float]]:
    """Every answer of up to two tokens: its text, and its probabilities by the trained and by the untrained model."""
    end = policy.tokenizer.eos_token_id
    start = policy.tokenizer(asked)["input_ids"]
    words = len(policy.tokenizer)

    def after(tokens: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            logits = policy.model(torch.tensor([[*start, *tokens]])).logits[0, -1].double()
        return logits.softmax(dim=-1).numpy()

    def probabilities() -> dict[tuple[int, ...], float]:
        found = {}
        first = after([])
        for one in range(words):
            if one == end:
                found[(one,)] = first[one]
                continue
            second = after([one])
            found |= {(one, two): first[one] * second[two] for two in range(words)}
        return found

    own = probabilities()
    with policy.untrained():
        other = probabilities()

    def text(tokens: Sequence[int]) -> str:
        plain = [token for token in tokens if token != end]
        return " ".join(policy.tokenizer.decode(plain, skip_special_tokens=True).split())

    return [(text(tokens), own[tokens], other[tokens]) for tokens in own]


def test_kl_and_rewards_of_a_trained_model_and_of_best_of_n_are_those_of_all_its_answers(
    store: hs.Store, reward: Reward, trained: Path
) -> None:
    count = 1200
    found = write(reward, trained, questions=QUESTIONS[:1], samples=count, best_of=count, batch=600, device="cpu")
    policy = open_policy(json.loads((trained / SETTINGS).read_text())["language_model"], trained)
    own, kl, untrained, best = [], [], [], []
    for number, name in enumerate(reward.classes.names):
        answers = every_answer(policy, prompt(QUESTIONS[0], name))
        texts, p, q = zip(*answers, strict=True)
        assert sum(p) == pytest.approx(1)
        rewards, p, q = reward.of(texts, [number] * len(texts)), np.array(p), np.array(q)
        own.append(p @ rewards)
        untrained.append(q @ rewards)
        kl.append(p @ np.log(p / q))
        order = np.argsort(rewards)
        best.append({each: exact_best_of(q[order], each) @ rewards[order] for each in (2, 16, 64)})
    quality = found.quality
    # Rewards differ by a few units; a mean over 2,400 samples is within 4 of its standard errors.
    spread = 4 * float(np.std(np.repeat(found.rewards, found.times))) / math.sqrt(2 * count)
    assert abs(np.mean(own) - np.mean(untrained)) > spread
    assert quality["reward"] == pytest.approx(np.mean(own), abs=spread)
    assert quality["untrained_reward"] == pytest.approx(np.mean(untrained), abs=spread)
    assert quality["kl"] == pytest.approx(np.mean(kl), abs=0.1 * np.mean(kl))
    for each in (2, 16, 64):
        expected = np.mean([one[each] for one in best])
        assert quality[f"best_of_{each}_reward"] == pytest.approx(expected, abs=2 * spread)
    assert quality["gain"] == pytest.approx(quality["reward"] - quality["untrained_reward"], abs=1e-9)
    # The same through the entries: each text with its number.
    assert found.times.sum() == 2 * count
    assert np.average(found.log_ratios, weights=found.times) == pytest.approx(quality["kl"], rel=1e-4)
    assert np.average(found.rewards, weights=found.times) == pytest.approx(quality["reward"], rel=1e-5)
    np.testing.assert_allclose(found.rewards, reward.of(found.texts, found.class_of), rtol=1e-6)
    assert len({*zip(found.class_of, found.question_of, found.texts, strict=True)}) == len(found)


def test_descriptions_in_a_bucket_are_saved_as_on_disk(
    store: hs.Store, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "copy.zarr"))
    words = ["--language-model", str(language_model), "--class-key", "kind", "--samples", "1", "--best-of", "0"]
    words += ["--tokens", "2", "--run", "mine", "--device", "cpu"]
    with serving() as server:
        place = server.hold(copy)
        assert main(["describe", "write", place, *words]) == 0, capsys.readouterr().err
        assert f"saved as descriptions/mine in {place}" in capsys.readouterr().out
        assert main(["describe", "write", str(copy), *words]) == 0
        found, wanted = server.keys(f"{copy.name}/"), relative_files(copy)
        # The record has the time, too.
        record = "records/results/descriptions/mine.json"
        assert json.loads(found.pop(record))["files"] == json.loads(wanted.pop(record))["files"]
        assert found == wanted


def test_a_trained_folder_is_written_from_the_command_line_and_shown(
    store: hs.Store, trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place, table = str(store.path), str(tmp_path / "t.csv")
    options = ["--samples", "3", "--best-of", "4", "--device", "cpu"]
    assert main(["describe", "write", place, "--trained", str(trained), *options, "--csv", table]) == 0
    written = capsys.readouterr().out
    assert "saved as descriptions/small.trained in" in written
    found = read_descriptions(place, "small.trained")
    assert (found.classes, found.classes_from, found.questions) == (("circle", "square"), "key kind", QUESTIONS)
    assert found.training["steps"] == 2
    assert found.log == {"step": (1.0, 2.0), "reward": (3.0, 4.5)}
    assert found.adapter_sha256 == adapter_sha256(trained)
    assert Path(table).read_text().count("\n") == len(found) + 1
    # The best of four answers to each question, which the untrained model gave.
    assert (found.best_of, len(found.best_texts)) == (4, 4)
    assert found.best_rewards is not None
    again = Reward(store, described_classes(store, key="kind")).of(found.best_texts, [0, 0, 1, 1])
    np.testing.assert_allclose(found.best_rewards, again, rtol=1e-6)
    assert found.quality["best_of_4_reward"] == pytest.approx(found.best_rewards.mean(), rel=1e-6)
    # Every prompt has one greedy answer, which does not depend on the seed.
    assert found.greedy.sum() == 4
    assert main(["describe", "write", place, "--trained", str(trained), *options, "--seed", "5", "--run", "five"]) == 0
    other = read_descriptions(place, "five")
    capsys.readouterr()
    # A name that is taken is refused before anything is written.
    assert main(["describe", "write", place, "--trained", str(trained), *options, "--seed", "6", "--run", "five"]) == 2
    said = capsys.readouterr().err
    assert "descriptions run 'five' was made differently (seed 5, now 6); choose another --run, or give" in said
    assert {*np.array(found.texts)[found.greedy]} == {*np.array(other.texts)[other.greedy]}
    assert found.texts != other.texts
    # An untrained model in another run, for another class alone.
    model = json.loads((trained / SETTINGS).read_text())["language_model"]
    command = ["describe", "write", place, "--language-model", model, "--class-key", "kind", "--classes", "square"]
    head = (store.layers[-1], 1)
    command += ["--tokens", "2", "--run", "plain", "--head", "L{}.H{}".format(*head)]
    capsys.readouterr()
    assert main([*command, *options]) == 0, capsys.readouterr().err
    plain = read_descriptions(place, "plain")
    assert (plain.classes, plain.target.heads, plain.adapter_sha256) == (("square",), (head,), None)
    assert plain.quality["kl"] == 0.0
    assert "gain" not in plain.quality
    capsys.readouterr()
    assert main(["describe", "show", place, "--run", "small.trained", "--class", "circle", "--count", "1"]) == 0
    shown = capsys.readouterr().out
    best = max(zip(found.rewards, found.texts, found.class_of, strict=True), key=lambda row: (row[2] == 0, row[0]))
    assert f"{best[0]:.2f}" in shown.split("\ncircle\n")[1]
    best_untrained = found.best_rewards[:2].argmax()
    assert shown.endswith(f"best of 4 answers to a question, untrained: {found.best_texts[best_untrained]}\n")
    assert "square" not in shown.split("\ncircle\n")[1]
    words = ["describe", "show", place, "--run", "small.trained", "--class", "circle", "--count", "1"]
    assert printed_in_bucket(words, store.path, capsys) == shown
    assert main(["describe", "show", place]) == 0
    assert "five: trained" in (shown := capsys.readouterr().out)
    assert "plain: untrained" in shown


def hand_made(rewards: np.ndarray, texts: Sequence[str], ratios: np.ndarray | None = None, **changed: Any) -> Samples:
    shape = rewards.shape
    zeros = np.zeros(shape)
    found = Samples(
        tuple(texts), rewards, zeros if ratios is None else ratios, zeros.astype(int) + 3, zeros == 0, zeros == 1
    )
    return replace(found, **changed)


def test_equal_texts_are_one_entry_with_their_number_and_the_greedy_one_is_marked() -> None:
    rows = every_prompt(["x"], ["{c}?", "{c}!"])
    texts = ["b", "a", "a", "c", "c", "d", "d", "d"]
    rewards = np.array([[1.0, 2.0, 2.0, 9.0], [9.0, 4.0, 4.0, 4.0]])
    ratios = np.array([[0.0, 1.0, 3.0, 0.0], [0.5, 0.25, 0.5, 0.75]])
    samples = hand_made(rewards, texts, ratios)
    greedy = hand_made(np.array([[2.0], [7.0]]), ["a", "new"], np.array([[5.0], [6.0]]))
    found = entries_of(samples, greedy, rows)
    # The most frequent first, then the best.
    assert found["texts"] == ("a", "c", "b", "d", "c", "new")
    assert found["times"].tolist() == [2, 1, 1, 3, 1, 0]
    assert found["greedy"].tolist() == [True, False, False, False, False, True]
    assert found["question_of"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found["rewards"].tolist() == [2.0, 9.0, 1.0, 4.0, 9.0, 7.0]
    assert found["log_ratios"].tolist() == [2.0, 0.0, 0.0, 0.5, 0.5, 6.0]


def test_diversity_is_compared_at_equal_numbers_and_equal_kl_is_nan_without_enough_samples() -> None:
    random = np.random.default_rng(0)
    own = hand_made(random.normal(3, 1, (6, 2)), ["a b", "a b"] * 6, np.full((6, 2), 5.0))
    many = [f"{first} {second}" for first, second in itertools.product("abcdefgh", "stuvwxyzabcd")][:96]
    other = hand_made(random.normal(0, 1, (6, 16)), many)
    quality = quality_of(own, hand_made(np.ones((6, 1)), ["a"] * 6), 0) | compared_with(own, other, 0)
    assert quality["distinct_2"] == 1 / 12
    # Two texts of each prompt.
    first = [text for prompt in range(6) for text in many[16 * prompt : 16 * prompt + 2]]
    assert quality["untrained_distinct_1"] == distinct(first, 1) != distinct(many, 1)
    assert math.isnan(quality["equal_kl_n"])
    assert "gain_equal_kl" not in quality
    assert "best_of_32_reward" not in quality
    assert quality["gain_low"] < quality["gain"] < quality["gain_high"]
    # A bootstrap of means of 6 prompts is as wide as the normal interval, within a factor.
    means = own.rewards.mean(axis=1)
    width = 2 * 1.96 * means.std() / math.sqrt(6)
    assert quality["reward_high"] - quality["reward_low"] == pytest.approx(width, rel=0.15)
    near = compared_with(replace(own, log_ratios=np.full((6, 2), 1.0)), other, 0)
    assert near["equal_kl_n"] == pytest.approx(6.319, abs=1e-3)
    assert near["best_of_4_reward"] < near["equal_kl_reward"] < near["best_of_8_reward"]
    assert near["gain_equal_kl"] == pytest.approx(means.mean() - near["equal_kl_reward"])


class HandMadeTexts:
    """Texts whose vectors are given."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self._vectors = vectors

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vectors[text] for text in texts]).astype(np.float32)


def test_zero_shot_accuracy_is_that_of_the_mean_of_all_samples_and_of_images_that_no_reward_saw(
    store: hs.Store,
) -> None:
    numbers = np.arange(store.images) % 3 - 1
    classes = DescribedClasses(("one_thing", "two"), numbers, "key kind")
    random = np.random.default_rng(0)
    named = ("one thing", "two", "a photo of a one thing.", "a photo of a two.", "p", "q", "r")
    vectors = {text: each / np.linalg.norm(each) for text in named for each in [random.normal(size=store.joint)]}

    class HandMadeReward:
        def __init__(self) -> None:
            self.store, self.classes, self.texts = store, classes, HandMadeTexts(vectors)

    found = zero_shot_figures(HandMadeReward(), {"zero_shot": [["p", "q", "q"], ["r"]]}, 2)  # type: ignore[arg-type]
    embedding = store.embedding.astype(np.float64)

    def share(one: np.ndarray, two: np.ndarray, images: np.ndarray) -> float:
        ahead = embedding[images] @ (two / np.linalg.norm(two) - one / np.linalg.norm(one)) > 0
        return float((ahead == (numbers[images] == 1)).mean())

    every = np.flatnonzero(numbers >= 0)
    unseen = np.setdiff1d(every, np.concatenate([classes.images(0, 2), classes.images(1, 2)]))
    assert len(unseen) == len(every) - 4
    one = vectors["p"] / 3 + 2 * vectors["q"] / 3
    assert found["zero_shot"] == share(one, vectors["r"], every)
    assert found["zero_shot_unseen"] == share(one, vectors["r"], unseen)
    assert found["zero_shot_names"] == share(vectors["one thing"], vectors["two"], every)
    assert found["zero_shot_photo"] == share(vectors[named[2]], vectors[named[3]], every)
    assert found["zero_shot_chance"] == max(np.bincount(numbers[every])) / len(every)
    assert found["zero_shot_images"] == len(every)


def test_cut_descriptions_are_counted_and_told(reward: Reward, tmp_path: Path) -> None:
    # A long word takes so many tokens of CLIP that a description fills its context.
    long = "antidisestablishmentarianism"
    model = make_language_model(tmp_path / "long", [long, f"{long}{long}", "a"])
    events: list[Progress] = []
    options: dict[str, Any] = {"questions": ["{c}"], "samples": 20, "best_of": 0, "tokens": 24, "device": "cpu"}
    found = write(reward, model, **options, on_progress=events.append)
    cut = int(found.times[found.cut].sum())
    assert 0 < cut == round(found.quality["cut"] * 40) < 40
    # The context of 32 tokens, with room for the text to be longer.
    lengths = (open_clip.get_tokenizer("ViT-B-32")(found.texts, context_length=500) != 0).sum(dim=1).numpy()
    np.testing.assert_array_equal(found.cut, lengths >= 32)
    # Of the greedy answers, and of the sampled ones.
    assert [(event.done, event.total) for event in events if event.stage == "rewards"] == [(2, 2), (40, 40)]
    (note,) = (event.note for event in events if "filled" in event.note)
    assert note == f"{cut} of 40 descriptions filled the context of the store's model, so their ends may have been cut"
    assert not any(name.startswith(("best_of", "untrained", "gain")) for name in found.quality)
    assert found == found
    kinds = [json.loads(each)["kind"] for each in reward.store.samples(columns=["metadata"])["metadata"].to_pylist()]
    by_row = dict(zip(reward.store.rows.tolist(), kinds, strict=True))
    assert found.class_rows is not None
    for name, rows in zip(found.classes, found.class_rows.tolist(), strict=True):
        shown = [by_row[row] for row in rows if row >= 0]
        assert shown == [name] * min(8, kinds.count(name))
        assert len({*rows} - {-1}) == len(shown)
    again = write(reward, model, **options)
    assert (again.texts, again.quality) == (found.texts, found.quality)


def test_input_that_cannot_be_used_is_refused_in_a_sentence(
    store: hs.Store, reward: Reward, trained: Path, language_model: Path, tmp_path: Path
) -> None:
    for options, message in (
        ({"samples": 0}, "samples is 0, but must be 1 or more"),
        ({"best_of": -1}, "best_of is -1, but must be 0 or more"),
        ({"questions": []}, "the list of questions is empty"),
        ({"run": "a/b"}, "run name 'a/b': use letters"),
        ({"classes": reward.classes}, "a reward has its classes and its target; leave out classes and target"),
    ):
        with pytest.raises(SettingsError, match=message):
            write(reward, language_model, **options)
    with pytest.raises(ModelError, match=r"nothing: is not a language model that transformers can load"):
        write(reward, tmp_path / "nothing", device="cpu")
    with pytest.raises(SettingsError, match=r"class 'hexagon' has no images; the classes with images are circle, squa"):
        write(store, trained, classes=described_classes(store, key="kind", names=["hexagon"]))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / SETTINGS).write_text((trained / SETTINGS).read_text())
    with pytest.raises(StoreError, match=r"unfinished: the training is not finished; run the same headspan describe"):
        write(store, unfinished)
    made = json.loads((trained / SETTINGS).read_text()) | {"classes_from": "task mine"}
    other = tmp_path / "task"
    other.mkdir()
    for file in trained.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / SETTINGS).write_text(json.dumps(made))
    with pytest.raises(SettingsError, match=r"trained on the classes of task mine, which is not a task of headspan's"):
        write(store, other)


def test_the_command_wants_one_language_model(store: hs.Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "write", str(store.path)]) == 2
    assert "but neither is given; give one" in capsys.readouterr().err
    assert main(["describe", "write", str(store.path), "--trained", "a", "--language-model", "b"]) == 2
    assert "but both are given; give one" in capsys.readouterr().err


def test_the_quality_of_runs_has_a_row_for_each_baseline_in_the_order_of_kl() -> None:
    quality = {
        **hand_made_descriptions().quality,
        "best_of_2_reward": 19.0,
        "best_of_2_kl": 0.19,
        "best_of_128_reward": 22.0,
        "best_of_128_kl": 3.86,
        "equal_kl_n": 66.5,
        "equal_kl_reward": 21.1,
    }
    descriptions: Descriptions = hand_made_descriptions(quality=quality)
    rows = json.loads(quality_table(descriptions).as_json())
    assert [(row["source"], row["reward"], row["kl"]) for row in rows] == [
        ("untrained", 18.5, 0.0),
        ("best of 64", 21.0, 3.1746),
        ("trained", 21.9, 3.2),
        ("best of 66.5, equal KL", 21.1, 3.2),
        ("best of 128", 22.0, 3.86),
    ]
    assert rows[2]["zero_shot"] == 0.875
    assert rows[0]["distinct_1"] is None
    assert len(quality_table(descriptions, descriptions, every=True).rows) == 12
    untrained = hand_made_descriptions(adapter_sha256=None, quality={"reward": 18.5, "kl": 0.0})
    assert [row.source for row in quality_table(untrained).rows] == ["untrained"]


def test_a_run_says_how_many_samples_equal_kl_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for kl, said in (
        (5.0, "a KL of 5.00 takes the best of some 404 samples; write with that --best-of to compare"),
        (12.0, "a KL of 12.00 takes the best of some 442,414 samples; train with a larger --beta to compare"),
    ):
        quality = {**hand_made_descriptions().quality, "kl": kl, "equal_kl_n": math.nan}
        print_descriptions(hand_made_descriptions(quality=quality))
        assert f"no best-of-N at equal KL: {said}" in capsys.readouterr().out
