"""Does `precompute` run at the pace of the tower on a GPU, from JPEG shards to a finished store?

ViT-L/14 and ViT-B/32 with random weights; photo-like JPEGs of 500 × 375 in memory-backed storage if it has room; heads
of all layers. The ceiling is the tower alone on random pixels that are on the GPU, in each 16-bit type. Its second row
adds the moments and the transfer to the host. The runs use the defaults, and the best settings by name with each way
to decode. One more run stores patches of all layers. A run's rate counts everything after the model and the plan have
been loaded, from starting the workers to the finished store. The steady rate leaves out the first quarter of the
images. At the end, the pixels of `--decode gpu` are compared with those of the other ways.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, gpu_ceiling, gpu_pixels
from benchmarks.pictures import photo_likes, write_shards
from headspan.config import PrecomputeSettings
from headspan.decode.gpu.nvjpeg import torchvision_on
from headspan.events import NOTE, Progress
from headspan.run.encoder import prepare
from headspan.run.precompute import precompute
from headspan.store.schema import attributes_of

DUE_TO = (
    "Worker processes decode into shared memory, or the GPU decodes, so the process that launches kernels does little "
    "work per image. “Share of the tower” is the rate divided by that of the tower alone in the same type."
)
# Marks: shares of the tower and of the best settings, and images a second.
TOWER_SHARE, DEFAULTS_SHARE = 0.93, 0.9
DECODED_IN_PROCESSES, DECODED_ON_THE_GPU = 6_000, 12_000
# Distinct pictures, which the shards repeat; images of a shard of `pictures.write_shards`.
PICTURES, SHARD_IMAGES = 128, 1000
PICTURE_BYTES = 70_000
# Pictures whose pixels are compared.
COMPARED = 64
# A run that would start after this many seconds is left out and named.
SECONDS = 130.0
_STEADY = "steady_images_a_second"


@dataclass(frozen=True, slots=True)
class Model:
    """A model, the images of its runs, its batch, and how many images' patches are stored (0 for none)."""

    name: str
    pretrained: str | None
    images: int
    # With decoding on the GPU, which may be faster.
    images_decoded_by_gpu: int
    batch: int
    patches_images: int


MODELS = (
    Model("ViT-B-32", "random:0", 36_000, 60_000, 1024, 0),
    Model("ViT-L-14", "random:0", 12_000, 12_000, 256, 1024),
)


def run(ceilings: dict[str, Any], left: Callable[[], float]) -> dict[str, Any]:
    """Rows for each model: the tower alone, and runs by settings; and the marks."""
    ends = time.monotonic() + min(SECONDS, left())
    found: dict[str, Any] = {"models": {}, "left_out": [], "wrong": []}
    with _storage() as folder:
        found["storage"] = str(folder.parent)
        made, shards = photo_likes(PICTURES), folder / "shards"
        write_shards(shards, made, max(model.images_decoded_by_gpu for model in MODELS))
        for model in MODELS:
            _measure(model, shards, folder / "run.zarr", ends, found)
    found["pixels"] = gpu.or_why_not(lambda: _pixels(made[:COMPARED]))
    gpu.say("pixels of --decode gpu", found["pixels"])
    found["marks"] = _marks(found["models"])
    for name, rows in found["models"].items():
        found["wrong"] += [f"{name}, {row}: {rows[row]['failed']}" for row in rows if "failed" in rows[row]]
    if "failed" in found["pixels"]:
        found["wrong"].append(f"pixels of --decode gpu: {found['pixels']['failed']}")
    return found


def _pixels(jpegs: list[bytes]) -> dict[str, Any]:
    """How `--decode gpu` changes pixels, and the heads of the first model in float32."""
    model, device = MODELS[0], torch.device(gpu.DEVICE)
    values = {"model": model.name, "pretrained": model.pretrained, "shards": "none.tar", "out": "none", "layers": "all"}
    encoder = prepare(PrecomputeSettings.from_dict({**values, "device": gpu.DEVICE, "precision": "fp32"}))
    kinds = gpu_pixels.by_kind(jpegs)
    return gpu_pixels.differences(kinds, encoder.model.preprocess, encoder, torchvision_on(device), device)


def _measure(model: Model, shards: Path, out: Path, ends: float, found: dict[str, Any]) -> None:
    """Add the rows of a model to `found`, each as soon as it is known."""
    rows: dict[str, Any] = {}
    found["models"][model.name] = rows
    settings = {"model": model.name, "pretrained": model.pretrained, "layers": "all", "out": str(out)}
    if gpu.DEVICE != "cuda":
        settings["device"] = gpu.DEVICE

    def add(name: str, work: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() > ends:
            found["left_out"].append(f"{model.name}, {name}")
            return
        rows[name] = row = gpu.or_why_not(work)
        gpu.say(f"{model.name}, {name}", {key: value for key, value in row.items() if key != "notes"})
        if row.get("bad"):
            found["wrong"].append(f"{model.name}, {name}: {row['bad']} bad images")

    for name, work in gpu_ceiling.rows(model.batch, settings, model.patches_images > 0).items():
        add(name, work)
    # Batch sizes are chosen by the memory that is free.
    torch.cuda.empty_cache()
    best = {"precision": _faster(rows), "batch_size": model.batch}
    few, many = _pattern(shards, model.images), _pattern(shards, model.images_decoded_by_gpu)
    if model == MODELS[0]:
        # First runs, which are not reported: libraries are loaded, and the kernel that resizes is compiled. The rows of
        # the tower have compiled the other kernels.
        first = {**settings, "shards": _pattern(shards, SHARD_IMAGES)}
        gpu.or_why_not(lambda: precomputed(first))
        gpu.or_why_not(lambda: precomputed({**first, **best, "decode": "gpu"}))
    add("defaults", lambda: precomputed({**settings, "shards": few}))
    for kind, images in (("fast", few), ("gpu", many)):
        named = {**best, "decode": kind}
        add(f"decode {kind}", lambda named=named, images=images: precomputed({**settings, **named, "shards": images}))  # type: ignore[misc]
    if model.patches_images:
        patches = {**best, "emit": "heads,patches", "shards": _pattern(shards, model.patches_images)}
        add("patches", lambda: precomputed({**settings, **patches}))
    for name, row in rows.items():
        ceiling = rows.get(f"tower, {row.get('precision')}", {}).get("images_a_second")
        if ceiling and "seconds" in row:
            share, steady = (_digits((row[rate] or 0) / ceiling) for rate in ("images_a_second", _STEADY))
            rows[name] = {**row, "share_of_tower": share, "steady_share_of_tower": steady}


def precomputed(values: dict[str, Any]) -> dict[str, Any]:
    """A whole run: its rates, the seconds of its stages, and what it wrote. The store is deleted afterwards."""
    seen: list[tuple[float, int]] = []
    notes: list[str] = []

    def listen(event: Progress) -> None:
        if event.stage == "images":
            seen.append((time.perf_counter(), event.done))
        elif event.stage == NOTE:
            notes.append(event.note)

    out = Path(values["out"])
    began = time.perf_counter()
    try:
        summary = precompute(PrecomputeSettings.from_dict(values), listen)
        whole = time.perf_counter() - began
        attributes = attributes_of(out) or {}
        stored = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    seconds = {name: round(value, 3) for name, value in summary.seconds.items()}
    steady = [(at, done) for at, done in seen if 4 * done >= summary.images]
    done = steady[-1][1] - steady[0][1] if steady else 0
    return {
        "settings": {name: values[name] for name in ("precision", "batch_size", "decode", "emit") if name in values},
        "precision": attributes.get("precision"),
        "batch_size": attributes.get("made_with", {}).get("batch_size"),
        "images": summary.images,
        "bad": len(summary.bad),
        "images_a_second": _digits(summary.images / seconds["total"]),
        _STEADY: _digits(done / (steady[-1][0] - steady[0][0])) if done else None,
        "gb_a_second": round(stored / seconds["total"] / 1e9, 3),
        "storing_share": _digits(seconds["storing"] / seconds["total"]),
        "seconds": seconds,
        "seconds_with_loading": round(whole, 2),
        "notes": notes[:4],
    }


def _digits(rate: float) -> float:
    """Five significant digits."""
    return float(f"{rate:.5g}")


def _faster(rows: dict[str, Any]) -> str:
    """The 16-bit type in which the tower is faster; differences below 1 % are noise, and fp16 is more exact."""
    rates = {name: rows.get(f"tower, {name}", {}).get("images_a_second", 0.0) for name in ("fp16", "bf16")}
    return "bf16" if rates["bf16"] > 1.01 * rates["fp16"] else "fp16"


def _marks(models: dict[str, Any]) -> list[dict[str, Any]]:
    """What is required, what was found, and whether that is enough; runs that were not measured have no mark."""
    marks = []

    def mark(what: str, found: float | None, required: float) -> None:
        if found is not None:
            marks.append({"what": what, "found": found, "required": required, "met": found >= required})

    def best(rows: dict[str, Any], value: str) -> float | None:
        named = [rows.get(name, {}).get(value) for name in ("decode fast", "decode gpu")]
        return max((found for found in named if found is not None), default=None)

    def rate(rows: dict[str, Any], name: str) -> float | None:
        return rows.get(name, {}).get("images_a_second")

    for name, rows in models.items():
        if name == "ViT-B-32":
            mark("ViT-B-32, JPEGs decoded on the GPU, images/s", rate(rows, "decode gpu"), DECODED_ON_THE_GPU)
            mark("ViT-B-32, JPEGs decoded by processes, images/s", rate(rows, "decode fast"), DECODED_IN_PROCESSES)
        else:
            mark(f"{name}, share of the tower at best", best(rows, "share_of_tower"), TOWER_SHARE)
            mark(f"{name}, the same without start and end", best(rows, "steady_share_of_tower"), TOWER_SHARE)
        # `--decode gpu` changes pixels a little, so the defaults do not choose it.
        ours, named = rate(rows, "defaults"), rate(rows, "decode fast")
        if ours and named:
            mark(f"{name}, defaults over named settings, same decoding", round(ours / named, 3), DEFAULTS_SHARE)
    return marks


def table(line: dict[str, Any]) -> list[list[str]]:
    """A row for each measurement: rates, the share of the tower, and the launching thread's seconds; then the marks."""
    found = [["ran", "images/s", "steady", "share of the tower", "seconds: waiting, model, storing", "GB/s stored"]]
    for model, rows in line["models"].items():
        for name, row in rows.items():
            if "failed" in row:
                found.append([f"{model}: {name}", "failed", "", "", "", ""])
                continue
            seconds, steady, share = row.get("seconds"), row.get(_STEADY), row.get("share_of_tower")
            found.append(
                [
                    f"{model}: {name}" + (f" ({row['precision']}, batch {row['batch_size']})" if seconds else ""),
                    f"{row['images_a_second']:,.0f}",
                    "" if steady is None else f"{steady:,.0f}",
                    "" if share is None else f"{share:.2f}",
                    "" if seconds is None else ", ".join(f"{seconds[stage]:.1f}" for stage in _STAGES),
                    f"{row['gb_a_second']:.2f}" if seconds else "",
                ]
            )
    for kind, row in line["pixels"].items():
        if isinstance(row, dict):
            against = row["against exact"]
            levels = f"{against['mean_levels']} grey levels on average, {against['largest_levels']} at most"
            found.append(
                [f"`--decode gpu` against `exact`, {kind}", levels, "", "", f"heads {against['heads']:.1e}", ""]
            )
    for mark in line["marks"]:
        verdict = f"required: {mark['required']:,}, {'met' if mark['met'] else 'MISSED'}"
        found.append([mark["what"], f"{mark['found']:,}", "", "", verdict, ""])
    return found


_STAGES = ("waiting for images", "model", "storing")


def headline(line: dict[str, Any]) -> tuple[str, str]:
    """The README's cells: images a second of the best runs, and what the tower alone reaches."""
    words, against = [], []
    for model, rows in line["models"].items():
        runs = {name: row["images_a_second"] for name, row in rows.items() if name[:6] == "decode" and "seconds" in row}
        if runs:
            best = max(runs, key=lambda name: runs[name])
            words.append(f"{model}: {runs[best]:,.0f} images/s from JPEGs to a store (`--{best}`)")
            share = rows[best].get("share_of_tower")
            against.append(f"{model}: {'not yet measured' if share is None else f'{share:.2f}'}")
    return "; ".join(words), "share of the tower alone: " + ", ".join(against)


def _pattern(shards: Path, images: int) -> Sequence[str]:
    """The shards of the first `images` images."""
    return sorted(map(str, shards.iterdir()))[: -(-images // SHARD_IMAGES)]


@contextmanager
def _storage() -> Iterator[Path]:
    """A new folder in memory if it has room for everything, else a temporary one; it is deleted afterwards."""
    needed = max(model.images_decoded_by_gpu for model in MODELS) * PICTURE_BYTES
    # ViT-L/14 takes 12.7 MB per image with patches.
    needed += max(model.patches_images * 15_000_000 + model.images * 100_000 for model in MODELS)
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > needed
    with tempfile.TemporaryDirectory(dir=memory if has_room else None) as name:
        yield Path(name)
