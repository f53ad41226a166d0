"""The settings of a training beside those of its learner, with defaults, and the learning rate of every step.

Defaults follow published recipes on CLIP's embeddings: Adam or AdamW with a learning rate of 4e-4 and batches of 1,024
pairs over 5 epochs (contrastive sparse representation, CSR), gradients clipped to length 1 (Matryoshka SAE). As in
SAELens, the rate rises at the start and falls to 0 over the last fifth of the steps. Small stores get more epochs,
since a dictionary needs some thousand steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headspan.errors import SettingsError, counted

EPOCHS, BATCH, LEAST_STEPS = 5, 1024, 2000
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a dictionary is trained. Trainings with equal settings, learners and pairs give equal weights."""

    # Steps of the optimiser.
    steps: int
    # Pairs in a batch; at most the pairs that there are.
    batch: int = BATCH
    # The largest learning rate.
    lr: float = 4e-4
    # Decoupled weight decay (AdamW); 0 is Adam.
    weight_decay: float = 0.0
    # The shares of the steps in which the rate rises linearly from 0, and falls linearly to 0 at the end.
    warmup: float = 0.05
    decay: float = 0.2
    # The length that gradients are cut to; 0 for none.
    clip: float = 1.0
    # The precision of the loss, fp32 or bf16; weights and sums stay float32.
    precision: str = "fp32"
    # Decides the first weights, the order of pairs, and what learners draw.
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("weight_decay", 0), ("clip", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if not self.lr > 0:
            raise SettingsError(f"lr is {self.lr}, but must be above 0")
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise SettingsError(
                f"warmup is {self.warmup} and decay {self.decay}, but they must be shares of the steps from 0 to 1"
            )
        if self.precision not in PRECISIONS:
            raise SettingsError(f"precision {self.precision!r} is unknown; choose from {', '.join(PRECISIONS)}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, which counts from 0."""
        rising, falling = self.warmup * self.steps, self.decay * self.steps
        factor = min(1.0, (step + 1) / rising if rising else 1.0, (self.steps - step) / falling if falling else 1.0)
        return self.lr * factor


def training_settings(
    pairs: int, precision: str, given: Mapping[str, Any], *, epochs: int | None, steps: int | None
) -> TrainingSettings:
    """The settings for a number of pairs: those given, and defaults. Raises SettingsError for unusable ones."""
    if epochs is not None and steps is not None:
        raise SettingsError(f"{counted(epochs, 'epoch')} and {counted(steps, 'step')}: give one of both")
    if epochs is not None and epochs < 1:
        raise SettingsError(f"epochs is {epochs}, but must be at least 1")
    known = {name: value for name, value in given.items() if value is not None}
    batch = known.get("batch", BATCH)
    if batch < 1:
        raise SettingsError(f"batch is {batch}, but must be at least 1")
    known["batch"] = min(batch, pairs)
    if steps is None:
        per_epoch = pairs // known["batch"]
        steps = per_epoch * epochs if epochs is not None else max(LEAST_STEPS, per_epoch * EPOCHS)
    return TrainingSettings(steps=steps, precision=precision, **known)


def different(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as "lr 0.001, now 0.0004"; None if all are equal as JSON."""
    for name in (*wanted, *(each for each in kept if each not in wanted)):
        before, now = (json.dumps(values.get(name), sort_keys=True) for values in (kept, wanted))
        if before != now:
            inner = [values.get(name) for values in (kept, wanted)]
            if all(isinstance(each, dict) for each in inner):
                return different(*inner)  # type: ignore[arg-type]
            return f"{name} {_short(before)}, now {_short(now)}"
    return None


def _short(value: str) -> str:
    plain = value.strip('"')
    return plain if len(plain) <= 60 else f"{plain[:57]}…"


def as_json(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON values."""
    return asdict(settings)
