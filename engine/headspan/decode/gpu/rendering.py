"""Turn the encoded images of a piece into the model's input on a GPU.

A library decodes what is plainly a sound JPEG; the host decodes everything else as `--decode fast` does, also what the
library refuses, so bad images and their reasons are those of `fast`. Both then take the same launches.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from headspan.config import Preprocess
from headspan.decode.batches import Batch, DecodedSpan
from headspan.decode.exact import Undecodable, fill, interpolation, open_image, raster_bytes
from headspan.decode.fast import fill_fast
from headspan.decode.gpu.nvjpeg import DecodeJpegs
from headspan.decode.gpu.pieces import Piece, Read
from headspan.decode.gpu.placing import placed
from headspan.decode.gpu.sound_jpeg import marker_places, sound_size
from headspan.decode.room import Room
from headspan_kernels import ops
from headspan_kernels.reference import Placed

# The host decodes larger images. The number is fixed, so that pixels do not depend on a machine's memory.
MOST_PIXELS = 1 << 26


class _Jpeg(NamedTuple):
    encoded: UInt8[Tensor, " byte"]
    size: tuple[int, int]
    placed: Placed


# What becomes of an image: the GPU decodes it, the host does (to pixels or the reason why not), or it is bad.
_Item: TypeAlias = _Jpeg | Future[UInt8[np.ndarray, "height width 3"] | str] | str


class Rendering:
    """Renders pieces; several threads may call it at once, each with a stream of its own."""

    def __init__(
        self,
        decode_jpegs: DecodeJpegs,
        preprocess: Preprocess,
        device: torch.device,
        dtype: torch.dtype,
        device_bytes: int,
        host: Executor,
        host_bytes: int,
    ) -> None:
        """A call decodes at most `device_bytes` to the device at once, or a single image.

        `host` runs what the host decodes, of which the rasters stay within `host_bytes`.
        """
        self._decode_jpegs, self._preprocess = decode_jpegs, preprocess
        self._device, self._dtype, self._device_bytes = device, dtype, device_bytes
        self._host, self._room = host, Room(host_bytes)
        self._resize = ops(device).preprocess
        # The first launch compiles the kernel, which one thread does while others wait.
        self._launching = threading.Lock()
        # A Python function per image would take longer than all else on the host.
        self._placed = lru_cache(maxsize=65_536)(lambda height, width: placed(height, width, preprocess))

    def __call__(self, piece: Piece) -> DecodedSpan:
        """Decode and resize the images of `piece` on the current stream, and wait until that is done."""
        items = [item for read in piece.reads for item in self._items(read, piece.without_bytes)]
        reasons: dict[int, str] = {}
        parts = [part for places in self._calls(items) if (part := self._render(items, places, reasons)) is not None]
        good = [place for place in range(len(piece)) if place not in reasons]
        return DecodedSpan(
            Batch(piece.rows[good], tuple(parts)),
            tuple(piece.bad_image(place, reason) for place, reason in sorted(reasons.items())),
            int(piece.rows[-1]),
            piece.encoded_bytes,
            piece.crc32c(),
        )

    def _items(self, read: Read, without_bytes: dict[int, str]) -> Iterator[_Item]:
        """What becomes of each image of a read; the host begins at once."""
        markers = marker_places(read.data)
        most = min(MOST_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MOST_PIXELS))
        views = _views(read)
        for place, (begin, end, view) in enumerate(zip(read.begins, read.ends, views, strict=True), start=read.place):
            size = sound_size(read.data, begin, end, markers)
            if size is not None and size[0] * size[1] <= most and (where := self._placed(*size)) is not None:
                yield _Jpeg(view, size, where)
            elif place in without_bytes:
                yield without_bytes[place]
            else:
                yield self._host.submit(self._on_host, read.data[begin:end])

    def _calls(self, items: list[_Item]) -> Iterator[range]:
        """The places of images that are decoded by one call and resized by one launch."""
        first = held = 0
        for place, item in enumerate(items):
            size = 3 * item.size[0] * item.size[1] if isinstance(item, _Jpeg) else 0
            if held and held + size > self._device_bytes:
                yield range(first, place)
                first, held = place, 0
            held += size
        yield range(first, len(items))

    def _render(
        self, items: list[_Item], places: range, reasons: dict[int, str]
    ) -> Float[Tensor, "image 3 height width"] | None:
        """The model's input of the good images at `places`; None if there are none. Adds to `reasons`."""
        jpegs = [(place, item) for place in places if isinstance(item := items[place], _Jpeg)]
        rasters: dict[int, Tensor] = {}
        for (place, jpeg), raster in zip(jpegs, self._decoded([jpeg.encoded for _, jpeg in jpegs]), strict=True):
            if raster is not None and raster.shape[1:] == jpeg.size:
                rasters[place] = raster
            else:
                items[place] = self._host.submit(self._on_host, jpeg.encoded.numpy().tobytes())
        images: list[Tensor] = []
        where: list[Placed] = []
        for place in places:
            item = items[place]
            if isinstance(item, _Jpeg):
                images.append(rasters[place])
                where.append(item.placed)
                continue
            found = item if isinstance(item, str) else item.result()
            if isinstance(found, str):
                reasons[place] = found
            else:
                images.append(torch.from_numpy(found).permute(2, 0, 1).to(self._device))
                where.append(Placed(*self._preprocess.size, 0, 0))
        if not images:
            return None
        preprocess = self._preprocess
        with self._launching:
            pixels: Tensor = self._resize(
                *(images, where, preprocess.size, tuple(preprocess.mean), tuple(preprocess.std), self._dtype),
                *(interpolation(preprocess), fill(preprocess)),
            )
        if self._device.type == "cuda":
            # The library writes the next images on a stream of its own, into memory that this call gives back.
            torch.cuda.current_stream(self._device).synchronize()
        return pixels

    def _decoded(self, jpegs: list[Tensor]) -> list[Tensor | None]:
        """The images; None for each that the library does not decode. It raises for all of a list at once."""
        try:
            return list(self._decode_jpegs(jpegs)) if jpegs else []
        except RuntimeError:
            half = len(jpegs) // 2
            return [*self._decoded(jpegs[:half]), *self._decoded(jpegs[half:])] if half else [None]

    def _on_host(self, encoded: bytes) -> UInt8[np.ndarray, "height width 3"] | str:
        """The pixels as `--decode fast` has them, or the reason why there are none."""
        pixels = np.empty((*self._preprocess.size, 3), np.uint8)
        try:
            image = open_image(encoded, self._preprocess)
            with self._room.of(raster_bytes(image, self._preprocess)):
                fill_fast(encoded, image, self._preprocess, pixels)
        except Undecodable as error:
            return str(error)
        return pixels


def _views(read: Read) -> list[Tensor]:
    """The images of a read as views of its bytes, made in one call."""
    if not read.data:
        return [torch.empty(0, dtype=torch.uint8)] * len(read.begins)
    sizes: list[int] = []
    last = 0
    for begin, end in zip(read.begins, read.ends, strict=True):
        sizes += (begin - last, end - begin)
        last = end
    sizes.append(len(read.data) - last)
    return list(torch.frombuffer(read.data, dtype=torch.uint8).split(sizes)[1::2])
