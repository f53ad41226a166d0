"""Figures of sampled descriptions: reward, KL, length, diversity, and how they compare with the untrained model.

Intervals hold 95 % of the means over bootstrap samples of the prompts. Differences are paired: both sides answer the
same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from headspan.describe.descriptions.quality_table import BEST_OF
from headspan.describe.policy.diversity import figures_of_texts
from headspan.describe.writing.best_of import best_of, best_of_kl, best_of_mixture, count_at_kl
from headspan.describe.writing.samples import Samples
from headspan.prune.studies.statistics import LEVEL, resampling_counts


def quality_of(samples: Samples, greedy: Samples, seed: int) -> dict[str, float]:
    """The figures of the descriptions alone.

    `reward`, `reward_greedy`, `kl` (nats, from the untrained model), `length` (tokens), `ended` and `cut` (shares),
    `distinct_1` to `distinct_3` and `samples`; `_low` and `_high` are the ends of an interval.
    """
    return {
        **_with_interval({"reward": samples.rewards.mean(axis=1), "kl": samples.log_ratios.mean(axis=1)}, seed),
        "reward_greedy": float(greedy.rewards.mean()),
        **_plain(samples),
        "samples": float(samples.rewards.size),
    }


def compared_with(samples: Samples, untrained: Samples, seed: int, trained: bool = True) -> dict[str, float]:
    """The figures of the untrained model, of the best of its samples, and what the descriptions are better by.

    * `untrained_reward` and the others that `quality_of` gives, with the same number of samples where it matters.
    * `best_of_N_reward` and `best_of_N_kl`, for N of 2, 4, 8 and so on. The KL is the largest possible.
    * `equal_kl_n` and `equal_kl_reward`: best-of-N whose KL is that of the descriptions. They are NaN if that takes
      more samples than there are.
    * `gain`, `gain_best_of_64` and `gain_equal_kl`: the reward of the descriptions less that of each, with intervals.

    Without `trained`, the descriptions are those of the untrained model, and only the best of its samples is new.
    """
    own, others = samples.rewards.mean(axis=1), untrained.rewards
    most = others.shape[1]
    means: dict[str, Float64[np.ndarray, " prompt"]] = {}
    found: dict[str, float] = {}
    for count in (2**power for power in range(1, most.bit_length())):
        means[f"best_of_{count}_reward"] = best_of(others, count)
        found[f"best_of_{count}_kl"] = best_of_kl(count)
    gains: dict[str, str] = {}
    if trained:
        count_equal = count_at_kl(float(samples.log_ratios.mean()), most)
        found |= {"equal_kl_n": np.nan, "equal_kl_reward": np.nan}
        if count_equal is not None:
            found["equal_kl_n"] = count_equal
            means["equal_kl_reward"] = best_of_mixture(others, count_equal)
        means["untrained_reward"] = others.mean(axis=1)
        gains = {"gain": "untrained_reward", "gain_equal_kl": "equal_kl_reward"}
        gains |= {f"gain_best_of_{BEST_OF}": f"best_of_{BEST_OF}_reward"}
        found |= {f"untrained_{name}": value for name, value in _plain(_as_many(untrained, samples)).items()}
        found["untrained_samples"] = float(others.size)
    means |= {gain: own - means[name] for gain, name in gains.items() if name in means}
    return found | _with_interval(means, seed)


def _as_many(samples: Samples, like: Samples) -> Samples:
    """No more samples of each prompt than the others have, since diversity depends on their number."""
    return samples.first(like.rewards.shape[1])


def _plain(samples: Samples) -> dict[str, float]:
    return {
        "length": float(samples.lengths.mean()),
        "ended": float(samples.ended.mean()),
        **figures_of_texts(samples.texts, samples.cut),
    }


def _with_interval(means: Mapping[str, Float64[np.ndarray, " prompt"]], seed: int) -> dict[str, float]:
    """The mean of each over prompts, with its interval; the same draws for all."""
    names, values = [*means], np.stack([*means.values()])
    prompts = values.shape[1]
    drawn = np.concatenate([values @ counts.T / prompts for counts in resampling_counts(prompts, seed=seed)], axis=1)
    tails = (1 - LEVEL) / 2
    lows, highs = np.quantile(drawn, [tails, 1 - tails], axis=1)
    found: dict[str, float] = {}
    for place, name in enumerate(names):
        found |= {
            name: float(values[place].mean()),
            f"{name}_low": float(lows[place]),
            f"{name}_high": float(highs[place]),
        }
    return found
