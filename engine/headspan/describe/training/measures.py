"""What is measured of descriptions: of those of a step, and of a model before and after its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from headspan.describe.policy.diversity import figures_of_texts
from headspan.describe.policy.policy import Policy
from headspan.describe.rewards.reward import Reward
from headspan.describe.training.prompts import spread

# The seed of the descriptions that a model is measured by; the same for all models that are compared.
_SEED = 0


def measured(texts: Sequence[str], rewards: Sequence[float], reward: Reward) -> dict[str, float]:
    """The mean and the spread of rewards, distinct-n, and the share of texts that the context of CLIP cuts."""
    return {
        "reward": float(np.mean(rewards)),
        "reward_std": float(np.std(rewards)),
        **figures_of_texts(texts, reward.texts.cut(texts)),
    }


def figures_of(
    policy: Policy, rows: Sequence[dict[str, Any]], reward: Reward, samples: int, tokens: int, batch: int
) -> dict[str, float]:
    """Figures of `samples` sampled descriptions, spread over all prompts; `_error` is a standard error of a mean.

    `kl` is the divergence from the untrained model in nats: the mean log-ratio of descriptions.
    """
    asked = spread(rows, samples)
    written = policy.write([row["prompt"] for row in asked], tokens=tokens, seed=_SEED, batch=batch)
    texts = [each.text for each in written]
    reward.texts.forget()
    rewards = reward.of(texts, [row["class_number"] for row in asked])
    ratios = np.array([each.log_probability - each.reference_log_probability for each in written])
    found = measured(texts, rewards.tolist(), reward)
    spread_of_reward = found.pop("reward_std")
    return {
        **found,
        "reward_error": spread_of_reward / math.sqrt(samples),
        "kl": float(ratios.mean()),
        "kl_error": float(ratios.std()) / math.sqrt(samples),
        "length": float(np.mean([each.tokens for each in written])),
        "ended": float(np.mean([each.ended for each in written])),
        "samples": float(samples),
    }
