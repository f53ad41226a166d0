"""How do the pixels of `--decode gpu` differ from those of `exact` and `fast`, and what does that do to heads?

Each kind of JPEG has its own row, since the library interpolates subsampled colours in its own way.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headspan.config import Preprocess
from headspan.decode.batches import Batch
from headspan.decode.exact import fill_exact, open_image
from headspan.decode.fast import fill_fast
from headspan.decode.gpu.nvjpeg import DecodeJpegs, silence
from headspan.decode.gpu.pieces import Piece, Read
from headspan.decode.gpu.rendering import Rendering
from headspan.decode.routes import Route
from headspan.shards.samples import SampleSpan

# Encodes a batch as a run does; the result has `heads`.
Encode = Callable[[Batch], Any]
# Kinds of JPEG and how PIL encodes them.
KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "4:2:0, progressive": {"subsampling": 2, "progressive": True},
}


def by_kind(pictures: Sequence[bytes]) -> dict[str, list[bytes]]:
    """`pictures` as JPEGs of each kind, of quality 90."""
    return {kind: [_encoded(picture, options) for picture in pictures] for kind, options in KINDS.items()}


def differences(
    jpegs: Mapping[str, Sequence[bytes]],
    preprocess: Preprocess,
    encode: Encode,
    decode_jpegs: DecodeJpegs,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """For each kind of `jpegs`, the differences of `--decode gpu` from the other ways; one batch a kind.

    Mean and largest difference after resizing, in grey levels, the share of levels that differ by more than two, and
    the relative error of the heads of all images together. `decoded_on_gpu` counts the images that the library decoded.
    """
    rows: dict[str, dict[str, Any]] = {}
    for kind, encoded in jpegs.items():
        pixels, decoded = _by_gpu(encoded, preprocess, decode_jpegs, device)
        heads = _heads(encode, pixels)
        scale, shift = np.asarray(preprocess.std, np.float32), np.asarray(preprocess.mean, np.float32)
        levels = 255 * (pixels.permute(0, 2, 3, 1).cpu().numpy() * scale + shift)
        rows[kind] = {"images": len(encoded), "decoded_on_gpu": decoded}
        for name, route in (("exact", fill_exact), ("fast", fill_fast)):
            wanted = _by_host(encoded, preprocess, route)
            difference = np.abs(levels - wanted)
            theirs = _heads(encode, wanted)
            error = (heads.double() - theirs.double()).norm() / theirs.double().norm()
            rows[kind][f"against {name}"] = {
                "mean_levels": _digits(difference.mean()),
                "largest_levels": _digits(difference.max()),
                "share_above_two": _digits((difference > 2.5).mean()),
                "heads": _digits(error),
            }
    return rows


def _by_gpu(
    encoded: Sequence[bytes], preprocess: Preprocess, decode_jpegs: DecodeJpegs, device: torch.device
) -> tuple[Tensor, int]:
    """Normalised float32 pixels as a run has them, and how many of the images the library decoded."""
    decoded = 0

    def counted(jpegs: list[Tensor]) -> list[Tensor]:
        nonlocal decoded
        found = decode_jpegs(jpegs)
        decoded += len(found)
        return found

    sizes = np.array([len(each) for each in encoded], np.int64)
    rows = np.arange(len(encoded))
    span = SampleSpan(rows, (("memory", len(encoded)),), rows, sizes, str, lambda start, stop: ())
    reads = [Read(place, each, [0], [len(each)]) for place, each in enumerate(encoded)]
    silence()
    with ThreadPoolExecutor(1) as host:
        render = Rendering(counted, preprocess, device, torch.float32, 1 << 30, host, 1 << 30)
        result = render(Piece(span, 0, len(encoded), reads))
    assert not result.bad
    return torch.cat([part for part in result.good.parts if isinstance(part, Tensor)]), decoded


def _by_host(encoded: Sequence[bytes], preprocess: Preprocess, route: Route) -> np.ndarray:
    pixels = np.empty((len(encoded), *preprocess.size, 3), np.uint8)

    def fill(place: int) -> None:
        route(encoded[place], open_image(encoded[place], preprocess), preprocess, pixels[place])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fill, range(len(encoded))))
    return pixels


def _heads(encode: Encode, pixels: Any) -> Tensor:
    heads: Tensor = encode(Batch(np.arange(len(pixels)), (pixels,))).heads
    return heads


def _encoded(picture: bytes, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def _digits(value: Any) -> float:
    return float(f"{float(value):.3g}")
