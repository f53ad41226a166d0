"""Replace every `auto` of a run's settings by a value that suits the device, the model and the memory.

A store that exists answers first, so that a run which resumes computes the same bytes. `resolved` gives plain numbers
to everything after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from headspan.config import AUTO, PrecomputeSettings, ResolvedSettings
from headspan.model.tower import Tower
from headspan.run.devices import in_words, named_devices
from headspan.run.encoder import PRECISION_OF, Encoder

# On a CPU larger batches are no faster. Stores that do not record their batch size were made with this one.
_CPU_BATCH = 32
# Rows of tokens in a batch at which an H100 is fastest: 256 images of ViT-L/14 (257 tokens each), and 512 to 1,024 of
# ViT-B/32 (50 tokens each).
_GPU_TOKEN_ROWS = 1 << 16
_MOST_IMAGES = 1024
# Patches of a batch. Three batches are held in pinned host memory, whose blocks torch rounds up to powers of two, and
# which is slow to allocate: with blocks of 4 GB, that took most of a run's start.
_PATCHES_BYTES = 1 << 30
# The allocator cannot use all of a GPU's free memory, because freed blocks have other sizes than new ones.
_USABLE = 0.9
# Workspace of matrix products, compiled kernels, and the moments.
_RESERVED_BYTES = 1 << 30
# Rows of the residual stream's width that one block holds at once: the stream and its sum, the norm, queries, keys,
# values, head outputs, the MLP's hidden rows (four, and their activation) and its output, and one for type conversion.
ROWS_AT_ONCE = 16
_IN_FLIGHT_BYTES = 256 << 20
# Batches of pixels that the memory in flight has room for on a GPU: four that are decoded, and four that wait.
_BATCHES_IN_FLIGHT = 8


def as_stored(settings: PrecomputeSettings, existing: Mapping[str, Any] | None) -> PrecomputeSettings:
    """`settings` with `auto` replaced by the precision and batch size of the store with the attributes `existing`.

    If there is no store yet (`existing` is None), they stay as they are.
    """
    if existing is None:
        return settings
    if settings.precision == AUTO:
        settings = replace(settings, precision=existing["precision"])
    if settings.batch_size == AUTO:
        settings = replace(settings, batch_size=existing.get("made_with", {}).get("batch_size", _CPU_BATCH))
    return settings


def resolved(settings: PrecomputeSettings, encoder: Encoder) -> ResolvedSettings:
    """`settings` with every remaining `auto` replaced by what suits the encoder and its device."""
    batch = _batch_size(settings, encoder) if isinstance(settings.batch_size, str) else settings.batch_size
    values = {
        **{field.name: getattr(settings, field.name) for field in fields(settings)},
        "precision": PRECISION_OF[encoder.tower.dtype],
        "batch_size": batch,
        "in_flight_bytes": settings.in_flight_bytes or _in_flight_bytes(encoder, batch),
    }
    return ResolvedSettings(**values)


def said(settings: ResolvedSettings, encoder: Encoder) -> str:
    """The resolved settings in words, as in `ViT-L-14 on NVIDIA H100 80GB HBM3, fp16, batches of 256`."""
    devices = in_words(named_devices(settings.device))
    name = encoder.model.name
    # Of a config file, its name alone.
    name = Path(name).stem if name.endswith(".json") else name
    return f"{name} on {devices}, {settings.precision}, batches of {settings.batch_size:,}"


def image_bytes_on_gpu(encoder: Encoder) -> int:
    """Bytes of GPU memory that one more image in a batch takes, in parts:

    - activations of one block: `ROWS_AT_ONCE` rows of the stream's width for each token, in the run's precision;
    - emitted patches: float16, layers × heads × tokens × head_dim; heads and MLP terms: float32;
    - pixels: uint8, two float32 copies while they are normalised, and the model's input with its patches side by side.

    What is emitted, and the uint8 pixels, count twice: while a batch is computed, the one before it is copied to the
    host.
    """
    tower = encoder.tower
    tokens, width = tower.pos_embed.shape
    size = torch.finfo(tower.dtype).bits // 8
    numbers = encoder.model.preprocess.pixel_bytes
    activations = tokens * width * ROWS_AT_ONCE * size
    pixels = numbers * (2 * 1 + 2 * 4 + 2 * size)
    return activations + 2 * _emitted_bytes(tower, encoder) + pixels


def _emitted_bytes(tower: Tower, encoder: Encoder) -> int:
    coordinates = len(encoder.layers) * tower.heads * tower.head_dim
    terms = tower.terms * (tower.pos_embed.shape[1] + tower.joint) * 4 if "mlps" in encoder.emit else 0
    # The outputs of all rows of these layers are kept until the pooling.
    earlier = len(encoder.through_pool) * tower.pos_embed.numel() * 6
    return _patches_bytes(tower, encoder) + coordinates * 4 + terms + earlier


def _patches_bytes(tower: Tower, encoder: Encoder) -> int:
    return len(encoder.layers) * tower.heads * tower.tokens * tower.head_dim * 2 if "patches" in encoder.emit else 0


def _batch_size(settings: PrecomputeSettings, encoder: Encoder) -> int:
    """A power of two near `_GPU_TOKEN_ROWS` rows of tokens, or less if patches or memory demand it."""
    if encoder.device.type != "cuda":
        return _CPU_BATCH
    wanted = min(_MOST_IMAGES, 2 ** max(0, round(math.log2(_GPU_TOKEN_ROWS / len(encoder.tower.pos_embed)))))
    fitting = (_free_bytes(settings, encoder.device) * _USABLE - _RESERVED_BYTES) / image_bytes_on_gpu(encoder)
    fitting = min(fitting, _PATCHES_BYTES / max(1, _patches_bytes(encoder.tower, encoder)))
    return min(wanted, 2 ** int(math.log2(max(1.0, fitting))))


def _free_bytes(settings: PrecomputeSettings, device: torch.device) -> float:
    """Free memory of the GPU with the least memory; a GPU that is named twice is shared.

    Only `device` is asked, on which the model is; asking another GPU would take memory on it.
    """
    free, total = torch.cuda.mem_get_info(device)
    # Freed by tensors, but kept by PyTorch.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    devices = named_devices(settings.device)
    smallest = min(torch.cuda.get_device_properties(each).total_memory for each in devices)
    shared = max(devices.count(each) for each in devices)
    return (free - max(0, total - smallest)) / shared


def _in_flight_bytes(encoder: Encoder, batch_size: int) -> int:
    if encoder.device.type != "cuda":
        return _IN_FLIGHT_BYTES
    return max(_IN_FLIGHT_BYTES, _BATCHES_IN_FLIGHT * batch_size * encoder.model.preprocess.pixel_bytes)
