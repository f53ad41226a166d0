"""Estimate the most memory that a run will take, before it starts.

The estimate is what the process holds already, with the model, plus everything that is bounded: images in flight,
blocks of a remote shard, a batch's activations, the pixels and numbers of two batches, and the pieces of Zarr shards
that are being filled and written. It does not depend on the number of images.
"""

from __future__ import annotations

import math
import resource
import sys

import torch

from headspan.io.ranges import MOST_BYTES
from headspan.model.tower import Tower
from headspan.run.encoder import Encoder
from headspan.store.array_spec import ArraySpec
from headspan.store.write.shard import piece_rows
from headspan.store.write.threads import WAITING_BYTES, writing_threads

# What libraries allocate on first use: thread stacks, workspace for matrix products, the allocator's slack.
_LIBRARIES_BYTES = 256 << 20
# Rows of the residual stream's width that one block holds at once: the stream and its sum, the norm, queries, keys,
# values, head outputs, the MLP's hidden rows (four, and their activation) and its output, and one for type conversion.
_ROWS_AT_ONCE = 16


def estimated_bytes(
    encoder: Encoder, specs: dict[str, ArraySpec], batch_size: int, in_flight_bytes: int, remote: bool
) -> int:
    """Bytes of main memory that the run will hold at most; `remote` says whether shards are read over the network.

    The GPU's own memory is not included.
    """
    row_bytes = sum(spec.row_bytes for spec in specs.values())
    height, width = encoder.model.preprocess.size
    # Pixels of two batches. Numbers of three: one is computed, one is handed to the writing threads, and one is still
    # being written by them; and of smaller batches that wait.
    numbers = batch_size * (2 * height * width * 3 + 3 * row_bytes) + WAITING_BYTES
    # One piece of each array is being filled, while a unit before it is finished; each thread has one more.
    pieces = [piece_rows(spec) * spec.row_bytes for spec in specs.values()]
    waiting = sum(pieces) + writing_threads() * max(pieces)
    held = _resident_bytes() + _LIBRARIES_BYTES + in_flight_bytes + numbers + sum(pieces) + waiting
    held += MOST_BYTES if remote else 0
    return held + (_pass_bytes(encoder.tower, batch_size, row_bytes) if encoder.device.type == "cpu" else 0)


def _pass_bytes(tower: Tower, batch: int, row_bytes: int) -> int:
    """Memory of a batch's pass on the CPU, with the packed copy of the weights that the first pass makes."""
    tokens, width = tower.pos_embed.shape
    size = torch.finfo(tower.dtype).bits // 8
    activations = batch * tokens * width * _ROWS_AT_ONCE * size
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
