"""The expected reward of the best of N sampled descriptions, for every N up to the number of samples, and its KL.

The expectation has no bias: it is the mean of the largest reward over all subsets of N of the n samples, which order
statistics give without drawing subsets. The KL divergence of best-of-N from the model that is sampled is at most
`log N − (N − 1)/N` nats, and equals it if no description is probable and rewards differ.
Source: Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", arXiv 2401.01879.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64


def best_of_kl(count: int) -> float:
    """The largest KL divergence, in nats, that choosing the best of `count` samples can have from the sampled model."""
    return math.log(count) - (count - 1) / count


def best_of(rewards: Float64[np.ndarray, "prompt sample"], count: int) -> Float64[np.ndarray, " prompt"]:
    """The expected largest reward of `count` samples of each prompt, estimated from all of its samples."""
    samples = rewards.shape[1]
    assert 1 <= count <= samples, (count, samples)
    # How probable it is that the sample of each rank, from the smallest, is the largest of a subset. The last rank is
    # in a share count/samples of the subsets, and is then the largest.
    ranks = np.arange(samples, 0, -1)
    steps = (ranks[1:] - count + 1) / ranks[1:]
    weights = count / samples * np.concatenate([[1.0], np.cumprod(np.maximum(steps, 0.0))])
    found: Float64[np.ndarray, " prompt"] = np.sort(rewards, axis=1)[:, ::-1] @ weights
    return found


def count_at_kl(kl: float, most: int) -> float | None:
    """The N, between integers too, whose `best_of_kl` is `kl`; None if that needs more than `most` samples.

    N + w stands for the best of N + 1 samples with probability w, and of N otherwise. Since KL is convex, the
    divergence of that mixture is at most the weighted mean of both. A negative `kl`, the noise of an estimate, is 0.
    """
    if kl > best_of_kl(most):
        return None
    lower, upper = 1, most
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (middle, upper) if best_of_kl(middle) <= kl else (lower, middle)
    if upper == lower:
        return float(lower)
    begin, end = best_of_kl(lower), best_of_kl(upper)
    return lower + min(1.0, max(0.0, kl - begin) / (end - begin))


def samples_for(kl: float) -> int:
    """A number of samples that is enough for `count_at_kl` to find this KL."""
    return max(1, math.ceil(math.exp(kl + 1)))


def best_of_mixture(rewards: Float64[np.ndarray, "prompt sample"], count: float) -> Float64[np.ndarray, " prompt"]:
    """`best_of` for what `count_at_kl` gave: between integers, the mean of both neighbours by their probability."""
    lower = int(count)
    share = count - lower
    found = best_of(rewards, lower)
    return found if not share else (1 - share) * found + share * best_of(rewards, lower + 1)
