"""The interface of all learners: one dictionary of features for both sides of a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from headspan.features.learners.settings import Settings

IMAGE, TEXT = 0, 1


class Learner(nn.Module, ABC):
    """Turns vectors into codes, and codes into vectors, with weights that both sides share.

    Parameters have SAELens' names: `W_enc` `[width, feature]`, `b_enc` `[feature]`, `W_dec` `[feature, width]`,
    `b_dec` `[width]`; a learner with an input bias for each side has `b_dec_text` too. State that a resumed training
    needs, such as how long features have been idle, is in buffers. `W_enc` lies in memory by feature: make tensors
    contiguous before they are written.
    """

    # The name under which users choose it.
    kind: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    # Whether codes can be turned back into vectors.
    decodes: ClassVar[bool] = True
    # Whether nothing can be learned without texts.
    needs_texts: ClassVar[bool] = False
    # What it was made with, as JSON, its width too: `make_learner(kind, **settings)` makes the same learner.
    settings: dict[str, Any]
    idle_steps: Int64[Tensor, " feature"]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings.as_json()
        self.dead_steps = settings.dead_steps
        # Steps of training since each feature was active.
        self.register_buffer("idle_steps", torch.zeros(settings.features, dtype=torch.int64))

    @classmethod
    def made(cls, settings: Any) -> Learner:
        """The learner of these settings, which are of `settings_type`."""
        return cls(settings)

    @abstractmethod
    def encode(self, vectors: Float[Tensor, "vector width"], side: int = IMAGE) -> Float[Tensor, "vector feature"]:
        """The codes of vectors of one side, IMAGE or TEXT: non-negative, most of them 0. A row depends on its vector
        alone, so that blocks may be of any size."""

    @abstractmethod
    def decode(self, codes: Float[Tensor, "vector feature"], side: int = IMAGE) -> Float[Tensor, "vector width"]:
        """The vectors that codes stand for. Learners without a decoder raise SettingsError."""

    @abstractmethod
    def directions(self) -> Float[Tensor, "feature width"] | None:
        """The unit direction of each feature; None without a decoder, where the mean of vectors weighted by a
        feature's codes takes its place."""

    def dead(self) -> Bool[Tensor, " feature"]:
        """Whether each feature has been idle for so long in training that it counts as dead."""
        return self.idle_steps >= self.dead_steps

    @torch.no_grad()
    def count_used(self, used: Int64[Tensor, " used"]) -> None:
        """Count a step of training in which these features were active; repetitions do not matter."""
        self.idle_steps.add_(1)
        self.idle_steps[used] = 0

    @abstractmethod
    def loss(
        self, images: Float[Tensor, "pair width"], texts: Float[Tensor, "pair width"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss over a batch of pairs, by name; `total` is what is minimised.

        Without texts, the images alone are learned. Drawing uses torch's generator of the device, which the training
        loop seeds and keeps, so that a resumed run draws the same. Called in training mode, it counts idle steps.
        """

    def start(self, images: Float[Tensor, "vector width"], texts: Float[Tensor, "vector width"] | None) -> None:
        """Set what depends on the data before the first step, such as the input biases, from a sample of vectors."""

    def after_step(self, step: int) -> None:
        """Keep the constraints on the weights after a step of the optimiser, such as decoder rows of unit length."""
