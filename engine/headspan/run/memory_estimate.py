"""How much memory a run will take at most, said before it starts.

What the process has already taken, with the model in it, and on top of that everything that is bounded: images in
flight and blocks of a remote shard, a batch's activations, two batches of numbers (one being computed, one being
stored), and the pieces of shards being filled and written. Images beyond a batch add nothing, so their number does not
appear.
"""

from __future__ import annotations

import math
import resource
import sys

import torch

from headspan.config import PrecomputeSettings
from headspan.io.ranges import MOST_BYTES
from headspan.io.retry import is_remote
from headspan.model.tower import Tower
from headspan.run.encoder import Encoder
from headspan.store.array_spec import ArraySpec
from headspan.store.write.shard import piece_rows
from headspan.store.write.unit import WAITING_PIECES

# What libraries set aside on first use: thread stacks, products' work space, the allocator's slack.
_LIBRARIES_BYTES = 256 << 20
# Rows of the residual stream's width that one block holds at once: the stream and its sum, the norm, queries, keys,
# values, head outputs, the MLP's hidden rows (four, and their activation) and its output, and one for type conversion.
_ROWS_AT_ONCE = 16


def estimated_bytes(settings: PrecomputeSettings, encoder: Encoder, specs: dict[str, ArraySpec]) -> int:
    """Bytes of main memory that the run will hold at most; a GPU's own memory is not in it."""
    row_bytes = sum(spec.row_bytes for spec in specs.values())
    batch = settings.batch_size
    numbers = 2 * batch * row_bytes
    # Those being filled, one of each array, and those with the writing thread.
    pieces = [piece_rows(spec) * spec.row_bytes for spec in specs.values()]
    waiting = WAITING_PIECES * max(pieces)
    held = _resident_bytes() + _LIBRARIES_BYTES + settings.in_flight_bytes + numbers + sum(pieces) + waiting
    held += MOST_BYTES if any(is_remote(shard) for shard in settings.shards) else 0
    return held + (_pass_bytes(encoder.tower, batch, row_bytes) if encoder.device.type == "cpu" else 0)


def _pass_bytes(tower: Tower, batch: int, row_bytes: int) -> int:
    """A batch's pass on the CPU, and the laid-out copy of the weights that the first one makes."""
    tokens, width = tower.positions.shape
    size = torch.finfo(tower.dtype).bits // 8
    activations = batch * tokens * width * _ROWS_AT_ONCE * size
    scores = batch * tower.trunk_heads * tokens * tokens * 4
    weights = sum(
        math.prod(linear.weight.shape)
        for block in tower.blocks
        for linear in (block.qkv, block.output, block.mlp.expand, block.mlp.shrink)
    )
    # Emitted numbers are float32 before they are stored in 16 bits.
    return activations + scores + weights * size + 2 * batch * row_bytes


def _resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
