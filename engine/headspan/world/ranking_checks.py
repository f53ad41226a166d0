"""Check whether rankings of heads for a factor begin with the heads whose mean ablation hurts the factor.

One head at a time is replaced by its mean over the images (`prune.mean_ablated`), and every factor is classified anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32

from headspan.prune.direct.ablation import mean_ablated
from headspan.store.head_space import stored_heads
from headspan.store.reader import Store
from headspan.tasks.zero_shot import Classes
from headspan.world.checks import RankingCheck
from headspan.world.scores import rank_correlation, ranking_auc

# Bootstrap samples of the images, and the seed of their draws.
_SAMPLES, _SEED = 2000, 0
# A head hurts if this quantile of the bootstrapped losses is above zero.
_LOW = 0.025


def ranking_checks(
    store: Store,
    classes: Mapping[str, Classes],
    truths: Mapping[str, Sequence[str | None]],
    rankings: Mapping[str, Mapping[str, Float[np.ndarray, " head"]]],
) -> tuple[RankingCheck, ...]:
    """For every factor, how each of `rankings` ranks the heads that hurt.

    `rankings` has, by name and factor, a score for each head of the store, layer by layer. No head hurts a factor that
    the whole model does not name more often than chance, with 97.5 % of the bootstrap samples.
    """
    heads = stored_heads(store)
    known = {
        factor: (np.flatnonzero([truth is not None for truth in truths[factor]]), each)
        for factor, each in classes.items()
    }
    right = {
        factor: np.array([each.names.index(truth) for truth in truths[factor] if truth is not None])
        for factor, each in classes.items()
    }

    def margins(embeddings: Float32[np.ndarray, "images joint"]) -> dict[str, Float32[np.ndarray, " image"]]:
        return {
            factor: _margins(embeddings[images] @ each.vectors.T, right[factor])
            for factor, (images, each) in known.items()
        }

    random = np.random.default_rng(_SEED)
    whole = margins(store.embedding / store.norm[:, 2:])
    named = {factor: _above_chance(whole[factor] > 0, right[factor], random) for factor in classes}
    hurts: dict[str, list[bool]] = {factor: [] for factor in classes}
    losses: dict[str, list[float]] = {factor: [] for factor in classes}
    for head in heads:
        for factor, left in margins(mean_ablated(store, [head])).items():
            hurts[factor].append(named[factor] and _lost(whole[factor] > 0, left > 0, random))
            losses[factor].append(float((whole[factor] - left).mean()))
    found = []
    for factor in classes:
        scores = {name: each[factor] for name, each in rankings.items()}
        positive = np.array(hurts[factor])
        found.append(
            RankingCheck(
                factor,
                len(heads),
                tuple(head for head, each in zip(heads, hurts[factor], strict=True) if each),
                {name: ranking_auc(each, positive) for name, each in scores.items()},
                {name: rank_correlation(each, np.array(losses[factor])) for name, each in scores.items()},
            )
        )
    return tuple(found)


def _margins(scores: Float32[np.ndarray, "image class_"], right: np.ndarray) -> Float32[np.ndarray, " image"]:
    """The score of the right class minus the best other one; positive if the image is classified correctly."""
    images = np.arange(len(scores))
    own, others = scores[images, right], scores.copy()
    others[images, right] = -np.inf
    return own - others.max(axis=1)


def _lost(before: np.ndarray, after: np.ndarray, random: np.random.Generator) -> bool:
    """Whether accuracy falls in nearly all bootstrap samples of the images, drawn in pairs of before and after.

    A sample's loss depends on the numbers of images that became wrong and that became right only.
    """
    wrong, right = float((before & ~after).mean()), float((~before & after).mean())
    drawn = random.multinomial(len(before), [wrong, right, 1 - wrong - right], size=_SAMPLES)
    return bool(np.quantile(drawn[:, 0] - drawn[:, 1], _LOW) > 0)


def _above_chance(correct: np.ndarray, truths: np.ndarray, random: np.random.Generator) -> bool:
    """Whether nearly all bootstrap samples of the images are named more often than the most common value occurs."""
    chance = np.bincount(truths).max()
    return bool(np.quantile(random.binomial(len(correct), correct.mean(), size=_SAMPLES), _LOW) > chance)
