"""Choose the size of a new store's units.

The plan begins before the model and the number of images are known, with the largest size that they may lead to.
"""

from __future__ import annotations

from collections.abc import Sequence

from headspan.config import ResolvedSettings
from headspan.run.attributes import store_attributes
from headspan.run.encoder import Encoder
from headspan.store.schema import dimensions, image_bytes, row_arrays

# Of a unit with patches on a GPU: one unit is written while the next is computed, and a killed run computes the units
# in flight again.
_PATCHES_BYTES = 2 << 30
# At least, so that none of several devices waits long for the last unit of another one.
_UNITS_PER_DEVICE = 4
# The Zarr shards of smaller units would be mostly padding.
_LEAST = 64


def planned_unit_images(device: str, emit: Sequence[str]) -> int:
    """The largest default size of a unit: minutes of work on a CPU, seconds on a GPU.

    Making a unit durable takes as long as writing it if it has less than about 50 MB.
    """
    if device == "cpu":
        return 256
    return 1024 if "patches" in emit else 16384


def chosen_unit_images(
    settings: ResolvedSettings, encoder: Encoder, planned: int, images: int, computing: int = 1
) -> int:
    """The size of a unit of a new store of `images` rows: the planned one, unless it is a default that is too large
    for that many `computing` processes."""
    if settings.unit_images is None:
        row_bytes = None
        if encoder.device.type == "cuda" and "patches" in settings.emit:
            size = dimensions(store_attributes(settings, encoder, images, planned))
            row_bytes = image_bytes(row_arrays(size, settings.emit))
        planned = divided(planned, images, settings.batch_size, computing, row_bytes)
    return fitting(planned, images)


def divided(planned: int, images: int, batch_size: int, devices: int, row_bytes: int | None) -> int:
    """`planned`, a power of two, or a smaller one: for several devices, and for rows with patches of `row_bytes`.

    A unit has at least a batch, because a batch never has images of two units.
    """
    most = planned
    if devices > 1:
        most = min(most, images // (_UNITS_PER_DEVICE * devices))
    if row_bytes is not None:
        most = min(most, _PATCHES_BYTES // row_bytes)
    least = max(_LEAST, 1 << (batch_size - 1).bit_length())
    return min(planned, max(least, 1 << max(0, most.bit_length() - 1)))


def fitting(unit_images: int, images: int) -> int:
    """`unit_images`, or less for a small job, so that its Zarr shards are not mostly padding."""
    return min(unit_images, -(-images // _LEAST) * _LEAST)
