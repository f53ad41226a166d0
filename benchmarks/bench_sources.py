"""How fast are folders, lists, Parquet files and tars planned and read, beside the simplest code that could do it?

The same small files in a folder, in a list, in Parquet with row groups of 1,000 and in one tar. Planning is compared
with `os.scandir` and one `stat` a file, with pyarrow reading the keys, and with Python's tarfile. Reading in order is
compared with opening each file, with pyarrow decoding the column of images, and with reading members at known places.
One thread does all of it. The images that are read have been read once before, so the page cache may hold them.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import benchmark
from headspan.shards.open_images import open_images
from headspan.shards.plan import list_samples
from headspan.shards.samples import SampleSpan

QUESTION = "sources: folders, lists, Parquet and tars"
DUE_TO = (
    "A folder's plan sorts all paths, makes keys and writes the metadata that a tar would have. Its images are opened "
    "one by one, and each is compared with the planned size and time. Parquet's plan makes a Python object for every "
    "row. A tar's images come in few reads."
)
_FOLDER_FILES, _GROUP_IMAGES, _SPAN_IMAGES = 1_000, 1_000, 10_000
_IMAGE_BYTES = (500, 1_500)
_KINDS = ("folder", "list", "parquet", "tar")


def run(toy: bool) -> dict[str, Any]:
    """Images a second of planning and reading, for each kind of source and its peer."""
    images = 40 if toy else 1_000_000
    read = min(images, 100_000)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        urls = _write(root, images)
        line: dict[str, Any] = {"images": images, "images_read": read}
        for kind in _KINDS:
            spans: list[SampleSpan] = []
            line[f"{kind}_plan"] = _rate(images, partial(_plan, urls[kind], read, spans))
            # A peer needs what the plan knows.
            plan_peer, read_peer = _peers(kind, urls, spans)
            line[f"{kind}_plan_peer"] = _rate(images, plan_peer)
            read_peer()
            line[f"{kind}_read"] = _rate(read, partial(_read, urls[kind], spans))
            line[f"{kind}_read_peer"] = _rate(read, read_peer)
    return line


def _write(root: Path, images: int) -> dict[str, str]:
    """The images as every kind of source."""
    random = np.random.default_rng(0)
    contents = [random.bytes(int(size)) for size in random.integers(*_IMAGE_BYTES, 64)]
    names = [f"{number // _FOLDER_FILES:04d}/{number:07d}.jpg" for number in range(images)]
    urls = {"folder": str(root / "images"), "list": str(root / "list.csv")}
    urls |= {"parquet": str(root / "all.parquet"), "tar": str(root / "all.tar")}
    schema = pa.schema([("image", pa.binary()), ("key", pa.string())])
    with (
        tarfile.open(urls["tar"], "w", format=tarfile.USTAR_FORMAT) as tar,
        pq.ParquetWriter(urls["parquet"], schema, use_dictionary=False) as parquet,
    ):
        for first in range(0, images, _GROUP_IMAGES):
            some = range(first, min(first + _GROUP_IMAGES, images))
            parquet.write_table(
                pa.table({"image": [contents[n % 64] for n in some], "key": [names[n] for n in some]}, schema=schema)
            )
            (root / "images" / names[first]).parent.mkdir(parents=True, exist_ok=True)
            for number in some:
                data = contents[number % 64]
                (root / "images" / names[number]).write_bytes(data)
                member = tarfile.TarInfo(names[number])
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    Path(urls["list"]).write_text("path\n" + "".join(f"images/{name}\n" for name in names))
    return urls


def _rate(images: int, work: Callable[[], object]) -> int:
    began = time.perf_counter()
    work()
    return round(images / (time.perf_counter() - began))


def _plan(url: str, kept: int, spans: list[SampleSpan]) -> None:
    """Plan the whole source; adds the first `kept` samples to `spans`."""
    samples = [sample for _, found in list_samples({url: url}, on_note=lambda note: None) for sample in found]
    spans += [SampleSpan.of(samples[first : first + _SPAN_IMAGES]) for first in range(0, kept, _SPAN_IMAGES)]


def _read(url: str, spans: list[SampleSpan]) -> None:
    with open_images(url) as reader:
        for span in spans:
            for data, reason in reader.read(span.wanted(0, len(span), reader.needs_members), 2 << 20):
                assert data or reason


def _peers(
    kind: str, urls: Mapping[str, str], spans: list[SampleSpan]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Planning and reading by other code."""
    url = urls[kind]
    if kind in ("folder", "list"):
        root = Path(url) if kind == "folder" else Path(url).parent
        members = [member for span in spans for member in span.members_of(0, len(span))]
        return lambda: _scan(urls["folder"]), lambda: [(root / member).read_bytes() for member in members]
    images = sum(map(len, spans))
    if kind == "parquet":
        return lambda: pq.ParquetFile(url).read(["key"], use_threads=False), lambda: _read_parquet(url, images)
    places = [place for span in spans for place in zip(span.offsets.tolist(), span.sizes.tolist(), strict=True)]
    return lambda: _walk(url), lambda: _read_places(url, places)


def _scan(folder: str) -> int:
    files = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                files += _scan(entry.path)
            else:
                files += entry.stat().st_size > 0
    return files


def _walk(path: str) -> int:
    with tarfile.open(path) as tar:
        return sum(1 for _ in tar)


def _read_parquet(path: str, images: int) -> None:
    seen = 0
    for batch in pq.ParquetFile(path).iter_batches(_GROUP_IMAGES, columns=["image"], use_threads=False):
        seen += len(batch.column(0).to_pylist())
        if seen >= images:
            return


def _read_places(path: str, places: list[tuple[int, int]]) -> None:
    with Path(path).open("rb") as file:
        for offset, size in places:
            file.seek(offset)
            assert len(file.read(size)) == size


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each kind of source."""
    peers = {
        "folder": ("os.scandir and stat", "Path.read_bytes"),
        "list": ("os.scandir and stat", "Path.read_bytes"),
        "parquet": ("pyarrow, keys", "pyarrow, iter_batches"),
        "tar": ("tarfile", "seek and read"),
    }
    rows = [[f"{line['images']:,} images", "planned", "peer", "read", "peer"]]
    for kind in _KINDS:
        plan_peer, read_peer = peers[kind]
        rows.append(
            [
                kind,
                f"{line[f'{kind}_plan']:,} images/s",
                f"{plan_peer}: {line[f'{kind}_plan_peer']:,}",
                f"{line[f'{kind}_read']:,} images/s",
                f"{read_peer}: {line[f'{kind}_read_peer']:,}",
            ]
        )
    return rows


if __name__ == "__main__":
    benchmark(QUESTION, run)
