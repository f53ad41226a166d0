"""A store's image model through which gradients flow, from pixels in [0, 1] to the embedding.

The model's normalisation is part of the pass, so that distances between pixels are in units of the full range. All of
it is float32, on PyTorch's own ops, since the fast ops of other passes have no gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from headspan.config import AUTO
from headspan.events import Listener, ignore
from headspan.model.convert import to_tower
from headspan.model.kept import kept_model
from headspan.model.pruned import pruned
from headspan.model.steps import Steps, summed
from headspan.run.devices import named_devices
from headspan.store.reader import Store
from headspan.store.schema import without_heads
from headspan_kernels import reference


@dataclass(frozen=True, slots=True)
class _Differentiable(Steps):
    """A tower on PyTorch's own ops on every device."""

    @property
    def ops(self) -> ModuleType:
        return reference


@dataclass(frozen=True, slots=True)
class LiveModel:
    """The tower on its device, and the mean and standard deviation by which it normalises pixels in [0, 1]."""

    tower: Steps
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    @classmethod
    def of(
        cls, store: Store, on_progress: Listener = ignore, weights: str | Path | None = None, device: str = AUTO
    ) -> LiveModel:
        """The model of a store, without the heads that it was made without. Raises as `kept_model` does."""
        on = named_devices(device)[0]
        model = kept_model(store.attributes, store.path, weights, on_progress)
        tower = pruned(to_tower(model.clip.visual, model.name), without_heads(store.attributes))
        tower = tower.to(on, torch.float32)
        plain = _Differentiable(**{each.name: getattr(tower, each.name) for each in fields(tower)})
        mean, std = (
            torch.tensor(each, device=on)[:, None, None] for each in (model.preprocess.mean, model.preprocess.std)
        )
        return cls(plain, mean, std)

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return self.mean.device

    def embed(self, pixels: Float[Tensor, "image 3 height width_px"]) -> Float[Tensor, "image joint"]:
        """The embeddings, not normalised, of pixels in [0, 1]."""
        tower = self.tower
        pooling = tower.equal_pooling(self.device)
        x, added = tower.embed((pixels - self.mean) / self.std), None
        for layer in range(len(tower.blocks)):
            x, added = tower.after_heads(layer, *tower.attend_layer(layer, x, added, pooling))
        x, pool = summed(x, added), tower.attention_pool
        if pool is not None:
            x = tower.after_pool(pool, tower.attend_in_pool(pool, x)[0])
        return tower.embedding_of(x, pooling)
