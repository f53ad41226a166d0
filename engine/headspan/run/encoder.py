"""A model made ready for a run: its tower on the device, and what the settings ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from headspan.config import PrecomputeSettings, parse_layers
from headspan.errors import SettingsError
from headspan.model.allocator import keep_freed_memory
from headspan.model.convert import to_tower
from headspan.model.load import LoadedModel, load_model
from headspan.model.tower import PooledRow, Tower, normalise

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Encoder:
    """Decoded pixels in, what the pooled row received out."""

    model: LoadedModel
    # float32, on the CPU: what is folded from.
    exact: Tower
    tower: Tower
    # The layers that were asked for: those whose heads write to the embedding, and, where they are emitted,
    # those whose heads are carried through an attention pooling.
    layers: tuple[int, ...]
    carried: tuple[int, ...]
    emit: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where the tower lies."""
        return self.tower.projection.device

    def __call__(self, pixels: Sequence[UInt8[np.ndarray, "height width 3"]]) -> PooledRow:
        """Encode a batch of decoded images. Raises SettingsError where it does not fit the GPU."""
        try:
            return self._forward(pixels)
        except torch.cuda.OutOfMemoryError as error:
            raise SettingsError(
                f"--batch-size {len(pixels)} does not fit the memory of {self.device}; give a smaller one, and go on "
                "with the same command"
            ) from error

    def _forward(self, pixels: Sequence[UInt8[np.ndarray, "height width 3"]]) -> PooledRow:
        batch = torch.from_numpy(np.stack(pixels))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True)
        preprocess = self.model.preprocess
        return self.tower.forward(
            normalise(batch, preprocess.mean, preprocess.std, self.tower.dtype),
            self.layers,
            with_patches="patches" in self.emit,
            with_terms="mlps" in self.emit,
            carried=self.carried,
            # What the store keeps.
            patches_dtype=torch.float16,
        )


def prepare(settings: PrecomputeSettings, load: Callable[[], LoadedModel] | None = None) -> Encoder:
    """Put the tower of the model that the settings name, or that `load` loads, where they say."""
    device = _device(settings.device)
    # Of activations on a CPU, and of the shards being filled in any case.
    keep_freed_memory()
    kept = torch.get_float32_matmul_precision()
    if device.type == "cuda" and settings.precision == "fp32" and kept != "highest":
        raise SettingsError(
            f"--precision fp32, but torch multiplies float32 matrices at precision {kept!r}, which is TF32; call "
            "torch.set_float32_matmul_precision('highest') or ask for bf16"
        )
    model = load() if load else load_model(settings.model, settings.pretrained, settings.image_size)
    exact = to_tower(model.clip.visual, settings.model)
    layers, carried = _layers(settings, exact)
    return Encoder(
        model=model,
        exact=exact,
        tower=exact.to(device, _DTYPES[settings.precision]),
        layers=layers,
        carried=carried,
        emit=settings.emit,
    )


def _layers(settings: PrecomputeSettings, tower: Tower) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers that the settings name: the direct ones, and the carried ones where they are emitted."""
    named = parse_layers(settings.layers, tower.layers)
    direct = tuple(layer for layer in named if layer in tower.direct_layers)
    carried = tuple(layer for layer in named if layer not in tower.direct_layers)
    if not direct:
        last = tower.layers - 1
        raise SettingsError(
            f"--layers {settings.layers}: {settings.model} pools by attention, and the heads of layer {last}, the "
            f"pooling, alone write to the embedding; name it too, as in --layers {settings.layers},{last}"
        )
    if "through_pool" not in settings.emit:
        return direct, ()
    if tower.pool is None:
        raise SettingsError(
            f"--emit through_pool: {settings.model} does not pool by attention, so the heads of every layer write to "
            "the embedding; leave it out"
        )
    if not carried:
        raise SettingsError(
            f"--emit through_pool: of --layers {settings.layers} none is before the pooling; name some of 0 to "
            f"{tower.layers - 2}, or all"
        )
    return direct, carried


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"--device {name} is unknown; write auto, cpu or cuda:0")
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise SettingsError(f"--device {name}: torch sees {gpus} GPUs; use auto or cpu")
    return device
