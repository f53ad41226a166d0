"""The optimum over the grammar: against sums over all of its sentences."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import exact_optimum as module
from benchmarks.exact_optimum import ExactOptimum, Weighed, exact_optimum
from headspan.describe.policy.policy import Policy, open_policy
from headspan.describe.policy.reference import REFERENCE
from headspan.describe.training.prompts import every_prompt
from headspan.world.best_sentences import Enumerated
from headspan.world.sentences import sentences

ROWS = every_prompt(["circle", "star"], ["Describe the colours of a {c}."])


@pytest.fixture(scope="module")
def policy() -> Policy:
    return open_policy(REFERENCE)


@pytest.fixture(scope="module")
def enumerated() -> Enumerated:
    """Sentences of at most one value, with random vectors."""
    every = tuple(sentences(1))
    return Enumerated(every, np.random.default_rng(0).normal(size=(len(every), 3)).astype(np.float32))


@pytest.fixture(scope="module")
def reward() -> Any:
    return SimpleNamespace(scale=0.8, vectors=np.array([[1.0, 0.2, 0.0], [0.0, -0.5, 1.0]]))


@pytest.fixture(scope="module")
def log_p(policy: Policy, enumerated: Enumerated) -> np.ndarray:
    """Log-probabilities `[prompt, sentence]`, each from a pass of its own length."""
    found = []
    for row in ROWS:
        asked = policy.tokenizer(row["prompt"])["input_ids"]
        for each in enumerated.sentences:
            answer = [*policy.tokenizer(each.text)["input_ids"], policy.tokenizer.eos_token_id]
            with torch.inference_mode():
                logits = policy.model(input_ids=torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
            chosen = logits.double().log_softmax(dim=1)[torch.arange(len(answer)), torch.tensor(answer)]
            found.append(float(chosen.sum()))
    return np.array(found).reshape(len(ROWS), -1)


def test_the_optimum_is_the_sum_over_all_sentences(
    policy: Policy, enumerated: Enumerated, reward: Any, log_p: np.ndarray
) -> None:
    optimum = exact_optimum(reward, enumerated, policy, ROWS)
    assert optimum.covered == pytest.approx(np.exp(log_p).sum(axis=1).mean(), rel=1e-5)
    rewards = 0.8 * reward.vectors @ enumerated.vectors.T
    for beta in (0.2, 0.7):
        weights = np.exp(log_p + rewards / beta)
        shares = weights / weights.sum(axis=1, keepdims=True)
        expected = (shares * rewards).sum(axis=1)
        # The divergence from the untrained model, of which the sentences are a part.
        kl = (shares * np.log(shares / np.exp(log_p))).sum(axis=1)
        np.testing.assert_allclose(optimum.of(beta), [expected.mean(), kl.mean()], rtol=1e-4)
    best, beta = optimum.at_kl(3.0)
    assert optimum.of(beta)[1] == pytest.approx(3.0, abs=1e-6)
    assert optimum.of(1.1 * beta)[0] < best < optimum.of(0.9 * beta)[0]


def test_the_best_of_n_is_that_of_all_groups_of_samples() -> None:
    p, rewards = np.array([0.5, 0.2, 0.2, 0.1]), np.array([1.0, 2.0, 2.0, 5.0])
    weighed = Weighed(np.arange(4), np.log(p), rewards, np.zeros(1))
    optimum = ExactOptimum((weighed,))
    chosen = np.zeros(4)
    for group in itertools.product(range(4), repeat=3):
        best = [each for each in group if rewards[each] == rewards[[*group]].max()]
        for each in best:
            chosen[each] += p[[*group]].prod() / len(best)
    expected = chosen @ rewards, chosen @ np.log(chosen / p)
    np.testing.assert_allclose(optimum.best_of(3), expected)
    np.testing.assert_allclose(optimum.best_of(1), (p @ rewards, 0.0), atol=1e-12)
    reward, count = optimum.best_of_at_kl(expected[1])
    assert (reward, count) == (pytest.approx(expected[0]), pytest.approx(3.0))


def test_what_is_left_out_is_within_its_bound(
    policy: Policy, enumerated: Enumerated, reward: Any, log_p: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEFT_OUT", 0.01)
    optimum = exact_optimum(reward, enumerated, policy, ROWS)
    rewards = 0.8 * reward.vectors @ enumerated.vectors.T
    for row, each in enumerate(optimum.prompts):
        assert len(each.places) < len(enumerated.sentences)
        for place, beta in enumerate(module.BETAS):
            weights = np.exp(log_p[row] + (rewards[row] - rewards[row].max()) / beta)
            kept = weights[each.places].sum()
            # Compared with the sum of what was kept.
            assert (weights.sum() - kept) / kept <= each.left_out[place] * (1 + 1e-5)
