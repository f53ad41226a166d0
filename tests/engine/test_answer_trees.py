"""Answers in trees beside separate answers: log-probabilities, gradients, and the distribution of samples."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headspan.describe.policy import trees
from headspan.describe.policy.load import load_language_model
from headspan.describe.policy.policy import Policy
from tests.engine.tiny_language_model import make_language_model

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [[3], [3], [4, 5, 3], [3], [4, 5, 3], [6, 4], [4, 5, 3]]
ANSWERS = [[4, 5, 1], [4, 6, 4, 1], [5], [4, 5, 1], [3, 3, 3, 3, 3], [1], [3, 3, 4]]
END = 1


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("language") / "model"
    model, tokenizer = load_language_model(make_language_model(folder, ["a", "b", "c", "d"], layers=2))
    return model.eval(), tokenizer


def separate(model: Any, prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of one answer, by the model's plain pass."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chances = torch.softmax(logits.double(), dim=-1)
    return chances[range(len(answer)), answer].log(), -(chances * chances.log()).sum(dim=-1)


@pytest.mark.parametrize(("answers", "tokens"), [(96, 8192), (2, 8192), (96, 5)])
def test_log_probabilities_and_gradients_in_trees_are_those_of_separate_answers(
    loaded: tuple[Any, Any], answers: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = loaded
    monkeypatch.setattr(trees, "_ANSWERS", answers)
    monkeypatch.setattr(trees, "_TOKENS", tokens)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25, -1.0, 0.75])
    found, entropies = trees.log_probabilities(model, PROMPTS, ANSWERS, 6)
    assert found.shape == (7, 6)
    expected = [separate(model, *each) for each in zip(PROMPTS, ANSWERS, strict=True)]
    for row, (log_p, entropy) in enumerate(expected):
        torch.testing.assert_close(found[row, : len(log_p)].double(), log_p, rtol=0, atol=1e-5)
        torch.testing.assert_close(entropies[row, : len(log_p)].double(), entropy, rtol=0, atol=1e-5)
        assert not found[row, len(log_p) :].any()
    names, values = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad((found.sum(dim=1) * weights).sum(), values)
    sums = torch.stack([log_p.sum() for log_p, _ in expected])
    for name, got, wanted in zip(names, gradients, torch.autograd.grad((sums * weights).sum(), values), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_samples_have_the_distribution_of_the_model(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    prompt, count, longest = [4, 3], 3000, 3
    with torch.no_grad():
        drawn = trees.sample(model, [[6]] * 2 + [prompt] * count, longest, [END])
        # All texts of three tokens in one plain pass; what follows an end token does not count.
        texts = torch.tensor([*itertools.product(range(len(tokenizer)), repeat=longest)])
        whole = torch.cat([torch.tensor(prompt).repeat(len(texts), 1), texts], dim=1)
        steps = model(input_ids=whole).logits[:, len(prompt) - 1 : -1].double().log_softmax(dim=-1)
        steps = steps.gather(2, texts[..., None]).squeeze(2)
        exact: dict[tuple[int, ...], float] = {}
        for text, log_p in zip(texts.tolist(), steps, strict=True):
            length = text.index(END) + 1 if END in text else longest
            exact[*text[:length]] = float(log_p[:length].sum().exp())
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    found = Counter(map(tuple, drawn.answers[2:]))
    assert len(found) > 40
    assert {*found} <= {*exact}
    # Pearson's statistic over answers that are expected at least five times, and the rest together.
    often = [each for each, p in exact.items() if p * count >= 5]
    expected = [exact[each] * count for each in often]
    got = [found[each] for each in often]
    expected.append(count - sum(expected))
    got.append(count - sum(got))
    statistic = sum((one - other) ** 2 / other for one, other in zip(got, expected, strict=True))
    freedom = len(often)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    for answer, log_p in zip(drawn.answers[2::97], drawn.log_p[2::97], strict=True):
        with torch.no_grad():
            torch.testing.assert_close(
                torch.tensor(log_p).double(), separate(model, prompt, answer)[0], atol=1e-5, rtol=0
            )


def test_greedy_answers_are_those_of_generate(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    drawn = trees.sample(model, [[3], [4, 5, 3], [6, 4]], 7, [END], greedy=True)
    for prompt, answer in zip([[3], [4, 5, 3], [6, 4]], drawn.answers, strict=True):
        whole = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=7, eos_token_id=END, pad_token_id=0,
        )  # fmt: skip
        assert answer == whole[0, len(prompt) :].tolist()


def test_models_that_ignore_masks_write_one_answer_after_the_other(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    assert trees.takes_trees(model, [3, 4])
    assert not trees.takes_trees(model, [3, 3])
    greedy = Policy(model, tokenizer, "tiny").write(["a b", "c"], greedy=True, tokens=5)
    forward = type(model).forward

    @functools.wraps(forward)
    def without_mask(self: Any, *args: Any, attention_mask: Tensor | None = None, **others: Any) -> Any:
        tree = attention_mask is not None and attention_mask.dim() == 4
        return forward(self, *args, attention_mask=None if tree else attention_mask, **others)

    monkeypatch.setattr(type(model), "forward", without_mask)
    assert not trees.takes_trees(model, [3, 4])
    policy = Policy(model, tokenizer, "tiny")
    plain = policy.write(["a b", "c"], greedy=True, tokens=5)
    assert [each.text for each in plain] == [each.text for each in greedy]
    assert [each.log_probability for each in plain] == pytest.approx(
        [each.log_probability for each in greedy], abs=1e-4
    )
