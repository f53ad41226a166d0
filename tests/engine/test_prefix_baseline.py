"""Advantages of tokens over descriptions with the same beginning: a plain formula, and gradients over all outcomes."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from headspan.describe.training.prefix_baseline import prefix_advantages

ANSWERS = [(1, 2, 3), (1, 2, 4), (1, 2, 4), (5,), (1, 3, 3, 3), (6, 6), (6, 7, 1), (6, 7, 1)]
PROMPTS = ["a", "a", "b", "a", "a", "b", "b", "b"]


def leave_one_out(values: np.ndarray) -> np.ndarray:
    """Each value less the mean of the others."""
    return np.array([value - np.delete(values, place).mean() for place, value in enumerate(values)])


def plain(row: int, token: int, rewards: np.ndarray) -> float:
    """The baseline of a token, from its definition: a mean of others with the same beginning, and of two like the one
    before."""
    values = [
        float(rewards[other])
        for other, answer in enumerate(ANSWERS)
        if other != row
        and PROMPTS[other] == PROMPTS[row]
        # An answer that has ended has no token here.
        and len(answer) > token
        and answer[:token] == ANSWERS[row][:token]
    ]
    if token:
        values += [plain(row, token - 1, rewards)] * 2
    return float(np.mean(values))


def test_a_token_is_compared_with_other_answers_of_the_same_beginning() -> None:
    rewards = np.random.default_rng(0).normal(size=len(ANSWERS))
    given = np.empty(len(ANSWERS))
    for prompt in {*PROMPTS}:
        own = [place for place, each in enumerate(PROMPTS) if each == prompt]
        given[own] = leave_one_out(rewards[own])
    found = prefix_advantages(torch.from_numpy(given), PROMPTS, ANSWERS, 5).numpy()
    assert found.shape == (8, 5)
    for row, answer in enumerate(ANSWERS):
        wanted = [rewards[row] - plain(row, token, rewards) for token in range(len(answer))]
        np.testing.assert_allclose(found[row, : len(answer)], wanted, atol=1e-12)
        assert not found[row, len(answer) :].any()
    np.testing.assert_allclose(found[:, 0], given, atol=1e-12)


class Tree:
    """All answers of some tokens 0 and 1 by a model that has a number of its own for the chance of each token 1."""

    def __init__(self, length: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.answers = [*product((0, 1), repeat=length)]
        begins = [begin for depth in range(length) for begin in product((0, 1), repeat=depth)]
        chances = {begin: self.random.uniform(0.2, 0.8) for begin in begins}
        self.p = np.ones(len(self.answers))
        # Derivatives of each token's log-probability by the logits of the chances.
        self.scores = np.zeros((len(self.answers), length, len(begins)))
        for row, answer in enumerate(self.answers):
            for token, value in enumerate(answer):
                chance = chances[answer[:token]]
                self.scores[row, token, begins.index(answer[:token])] = value - chance
                self.p[row] *= chance if value else 1 - chance

    def gradients(self, groups: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradient from each group of answers to one prompt: with a baseline for the prompt, and for beginnings."""
        given = np.array([leave_one_out(rewards[group]) for group in groups])
        prompts = np.repeat(np.arange(len(groups)), groups.shape[1]).tolist()
        drawn = [self.answers[place] for place in groups.ravel()]
        width = len(self.answers[0])
        found = prefix_advantages(torch.from_numpy(given.ravel()), prompts, drawn, width).numpy()
        of_tokens = np.broadcast_to(given[..., None], (*groups.shape, width)), found.reshape(*groups.shape, width)
        one, other = (
            np.stack(
                [np.einsum("at,atn->n", each, self.scores[group]) for each, group in zip(all_, groups, strict=True)]
            )
            for all_ in of_tokens
        )
        return one / groups.shape[1], other / groups.shape[1]

    def exact(self, rewards: np.ndarray) -> np.ndarray:
        """The gradient of the mean reward."""
        found: np.ndarray = np.einsum("a,a,an->n", self.p, rewards, self.scores.sum(axis=1))
        return found


def test_the_mean_gradient_over_all_outcomes_is_that_of_the_mean_reward() -> None:
    tree = Tree(3, seed=1)
    rewards = tree.random.normal(size=len(tree.answers))
    groups = np.array([*product(range(8), repeat=3)])
    for gradients in tree.gradients(groups, rewards):
        mean = tree.p[groups].prod(axis=1) @ gradients
        np.testing.assert_allclose(mean, tree.exact(rewards), atol=1e-12)


def test_gradients_of_sixteen_answers_whose_tokens_are_worth_something_each_have_less_noise() -> None:
    tree = Tree(6, seed=1)
    rewards = np.array(tree.answers) @ tree.random.normal(size=6)
    groups = tree.random.choice(len(tree.answers), p=tree.p, size=(150, 16))
    exact = tree.exact(rewards)
    by_prompt, by_prefix = (float(((each - exact) ** 2).sum(axis=1).mean()) for each in tree.gradients(groups, rewards))
    assert by_prefix < 0.85 * by_prompt
