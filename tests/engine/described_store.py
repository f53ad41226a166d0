"""A small store whose images have classes, for tests of descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import headspan as hs
from tests.conftest import encoded_image, write_tar


def make_described_store(folder: Path, kinds: Sequence[str | None]) -> hs.Store:
    """Pictures of noise by the reference model, one for each entry of `kinds`, which their metadata hold."""
    members: list[tuple[str, bytes]] = []
    for number, kind in enumerate(kinds):
        members.append((f"{number:02d}.jpg", encoded_image(number, 16, 16)))
        members.append((f"{number:02d}.json", json.dumps({"kind": kind}).encode()))
    shard = write_tar(folder / "s.tar", members)
    hs.precompute(str(shard), folder / "s.zarr", model="reference", emit=("heads",), unit_images=16)
    return hs.open(folder / "s.zarr")
