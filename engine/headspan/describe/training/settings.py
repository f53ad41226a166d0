"""Settings of a training by reinforcement: the method, its penalty, its steps, and the size of the adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from headspan.describe.policy.tokens import TOKENS
from headspan.errors import SettingsError

RLOO, GRPO = "rloo", "grpo"
METHODS = (RLOO, GRPO)
PREFIX, PROMPT = "prefix", "prompt"
BASELINES = (PREFIX, PROMPT)
# As in the published run.
STEPS, BATCH = 1000, 32
# Penalties of the frontier of reward against divergence.
BETAS = (0.02, 0.05, 0.2)


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a language model is trained. Raises SettingsError for values that cannot be used.

    `rloo` subtracts `beta` times the description's log-ratio, trained over untrained, from its reward, and compares
    it with the mean of the other descriptions of the same prompt (Ahmadian et al., arXiv 2402.14740). Unless `baseline`
    is `prompt`, it compares each token with those descriptions only that have the same tokens before it. `grpo` adds
    the penalty to the loss instead, token by token, and does not divide rewards by their spread (Shao et al.,
    arXiv 2402.03300; Liu et al., arXiv 2503.20783).
    """

    method: str = RLOO
    # What RLOO compares a token with: the other descriptions with the same tokens before it, or all others of its
    # prompt, as published. The mean of the gradient is the same.
    baseline: str = PREFIX
    # The weight of the divergence from the untrained model, in units of reward for each nat.
    beta: float = 0.05
    steps: int = STEPS
    # Descriptions in a step, and how many of them answer the same prompt.
    batch: int = BATCH
    generations: int = 4
    # How many of those of a prompt are the untrained model's, the better ones more often; and how many answers to a
    # prompt are sampled from it, to draw from. RLOO only.
    untrained: int = 0
    untrained_samples: int = 512
    # Descriptions in one forward and backward pass; None for the whole batch. Smaller ones need less memory.
    mini_batch: int | None = None
    # The largest number of tokens of a description.
    tokens: int = TOKENS
    lr: float = 2e-4
    # The part of all steps, at their end, in which the rate falls linearly to 0; 0 for a constant rate, as published.
    decay: float = 0.0
    # AdamW's memory of squared gradients. At the usual 0.999, the large ones of the first steps slow down the others.
    adam_beta2: float = 0.999
    # The length that gradients are cut to.
    clip: float = 1.0
    # The adapter's rank, its scale, and the share of its inputs that training drops; as in the published run.
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SettingsError(f"training method {self.method!r} is unknown; choose from {', '.join(METHODS)}")
        if self.baseline not in BASELINES:
            raise SettingsError(f"baseline {self.baseline!r} is unknown; choose from {', '.join(BASELINES)}")
        for name in ("steps", "batch", "untrained_samples", "tokens", "rank", "alpha"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise SettingsError(f"beta is {self.beta}, but must be 0 or more")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value}, but must be above 0")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout is {self.dropout}, but must be a share from 0 to below 1")
        if not 0 <= self.decay <= 1:
            raise SettingsError(f"decay is {self.decay}, but must be a share from 0 to 1")
        if not 0 <= self.adam_beta2 < 1:
            raise SettingsError(f"adam_beta2 is {self.adam_beta2}, but must be at least 0 and below 1")
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}, but must be 0 or more")
        if self.generations < 2:
            raise SettingsError(
                f"generations is {self.generations}, but a description is compared with others of its prompt, so it "
                "must be at least 2"
            )
        if not 0 <= self.untrained <= self.generations - 2:
            raise SettingsError(
                f"untrained is {self.untrained} and generations {self.generations}, but at least 2 descriptions of a "
                "prompt must be the model's own; choose a smaller number"
            )
        if self.untrained and self.method != RLOO:
            raise SettingsError(
                f"untrained is {self.untrained}, but only {RLOO} trains on the untrained model's answers; leave it out"
            )
        for name, part in (("generations", self.generations), ("mini_batch", self.per_pass)):
            if part < 1 or self.batch % part:
                raise SettingsError(
                    f"{name} is {part} and batch {self.batch}, but a batch must be a multiple of it; change one of them"
                )

    @property
    def per_pass(self) -> int:
        """Descriptions in one forward and backward pass."""
        return self.batch if self.mini_batch is None else self.mini_batch

    @property
    def prompts(self) -> int:
        """Prompts in a step."""
        return self.batch // self.generations

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Settings from what `as_json` gave, also before there was a choice of baselines."""
        values = {"baseline": PROMPT, **values}
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})
