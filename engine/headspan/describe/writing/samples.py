"""Sample descriptions of every class and question from a language model, and reward them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from headspan.describe.policy.policy import Policy
from headspan.describe.rewards.reward import Reward
from headspan.events import Listener, Progress, ignore

# Texts that are embedded between two events.
_REWARDED = 512


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Descriptions, as many for each prompt; a prompt is a question about a class. Texts are in the arrays' order."""

    texts: tuple[str, ...]
    rewards: Float64[np.ndarray, "prompt sample"]
    # Natural logarithm of the probability by the trained model, less that by the untrained one.
    log_ratios: Float64[np.ndarray, "prompt sample"]
    # Tokens of the language model.
    lengths: Int64[np.ndarray, "prompt sample"]
    ended: Bool[np.ndarray, "prompt sample"]
    # Whether the context of the vision-language model cuts it.
    cut: Bool[np.ndarray, "prompt sample"]

    def texts_of(self, prompt: int) -> tuple[str, ...]:
        """The texts of a prompt."""
        each = self.rewards.shape[1]
        return self.texts[prompt * each : (prompt + 1) * each]

    def first(self, count: int) -> Samples:
        """The first `count` samples of each prompt."""
        prompts = len(self.rewards)
        texts = tuple(text for prompt in range(prompts) for text in self.texts_of(prompt)[:count])
        arrays = (self.rewards, self.log_ratios, self.lengths, self.ended, self.cut)
        return Samples(texts, *(each[:, :count] for each in arrays))


def sample(
    policy: Policy,
    rows: Sequence[Mapping[str, Any]],
    reward: Reward,
    count: int,
    *,
    greedy: bool = False,
    untrained: bool = False,
    tokens: int,
    batch: int,
    seed: Sequence[int],
    stage: str,
    on_progress: Listener = ignore,
) -> Samples:
    """Sample `count` descriptions for every row of `every_prompt`, at temperature 1, or write the greedy one.

    Args:
        policy: The language model.
        rows: The prompts, each with the number of its class.
        reward: Rewards the descriptions.
        count: Descriptions for each prompt.
        greedy: Whether the most likely token is taken each time.
        untrained: Whether the adapter is switched off.
        tokens: The largest number of tokens of a description.
        batch: Descriptions that are written at the same time; the samples depend on it.
        seed: Numbers that decide the samples.
        stage: The name of the events.
        on_progress: A listener.

    Raises ModelError as `Policy.write` does.
    """
    # The samples of a prompt follow each other, so that most batches need no padding.
    prompts = [row["prompt"] for row in rows for _ in range(count)]
    classes = [row["class_number"] for row in rows for _ in range(count)]
    written = []
    # Without an adapter, the untrained model's probabilities are computed once.
    writer = Policy(policy.model, policy.tokenizer, policy.name) if untrained else policy
    with policy.untrained() if untrained else nullcontext():
        for start in range(0, len(prompts), batch):
            chunk = prompts[start : start + batch]
            number = int(np.random.SeedSequence([*seed, start]).generate_state(1)[0])
            written += writer.write(chunk, greedy=greedy, tokens=tokens, seed=number, batch=batch)
            on_progress(Progress(stage, len(written), len(prompts)))
    texts = tuple(each.text for each in written)
    rewards: list[float] = []
    cut: list[bool] = []
    for start in range(0, len(texts), _REWARDED):
        some = texts[start : start + _REWARDED]
        rewards += reward.of(some, classes[start : start + _REWARDED]).tolist()
        cut += reward.texts.cut(some)
        on_progress(Progress("rewards", len(rewards), len(texts)))
    shape = (len(rows), count)
    return Samples(
        texts,
        np.array(rewards).reshape(shape),
        np.array([each.log_probability - each.reference_log_probability for each in written]).reshape(shape),
        np.array([each.tokens for each in written], np.int64).reshape(shape),
        np.array([each.ended for each in written]).reshape(shape),
        np.array(cut).reshape(shape),
    )
