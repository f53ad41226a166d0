"""Write JPEG shards for benchmarks: photo-like pictures, or noise, which makes the largest JPEGs.

A photo-like picture is a sum of smooth random fields, fine ones a little weaker than coarse ones, as in photographs. At
500 × 375 its JPEG takes about 60 kB, and neighbouring pixels have a correlation of 0.98. Photographs of that size and
quality take 40 to 110 kB, with correlations of 0.82 to 0.98.
"""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.light_main import light_main

# Images in a tar.
_SHARD_IMAGES = 1000
# A field of frequency f has the amplitude f^-0.2; with 0, every octave would have the same amplitude.
_FALL = 0.2
# Fields with more cells across the width than this are grey, since colours vary more slowly.
_COLOUR_CELLS = 16


def photo_like(random: np.random.Generator, width: int, height: int) -> bytes:
    """One picture as a JPEG of quality 90."""
    field = np.zeros((height, width, 3), np.float32)
    cells = 2
    while cells < max(width, height):
        strength = cells**-_FALL
        field += (2 * strength * _smooth(random, width, height, cells))[..., None]
        if cells <= _COLOUR_CELLS:
            colours = [strength * _smooth(random, width, height, cells) for _ in range(3)]
            field += np.stack(colours, axis=-1)
        cells *= 2
    field = 128 + 56 * (field - field.mean()) / field.std()
    return _jpeg(field.clip(0, 255).astype(np.uint8), 90)


def photo_likes(count: int) -> list[bytes]:
    """Pictures of 500 × 375, made in spawned processes, one a core."""
    seeds = np.random.SeedSequence().spawn(count)
    with light_main(), ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        return list(processes.map(_photo_of, seeds))


def _photo_of(seed: np.random.SeedSequence) -> bytes:
    return photo_like(np.random.default_rng(seed), 500, 375)


def noise(random: np.random.Generator, width: int, height: int) -> bytes:
    """One picture of noise as a JPEG of quality 50."""
    return _jpeg(random.integers(0, 256, (height, width, 3), dtype=np.uint8), 50)


def write_shards(folder: Path, encoded: Sequence[bytes], images: int) -> None:
    """Create `folder` with tars of `images` images; the pictures of `encoded` repeat in turn."""
    folder.mkdir()
    for first in range(0, images, _SHARD_IMAGES):
        with tarfile.open(folder / f"{first // _SHARD_IMAGES:05d}.tar", "w") as tar:
            for number in range(first, min(first + _SHARD_IMAGES, images)):
                data = encoded[number % len(encoded)]
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _smooth(random: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    """A random field `[height, width]` of about unit spread, with `cells` cells across the width."""
    grid = random.standard_normal((cells * height // width + 2, cells + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
