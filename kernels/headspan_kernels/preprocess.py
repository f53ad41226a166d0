"""Turn uint8 images of any sizes into the model's input: resize, crop or padding, normalisation, cast.

    levels[k] = round(Σ_j w_j pixels[j] / Σ_j w_j),  w_j = filter((j + ½ − (k + ½) s) / max(s, 1)),  s = source / target

along one axis and then the other, as Pillow's two passes, and then (levels · − μ) / σ.

A batch takes two launches, whatever the sizes of its images: a table holds each image's address, strides and place.
The first launch resamples every image along one axis to uint8, for the rows or columns that its crop needs; the second
resamples along the other axis, normalises and casts. Filter weights are computed where they are used: that takes less
time than the pixels' way from memory, and leaves no tables for each pair of sizes on the host or the device. Where a
filter begins and ends is computed in whole numbers, on the host as in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from headspan_kernels.filters import SUPPORT
from headspan_kernels.reference import Placed

# Output pixels a program, three channels each.
BLOCK = 256
WARPS = 4
# Numbers of an image and a pass in the table.
COLUMNS = 15


def preprocess(
    images: Sequence[UInt8[Tensor, "_ _ _"]],
    placed: Sequence[Placed],
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
    mode: str = "bicubic",
    fill: int = 0,
) -> Float[Tensor, "batch 3 out_height out_width"]:
    """As `reference.preprocess`. The images must not be freed or overwritten before the current stream is done."""
    support = SUPPORT[mode]
    numbers, narrowed_bytes, most_pixels = _table(images, placed, size, support)
    device = images[0].device
    table = torch.from_numpy(numbers).to(device, non_blocking=True)
    narrowed = torch.empty(narrowed_bytes, dtype=torch.uint8, device=device)
    out = torch.empty(len(images), 3, *size, dtype=dtype, device=device)
    levels = _levels(mean, std, device)
    with torch.cuda.device_of(narrowed):
        for last, pixels in ((False, most_pixels), (True, size[0] * size[1])):
            resample[(triton.cdiv(pixels, BLOCK), len(images))](
                *(table[int(last)], narrowed, out, levels, size[0], size[1], fill),
                SUPPORT=support,
                LAST=last,
                COLUMNS=COLUMNS,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=True,
            )
    return out


def _table(
    images: Sequence[Tensor], placed: Sequence[Placed], size: tuple[int, int], support: int
) -> tuple[Int64[np.ndarray, "2 image column"], int, int]:
    """The table of both passes, the bytes of the first one's results, and the most pixels that one of them has.

    It is computed for all images at once, in a few microseconds an image.
    """
    numbers = np.array(
        [(*i.shape, i.data_ptr(), *i.stride(), *where) for i, where in zip(images, placed, strict=True)], np.int64
    ).T
    channels, source, address, plane, steps = numbers[0], numbers[1:3], numbers[3], numbers[4], numbers[5:7]
    target, offset, rows_first = numbers[7:9], numbers[9:11], numbers[11]
    each = np.arange(len(images))
    # By axis, rows before columns, and image: the part of the resized image that is kept.
    first = np.maximum(offset, 0)
    kept = np.minimum(offset + np.array(size)[:, None], target) - first
    # The first source pixel that these need, and how many from there on; and the most that one of them needs.
    reach = 2 * support * np.maximum(source, target)
    begin = np.maximum((2 * first + 1) * source - reach + target, 0) // (2 * target)
    needed = np.minimum(((2 * (first + kept) - 1) * source + reach + target) // (2 * target), source) - begin
    taps = np.minimum(reach // target + 2, source)
    # The second pass resamples the axis that `later` numbers; the first one takes the part that this needs.
    later, axes = rows_first, np.arange(2)[:, None]
    shape = np.where(axes == later, needed, kept)
    pixels = shape[0] * shape[1]
    ends = np.cumsum(3 * pixels)

    def half(
        axis: np.ndarray, at: np.ndarray, steps: np.ndarray, plane: np.ndarray, begin: np.ndarray, *more: np.ndarray
    ) -> np.ndarray:
        """The numbers of one pass, in the order in which `resample` loads them."""
        along, before, after, skipped, most = (values[axis, each] for values in (steps, source, target, first, taps))
        left_alone = np.where(axes == axis, 0, steps)
        return np.stack([at, *left_alone, along, plane, before, after, skipped, begin, most, axis, *more], axis=-1)

    begun = begin[later, each]
    dense = np.stack([shape[1], np.ones_like(later)])
    table = [
        half(
            *(1 - later, address + begun * steps[later, each], steps, plane * (channels == 3), 0 * begun),
            *(*shape, ends - 3 * pixels, 0 * begun),
        ),
        half(later, ends - 3 * pixels, dense, pixels, begun, *kept, *np.maximum(-offset, 0)),
    ]
    return np.stack(table), int(ends[-1]), int(pixels.max())


@cache
def _levels(mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device) -> Tensor:
    """Means and spreads in grey levels, cached on the device."""
    return (255 * torch.tensor([*mean, *std])).to(device)


@triton.jit(do_not_specialize=["out_height", "out_width", "fill"])
@no_type_check
def resample(
    table,
    narrowed,
    out,
    levels,
    out_height,
    out_width,
    fill,
    SUPPORT: tl.constexpr,
    LAST: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    row = table + image * COLUMNS
    # Strides of the source for a step down and right in the result, along the resampled axis, and between channels.
    down, right, along, plane = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    # Sizes before and after resampling, the first of the results that are kept, and the first source pixel at hand.
    source, target, first, begin = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)
    taps, axis = tl.load(row + 9).to(tl.int32), tl.load(row + 10)
    height, width = tl.load(row + 11).to(tl.int32), tl.load(row + 12).to(tl.int32)
    if LAST:
        pixels = narrowed + tl.load(row)
        lines, columns = out_height, out_width
        above, beside = tl.load(row + 13).to(tl.int32), tl.load(row + 14).to(tl.int32)
    else:
        pixels = tl.load(row).to(tl.pointer_type(tl.uint8))
        lines, columns = height, width
        above, beside = 0, 0
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < lines * columns
    # Programs after an image's last pixel do nothing.
    taps = tl.where(tl.program_id(0) * BLOCK < lines * columns, taps, 0)
    y, x = at // columns - above, at % columns - beside
    kept = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = tl.where(kept, y, 0).to(tl.int64), tl.where(kept, x, 0).to(tl.int64)
    # All in units of 1 / (2 target) of a source pixel.
    centre = (2 * (first + tl.where(axis == 0, y, x)) + 1) * source
    reach = 2 * SUPPORT * tl.maximum(source, target)
    start = tl.maximum(centre - reach + target, 0) // (2 * target)
    end = tl.minimum((centre + reach + target) // (2 * target), source)
    stretched = 2 * tl.maximum(source, target)
    distance = (start * 2 * target + target - centre).to(tl.float32) / stretched.to(tl.float32)
    step = (2 * target).to(tl.float32) / stretched.to(tl.float32)
    place = pixels + y * down + x * right + (start - begin) * along
    red, green, blue, total = (
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
    )
    for tap in range(taps):
        within = kept & (start + tap < end)
        u = tl.abs(distance + tap * step)
        if SUPPORT == 1:
            weight = tl.maximum(1 - u, 0.0)
        else:
            near = (1.5 * u - 2.5) * u * u + 1
            far = ((-0.5 * u + 2.5) * u - 4) * u + 2
            weight = tl.where(u < 1, near, tl.where(u < 2, far, 0.0))
        weight = tl.where(within, weight, 0.0)
        total += weight
        # [BLOCK] each.
        red += weight * tl.load(place + tap * along, mask=within, other=0).to(tl.float32)
        green += weight * tl.load(place + tap * along + plane, mask=within, other=0).to(tl.float32)
        blue += weight * tl.load(place + tap * along + 2 * plane, mask=within, other=0).to(tl.float32)
    total = tl.where(kept, total, 1.0)
    for channel in tl.static_range(3):
        if channel == 0:
            level = red
        elif channel == 1:
            level = green
        else:
            level = blue
        level = tl.minimum(tl.maximum(tl.floor(level / total + 0.5), 0.0), 255.0)
        if LAST:
            level = tl.where(kept, level, fill.to(tl.float32))
            level = (level - tl.load(levels + channel)) / tl.load(levels + 3 + channel)
            tl.store(
                out + (image * 3 + channel) * lines * columns + at,
                level.to(out.dtype.element_ty),
                mask=valid,
            )
        else:
            tl.store(
                narrowed + tl.load(row + 13) + channel * lines * columns + at,
                level.to(tl.uint8),
                mask=valid,
            )
