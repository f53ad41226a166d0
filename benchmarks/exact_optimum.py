"""The best that any language model can do at a KL divergence from the untrained one, over all sentences of the grammar.

The optimum of reward less beta times KL is the untrained model's distribution times exp(reward / beta). The
probabilities come from a walk through the tree of all sentences, word by word, with a bound: what begins with an
improbable word and has no high reward is left out, and the share that is left out is bounded. Nothing is sampled.
Texts outside the grammar are not considered; `covered` says what probability the sentences have together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from headspan.describe.policy.policy import Policy
from headspan.describe.rewards.reward import Reward
from headspan.world.best_sentences import Enumerated

# The penalty whose optimum is the untrained model.
NO_REWARD = 1e9
# Penalties for which the sums are exact but for a share of at most LEFT_OUT for each branch.
BETAS = (0.1, 0.15, 0.2, 0.35, 0.5, 1.0, NO_REWARD)
LEFT_OUT = 3e-6
# Beginnings that are extended at the same time.
_BATCH = 512
_NONE = -1


@dataclass(frozen=True, slots=True)
class Weighed:
    """Sentences of a prompt that matter: their numbers, natural logarithms of their probabilities, and rewards."""

    places: Int64[np.ndarray, " kept"]
    log_p: Float64[np.ndarray, " kept"]
    rewards: Float64[np.ndarray, " kept"]
    # For each of BETAS, a bound for the share of the optimum that is left out.
    left_out: Float64[np.ndarray, " beta"]


@dataclass(frozen=True, slots=True)
class ExactOptimum:
    """The weighed sentences of every prompt, from which the optimum for each penalty follows."""

    prompts: tuple[Weighed, ...]

    @property
    def covered(self) -> float:
        """The probability of all sentences of the grammar together, a mean over prompts."""
        return float(np.mean([np.exp(each.log_p).sum() for each in self.prompts]))

    def of(self, beta: float) -> tuple[float, float]:
        """The reward and the KL of the optimum for a penalty, means over prompts."""
        found = []
        for each in self.prompts:
            share, log_z = _shares(each, beta)
            reward = float(share @ each.rewards)
            found.append((reward, reward / beta - log_z))
        reward, kl = np.mean(found, axis=0).tolist()
        return reward, kl

    def shares(self, beta: float) -> list[Float64[np.ndarray, " kept"]]:
        """The probability of each weighed sentence in the optimum, by prompt."""
        return [_shares(each, beta)[0] for each in self.prompts]

    def best_of(self, count: float) -> tuple[float, float]:
        """The reward and the KL of the best of `count` samples, means over prompts; between integers too.

        Samples outside the grammar are left out: the best of N is that of N sentences.
        """
        found = []
        for each in self.prompts:
            p = np.exp(each.log_p - np.logaddexp.reduce(each.log_p))
            levels, level_of = np.unique(each.rewards, return_inverse=True)
            of_level = np.bincount(level_of, weights=p)
            below = np.cumsum(of_level)
            chosen = np.diff(below**count, prepend=0.0)
            kept = chosen > 0
            # Within a level, shares stay in proportion, so levels have the divergence of sentences.
            kl = float(chosen[kept] @ np.log(chosen[kept] / of_level[kept]))
            found.append((float(chosen @ levels), kl))
        reward, kl = np.mean(found, axis=0).tolist()
        return reward, kl

    def at_kl(self, kl: float) -> tuple[float, float]:
        """The largest reward that is possible at a KL, a mean over prompts, and the penalty of that optimum."""
        inverse = _root(lambda inverse: self.of(1 / inverse)[1], kl, 1e-3, 1 / min(BETAS))
        return self.of(1 / inverse)[0], 1 / inverse

    def best_of_at_kl(self, kl: float) -> tuple[float, float]:
        """The reward of the best of N samples at a KL, a mean over prompts, and that N."""
        count = _root(lambda count: self.best_of(count)[1], kl, 1.0, 1e6)
        return self.best_of(count)[0], count


def _root(rising: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a rising function of a positive number has a value; the end that is nearer if it has not."""
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rising(middle) > value else (middle, high)
    return low


def _shares(each: Weighed, beta: float) -> tuple[Float64[np.ndarray, " kept"], float]:
    """Probabilities in the optimum, and the logarithm of their sum before they are divided by it."""
    weights = each.log_p + each.rewards / beta
    log_z = float(np.logaddexp.reduce(weights))
    return np.exp(weights - log_z), log_z


def exact_optimum(
    reward: Reward, enumerated: Enumerated, policy: Policy, rows: Sequence[Mapping[str, Any]]
) -> ExactOptimum:
    """Weigh the sentences for every prompt of `every_prompt`; `policy` is the untrained model."""
    tree = _Tree([each.text for each in enumerated.sentences], policy.tokenizer)
    rewards = reward.scale * (enumerated.vectors.astype(np.float64) @ reward.vectors.T)
    return ExactOptimum(tuple(_weighed(tree, policy, row["prompt"], rewards[:, row["class_number"]]) for row in rows))


class _Tree:
    """All sentences as token numbers, in lexicographic order, so that those with the same beginning are neighbours."""

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        numbers = [[*each, tokenizer.eos_token_id] for each in tokenizer(list(texts))["input_ids"]]
        self.end = tokenizer.eos_token_id
        rows = np.full((len(numbers), max(map(len, numbers))), _NONE, np.int64)
        for place, each in enumerate(numbers):
            rows[place, : len(each)] = each
        self.order = np.lexsort(rows.T[::-1])
        self.tokens = rows[self.order]
        differs = np.ones(rows.shape, bool)
        differs[1:] = np.logical_or.accumulate(self.tokens[1:] != self.tokens[:-1], axis=1)
        # For each depth, where its beginnings start.
        self.starts = [np.flatnonzero(column) for column in differs.T]

    def children(self, depth: int, parents: Int64[np.ndarray, " node"]) -> tuple[np.ndarray, np.ndarray]:
        """Beginnings of `depth` + 1 tokens, as their first rows, and the place of each one's parent in `parents`."""
        above = np.zeros(1, np.int64) if depth == 0 else self.starts[depth - 1]
        ends = np.append(above, len(self.order))[np.searchsorted(above, parents) + 1]
        here = self.starts[depth]
        first, last = np.searchsorted(here, parents), np.searchsorted(here, ends)
        return (
            np.concatenate([here[one:other] for one, other in zip(first, last, strict=True)]),
            np.repeat(np.arange(len(parents)), last - first),
        )


@dataclass(frozen=True, slots=True)
class _Branch:
    """Beginnings of the same length, and the model's state before the last token of each."""

    depth: int
    nodes: Int64[np.ndarray, " node"]
    log_p: Float64[np.ndarray, " node"]
    # The state of their parents, and which parent each one has.
    cache: Any = None
    parents: Any = None


@torch.inference_mode()
def _weighed(tree: _Tree, policy: Policy, prompt: str, rewards: Float64[np.ndarray, " sentence"]) -> Weighed:
    best = [np.maximum.reduceat(rewards[tree.order], starts) for starts in tree.starts]
    inverse = 1 / np.array(BETAS)

    def bounds(depth: int, nodes: np.ndarray, log_p: np.ndarray) -> Float64[np.ndarray, "node beta"]:
        """Of each beginning of `depth` tokens, more than what any sentence that it begins adds to the sums."""
        found: Float64[np.ndarray, "node beta"] = (
            log_p[:, None] + best[depth - 1][np.searchsorted(tree.starts[depth - 1], nodes), None] * inverse
        )
        return found

    # Sums of what was found grow; what is left out is compared with the sum so far, and in the end with the whole.
    log_z, left_out = np.full(len(BETAS), -np.inf), np.full(len(BETAS), -np.inf)
    places, found = [], []
    pending = [_Branch(0, np.zeros(1, np.int64), np.zeros(1))]
    while pending:
        branch = pending.pop()
        if branch.depth:
            bound = bounds(branch.depth, branch.nodes, branch.log_p)
            kept = (bound > np.log(LEFT_OUT) + log_z).any(axis=1)
            left_out = np.logaddexp(left_out, np.logaddexp.reduce(bound[~kept], axis=0, initial=-np.inf))
            if not kept.any():
                continue
            branch = replace(branch, nodes=branch.nodes[kept], log_p=branch.log_p[kept], parents=branch.parents[kept])
        depth, (logits, cache) = branch.depth, _after(branch, tree, policy, prompt)
        children, parents = tree.children(depth, branch.nodes)
        tokens = tree.tokens[children, depth]
        log_p = branch.log_p[parents] + logits[parents, tokens]
        ends = tokens == tree.end
        places.append(tree.order[children[ends]])
        found.append(log_p[ends])
        finished = bounds(depth + 1, children[ends], log_p[ends])
        log_z = np.logaddexp(log_z, np.logaddexp.reduce(finished, axis=0, initial=-np.inf))
        rest = np.flatnonzero(~ends)
        if len(rest):
            # The branches with the largest bounds are followed first, so that the sums are soon large.
            bound = bounds(depth + 1, children[rest], log_p[rest])
            rest = rest[np.argsort((bound - bound.max(axis=0)).max(axis=1), kind="stable")]
        for start in range(0, len(rest), _BATCH):
            some = rest[start : start + _BATCH]
            pending.append(_Branch(depth + 1, children[some], log_p[some], cache, parents[some]))
    every = np.concatenate(places)
    return Weighed(every, np.concatenate(found), rewards[every], np.exp(left_out - log_z))


def _after(branch: _Branch, tree: _Tree, policy: Policy, prompt: str) -> tuple[Float64[np.ndarray, "node token"], Any]:
    """Log-probabilities of the token after each beginning, and the model's state there."""
    device = policy.model.device
    if branch.depth == 0:
        asked, cache = policy.tokenizer(prompt)["input_ids"], None
        tokens = torch.tensor([asked], device=device)
    else:
        # Growing a state puts new tensors into its layers, so the tensors of the parents' state stay as they are.
        cache = copy.copy(branch.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(torch.from_numpy(branch.parents).to(device))
        tokens = torch.from_numpy(tree.tokens[branch.nodes, branch.depth - 1])[:, None].to(device)
    result = policy.model(input_ids=tokens, cache=cache, use_cache=True)
    return result.logits[:, -1].double().log_softmax(dim=1).cpu().numpy(), result.cache
