"""A model prepared for a run: its tower on the device, and the layers and outputs to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headspan.config import PrecomputeSettings, parse_layers
from headspan.decode.batches import Batch
from headspan.errors import SettingsError
from headspan.head_names import parse_heads
from headspan.model.allocator import keep_freed_memory
from headspan.model.convert import to_tower, tower_without_numbers
from headspan.model.load import LoadedModel, load_model
from headspan.model.pruned import by_layer, pruned
from headspan.model.replayed import Replayed
from headspan.model.tower import PooledRow, Tower
from headspan.run.devices import named_devices, precision_on
from headspan.run.pixels import model_input
from headspan_kernels.switches import tower_graph

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The precision of a tower, by its type.
PRECISION_OF = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Encoder:
    """Computes from decoded pixels what the pooled row received."""

    model: LoadedModel
    # In float32 on the CPU; the fixed matrices are folded from it.
    exact: Tower
    # On the device, in the precision of the run.
    tower: Tower
    # The requested layers whose heads write to the embedding; and, if `through_pool` is emitted, the requested layers
    # whose heads reach it through an attention pooling.
    layers: tuple[int, ...]
    through_pool: tuple[int, ...]
    emit: tuple[str, ...]
    # The tower's pass on normalised pixels, with the layers and outputs above.
    forward: Callable[[Tensor], PooledRow]

    @property
    def device(self) -> torch.device:
        """The device that the tower is on."""
        return self.tower.projection.device

    def __call__(self, batch: Batch) -> PooledRow:
        """Encode a batch of decoded images. Raises SettingsError if the batch does not fit the GPU's memory."""
        try:
            return self._forward(batch)
        except torch.cuda.OutOfMemoryError as error:
            raise SettingsError(
                f"--batch-size {len(batch.rows)} does not fit the memory of {self.device}; give a smaller one, and "
                "the same command continues the run"
            ) from error

    def _forward(self, batch: Batch) -> PooledRow:
        return self.forward(model_input(batch.parts, self.model.preprocess, self.device, self.tower.dtype))


def prepare(settings: PrecomputeSettings, load: Callable[[], LoadedModel] | None = None) -> Encoder:
    """Load the model that the settings name, by `load` if it is given, and move its tower to their first device.

    Its precision is that of the settings, or the device's own for `auto`. Raises SettingsError if the device, the
    layers, the heads or the precision are not possible, and ModelError if the model cannot be loaded.
    """
    device = named_devices(settings.device)[0]
    precision = precision_on(device, settings.precision)
    # On a CPU, activations reuse freed memory. The Zarr shards that are being filled reuse it on any device.
    keep_freed_memory()
    matmul = torch.get_float32_matmul_precision()
    if device.type == "cuda" and precision == "fp32" and matmul != "highest":
        raise SettingsError(
            f"--precision fp32, but torch multiplies float32 matrices at precision {matmul!r}, which is TF32; call "
            "torch.set_float32_matmul_precision('highest') or ask for bf16"
        )
    model = load() if load else load_model(settings.model, settings.pretrained, settings.image_size)
    exact = pruned(to_tower(model.clip.visual, settings.model), parse_heads(settings.without, "--without"))
    layers, through_pool = _layers(settings, exact)
    tower = exact.to(device, DTYPES[precision])
    forward = partial(
        tower.forward,
        layers=layers,
        with_patches="patches" in settings.emit,
        with_terms="mlps" in settings.emit,
        through_pool=through_pool,
        # As the store holds them.
        patches_dtype=torch.float16,
    )
    return Encoder(
        model=model,
        exact=exact,
        tower=tower,
        layers=layers,
        through_pool=through_pool,
        emit=settings.emit,
        forward=Replayed(forward) if tower_graph(device, *tower.switch_key) else forward,
    )


def refuse_impossible(settings: PrecomputeSettings, config: dict[str, Any]) -> None:
    """Raise SettingsError for layers or heads that a model with this config does not have."""
    tower = tower_without_numbers(config)
    by_layer(tower, parse_heads(settings.without, "--without"))
    _layers(settings, tower)


def _layers(settings: PrecomputeSettings, tower: Tower) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers to store: direct ones, and those before an attention pooling if `through_pool` is emitted."""
    named = parse_layers(settings.layers, tower.layers)
    direct = tuple(layer for layer in named if layer in tower.direct_layers)
    through_pool = tuple(layer for layer in named if layer not in tower.direct_layers)
    if not direct:
        last = tower.layers - 1
        raise SettingsError(
            f"--layers {settings.layers}: {settings.model} pools by attention, and only the heads of layer {last}, the "
            f"pooling, write to the embedding; name it too, as in --layers {settings.layers},{last}"
        )
    if "through_pool" not in settings.emit:
        return direct, ()
    if tower.attention_pool is None:
        raise SettingsError(
            f"--emit through_pool: {settings.model} does not pool by attention, so the heads of every layer write to "
            "the embedding; leave it out"
        )
    if not through_pool:
        raise SettingsError(
            f"--emit through_pool needs a layer before the pooling, but --layers {settings.layers} has none; name some "
            f"of 0 to {tower.layers - 2}, or all"
        )
    return direct, through_pool
