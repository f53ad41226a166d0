"""Small stores of images with captions, on which features are learned."""

from __future__ import annotations

import json
from pathlib import Path

import headspan as hs
from tests.conftest import encoded_image, write_tar

# Images of a store: the captions of each; None for a broken image.
CAPTIONS: list[list[str] | None] = [
    ["a red car", "a small car"],
    [],
    ["a dog"],
    None,
    ["a red car"],
    ["two cats", "a dog", "a tree by a lake"],
    *([f"picture {number % 5} of a tree", f"picture {number}"] for number in range(31)),
]
USABLE = [number for number, lines in enumerate(CAPTIONS) if lines is not None]


def make_store(folder: Path, captions: list[list[str] | None], seed: int = 0) -> hs.Store:
    """A store of the reference model on pictures of noise; captions stand in the .txt and under `captions`."""
    members: list[tuple[str, bytes]] = []
    for number, lines in enumerate(captions):
        picture = b"broken" if lines is None else encoded_image(100 * seed + number, 16, 16)
        members.append((f"{number:03d}.jpg", picture))
        if lines:
            members.append((f"{number:03d}.txt", lines[0].encode()))
            members.append((f"{number:03d}.json", json.dumps({"captions": lines[1:]}).encode()))
    shard = write_tar(folder / "s.tar", members)
    hs.precompute(str(shard), folder / "s.zarr", model="reference", emit=("heads", "patches"), unit_images=16)
    return hs.open(folder / "s.zarr")
