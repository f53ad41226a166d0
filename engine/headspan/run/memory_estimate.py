"""Estimate the most memory that a run will take, before it starts.

The estimate is what the process holds already, with the model, plus everything that is bounded: images in flight,
blocks of a remote shard, parts of files on their way to a bucket, a batch's activations, the pixels and numbers of some
batches, and the pieces of Zarr shards that are being filled and written. It does not depend on the number of images.
Processes that decode for a GPU, and one process for each of several devices, are included.
"""

from __future__ import annotations

import math
import resource
import sys

import torch

from headspan.config import ResolvedSettings
from headspan.decode.choice import uses_processes
from headspan.decode.processes.decoder import ProcessDecoder, default_workers
from headspan.io.ranges import MOST_BYTES
from headspan.io.retry import is_remote
from headspan.io.staged_upload import PART_BYTES, SENT_AT_ONCE
from headspan.io.stores import is_object_store
from headspan.model.tower import Tower
from headspan.run.defaults import ROWS_AT_ONCE
from headspan.run.devices import named_devices
from headspan.run.encoder import Encoder
from headspan.store.array_spec import ArraySpec
from headspan.store.write.shard import piece_rows
from headspan.store.write.threads import WAITING_BYTES, writing_threads

# What libraries allocate on first use: thread stacks, workspace for matrix products, the allocator's slack.
_LIBRARIES_BYTES = 256 << 20
# A process that decodes for a GPU, as measured: with torch, which resizes for `fast`, and without it.
_DECODING_PROCESS_BYTES = {"fast": 303_000_000, "exact": 45_000_000}
# Batches of pixels on a CPU: those that are decoded ahead while images in flight wait, the one that is computed, and
# the one that is stored.
_PIXEL_BATCHES = 4
# Batches of numbers: the one that is computed, the one that is handed to the writing threads, and the one that they
# write.
_NUMBER_BATCHES = 3
# Files of each array that are on their way to a bucket.
_FILES_IN_FLIGHT = 2


def estimated_bytes(settings: ResolvedSettings, encoder: Encoder, specs: dict[str, ArraySpec]) -> int:
    """Bytes of main memory that all processes of the run will hold at most. The GPU's own memory is not included."""
    devices = len(named_devices(settings.device))
    per_device = _run_bytes(settings, encoder, specs)
    if devices == 1:
        return _resident_bytes() + per_device
    # This process plans, and each of the others loads the same libraries and model.
    return (devices + 1) * _resident_bytes() + devices * per_device


def _run_bytes(settings: ResolvedSettings, encoder: Encoder, specs: dict[str, ArraySpec]) -> int:
    """What a process that computes units takes beside libraries and model."""
    batch, on_gpu = settings.batch_size, encoder.device.type == "cuda"
    rows = [batch * spec.row_bytes for spec in specs.values()]
    # Pinned memory is allocated in powers of two.
    numbers = _NUMBER_BATCHES * sum(1 << (size - 1).bit_length() if on_gpu else size for size in rows) + WAITING_BYTES
    # One piece of each array is being filled, while a unit before it is finished; each writing thread has one more.
    pieces = [piece_rows(spec) * spec.row_bytes for spec in specs.values()]
    waiting = sum(pieces) + writing_threads() * max(pieces)
    held = _LIBRARIES_BYTES + _decoding_bytes(settings, encoder) + numbers + sum(pieces) + waiting
    held += _upload_bytes(specs) if is_object_store(settings.out) else 0
    held += MOST_BYTES if any(is_remote(shard) for shard in settings.shards) else 0
    return held if on_gpu else held + _pass_bytes(encoder.tower, batch, sum(spec.row_bytes for spec in specs.values()))


def _upload_bytes(specs: dict[str, ArraySpec]) -> int:
    """Parts of the files that go to a bucket: of each array, a file is being filled and one before it is finished.

    A file has one part that is filled, and those that are sent. No more of it is held than it has bytes.
    """
    parts = (1 + SENT_AT_ONCE) * PART_BYTES
    # At least one part is allocated, whole.
    return _FILES_IN_FLIGHT * sum(min(parts, PART_BYTES + spec.shard[0] * spec.row_bytes) for spec in specs.values())


def _decoding_bytes(settings: ResolvedSettings, encoder: Encoder) -> int:
    """Images in flight, the pixels that follow them, and the processes that decode."""
    preprocess, batch = encoder.model.preprocess, settings.batch_size
    if not uses_processes(encoder.device.type):
        return settings.in_flight_bytes + _PIXEL_BATCHES * batch * preprocess.pixel_bytes
    if settings.decode == "gpu":
        # Pixels stay on the GPU.
        return settings.in_flight_bytes
    workers = settings.workers or default_workers(len(named_devices(settings.device)))
    decoder = ProcessDecoder(settings.decode, preprocess, settings.in_flight_bytes, batch, workers)
    return decoder.most_bytes + workers * _DECODING_PROCESS_BYTES[settings.decode]


def _pass_bytes(tower: Tower, batch: int, row_bytes: int) -> int:
    """Memory of a batch's pass on the CPU, with the packed copy of the weights that the first pass makes."""
    tokens, width = tower.pos_embed.shape
    size = torch.finfo(tower.dtype).bits // 8
    activations = batch * tokens * width * ROWS_AT_ONCE * size
    scores = batch * tower.trunk_heads * tokens * tokens * 4
    weights = sum(
        math.prod(linear.weight.shape)
        for block in tower.blocks
        for linear in (block.qkv, block.out_proj, block.mlp.fc1, block.mlp.fc2)
    )
    # Emitted numbers are float32 before they are stored in 16 bits.
    return activations + scores + weights * size + 2 * batch * row_bytes


def _resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
