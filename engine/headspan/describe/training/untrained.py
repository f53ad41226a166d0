"""Answers of the untrained model with their rewards, of which each step trains on some beside the model's own.

A text that has a high reward for one class is rare among the model's own descriptions until training has made it
frequent, so it is learned late, if at all. Among hundreds of descriptions by the untrained model there are a few.
RLOO's update is 0 for texts from anywhere once the model is the best for its penalty, so they need no correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from headspan.describe.policy.policy import Policy
from headspan.describe.rewards.reward import Reward
from headspan.describe.training.settings import TrainingSettings

# The seed of the answers, and descriptions that are written at the same time.
_SEED, _BATCH = 1, 512
# Answers are drawn in proportion to exp(reward / scale), in units of reward.
_SCALE = 0.5
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UntrainedAnswers:
    """By prompt, as tokens: different answers, and their rewards."""

    answers: Mapping[Tokens, tuple[list[Tokens], Float64[np.ndarray, " answer"]]]
    seed: int

    def draw(self, prompt: Sequence[int], count: int, step: int, place: int) -> list[list[int]]:
        """Answers to a prompt for a place in a step, all different unless there are fewer."""
        answers, rewards = self.answers[tuple(prompt)]
        random = np.random.default_rng([self.seed, step, place])
        # The largest of these are a draw without replacement (Kool et al., arXiv 1903.06059).
        order = np.argsort(-(rewards / _SCALE + random.gumbel(size=len(rewards))))
        return [[*answers[each]] for each in np.resize(order, count)]


def untrained_answers(
    policy: Policy, rows: Sequence[Mapping[str, Any]], reward: Reward, settings: TrainingSettings
) -> UntrainedAnswers:
    """Sample answers to each prompt of `every_prompt` from the untrained model, and reward them."""
    every = [row for row in rows for _ in range(settings.untrained_samples)]
    written = policy.write([row["prompt"] for row in every], tokens=settings.tokens, seed=_SEED, batch=_BATCH)
    reward.texts.forget()
    rewards = reward.of([each.text for each in written], [row["class_number"] for row in every])
    asked = policy.tokenizer([row["prompt"] for row in rows])["input_ids"]
    found: dict[Tokens, tuple[list[Tokens], Float64[np.ndarray, " answer"]]] = {}
    for number, prompt in enumerate(asked):
        own = range(number * settings.untrained_samples, (number + 1) * settings.untrained_samples)
        different = {written[place].answer: float(rewards[place]) for place in own}
        found[tuple(prompt)] = [*different], np.array([*different.values()])
    return UntrainedAnswers(found, settings.seed)
