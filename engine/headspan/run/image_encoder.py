"""The image tower of a store's model, which computes for a new image what the store holds of its own.

On a GPU the tower runs in the store's precision. On a CPU it runs in float32, since 16-bit passes are slow there and
less exact. A tower stays in the process for further images; at most two are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from headspan.config import AUTO, Preprocess
from headspan.decompose.contributions import contributions
from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.model.allocator import keep_freed_memory
from headspan.model.convert import to_tower
from headspan.model.kept import LastUsed, forget_kept_models, kept_model, model_key
from headspan.model.pruned import pruned
from headspan.model.tower import Tower
from headspan.run.devices import named_devices
from headspan.run.encoder import DTYPES, PRECISION_OF
from headspan.run.pixels import model_input
from headspan.store.reader import Store
from headspan.store.schema import without_heads

_KEPT = 2


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """A tower on its device, with the preprocessing of its images."""

    tower: Tower
    preprocess: Preprocess

    @property
    def precision(self) -> str:
        """The precision of the forward pass: fp32, bf16 or fp16."""
        return PRECISION_OF[self.tower.dtype]

    def encode(
        self, pixels: UInt8[np.ndarray, "height width_px 3"], layers: Sequence[int], with_patches: bool
    ) -> dict[str, np.ndarray]:
        """What a store holds of an image, by array: one forward pass over pixels decoded as the store's images were.

        `norm`, `embedding` and `heads` are float32; `patches` `[layer, token, head, head_dim]` are float16.
        Raises SettingsError if its numbers exceed the range of the precision, or if the GPU's memory is full.
        """
        device = self.tower.projection.device
        try:
            given = model_input([pixels[None]], self.preprocess, device, self.tower.dtype)
            row = self.tower.forward(given, layers, with_patches=with_patches, patches_dtype=torch.float16)
            found = contributions(row, self.tower)
        except torch.cuda.OutOfMemoryError as error:
            raise _full(device) from error
        if not found.good.all():
            raise SettingsError(f"the image's numbers are too large for {self.precision}")
        arrays = {name: array[0] for name, array in found.arrays.items()}
        arrays["heads"] = found.heads[0].cpu().numpy()
        if with_patches:
            arrays["patches"] = arrays["patches"].swapaxes(1, 2)
        return arrays


_encoders: LastUsed[ImageEncoder] = LastUsed(_KEPT)


def image_encoder(store: Store, weights: str | Path | None = None, on_progress: Listener = ignore) -> ImageEncoder:
    """The encoder of a store's model, loaded at the first call for that model and precision.

    `weights` is as in `text_vectors`. Raises ModelError if the model cannot be loaded or is not the store's.
    """
    attributes = store.attributes
    device = named_devices(AUTO)[0]
    precision = computed_precision(device.type, attributes["precision"])
    without = without_heads(attributes)

    def make() -> ImageEncoder:
        keep_freed_memory()
        model = kept_model(attributes, store.path, weights, on_progress)
        exact = pruned(to_tower(model.clip.visual, model.name), without)
        try:
            return ImageEncoder(exact.to(device, DTYPES[precision]), model.preprocess)
        except torch.cuda.OutOfMemoryError as error:
            raise _full(device) from error

    return _encoders.get(f"{model_key(attributes, weights)} {precision} {without}", make)


def _full(device: torch.device) -> SettingsError:
    return SettingsError(f"the memory of {device} is full; set CUDA_VISIBLE_DEVICES= to compute images on the CPU")


def computed_precision(device: str, stored: str) -> str:
    """The precision in which an image is encoded on a device of that type for a store of precision `stored`."""
    return stored if device == "cuda" else "fp32"


def forget_models() -> None:
    """Free the memory of all models that queries have loaded."""
    _encoders.clear()
    forget_kept_models()
