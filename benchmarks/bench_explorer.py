"""How fast does the explorer's server answer at a million images, with 20 requests at a time?

`headspan explore` serves a store of ViT-B/32's sizes and its last four layers, with captions, classes, pictures, texts
and labels (`explored_store`), and a small one with patches. Twenty clients, in a process of their own, each send a
request when their last one is answered: a seeded mix of all kinds of stored answers, as many of each, about random
images, heads, texts and words (`explorer_mix`). Before, every choice of heads is asked about twice and the sketches are
built; their seconds are stated. The server's start is the median of three; the first one may compile modules, which an
installation has done. The first screen is the page, status, store and grid, one after the other, in a server that has
just started. The share of the cores tells what is left for more requests. Typed texts and a dropped-in image
are asked of a store of random weights, beside one forward pass in this process.
"""

from __future__ import annotations

import io
import json
import os
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

import headspan as hs
from benchmarks.closed_loop import closed_loop
from benchmarks.explored_store import write_explored_store, write_patches_store
from benchmarks.explorer_mix import Mix
from benchmarks.measure import benchmark, own_cache, seconds
from benchmarks.models import MODELS, TOY, store_size
from benchmarks.pictures import photo_like, write_shards
from benchmarks.served import Served, served
from headspan.concepts.labels import read_labels
from headspan.config import PrecomputeSettings
from headspan.explore.query.query_image import query_image
from headspan.run.precompute import precompute
from headspan.texts.stored import stored_pool

QUESTION = "the explorer at a million images"
DUE_TO = (
    "Neighbours read eight-bit sketches of contributions in joint space: 32 bytes an image for a property or the "
    "embedding, 64 for a head, and both ends of a text at once. Neighbours of the stored texts by embedding are "
    "listed, all texts in one pass. Words are indexed, planes are kept. BLAS has one thread, since others would spin "
    "while they wait. Searches run in a process for each core, which all read the same sketches, so that they do not "
    "wait for Python's lock. Two requests more than cores are answered at once; those that take long begin a little "
    "earlier, so that all are answered after about the same time. The waiting of twenty clients is most of it."
)
CLIENTS, READY_MARK, SCREEN_MARK, ANSWER_MARK = 20, 2.0, 1.0, 0.1
SCREEN = ("/", "/api/status", "/api/stores/run", "/api/stores/run/grid")
_SKETCH_SECONDS, _STARTS = 900.0, 3


def run(toy: bool, images: int = 1_000_000, folder: Path | None = None) -> dict[str, Any]:
    """Times of all kinds of answers; `folder` holds the stores of an earlier call, or will hold them."""
    images, unit_images, size = (600, 64, TOY) if toy else (images, 16_384, MODELS["ViT-B-32"])
    with tempfile.TemporaryDirectory() as name:
        folder, random = folder or Path(name), np.random.default_rng(0)
        folder.mkdir(exist_ok=True)
        layers = min(4, size.layers)
        if not (folder / "patches.zarr").exists():
            sizes = store_size(size, images, unit_images, last_layers=layers)
            store = write_explored_store(folder, sizes, random, 60 if toy else None, size.pixels)
            few = store_size(size, 64, 64, last_layers=layers)
            write_patches_store(folder / "patches.zarr", few, random, store)
        line = _stored(folder, 48 if toy else 2400, 96 if toy else 10_000)
        # Numbers of pictures that were dropped in before are in the cache.
        with own_cache(Path(name)):
            line.update(_model(Path(name), toy))
        return {"images": images, "clients": CLIENTS, "cores": os.cpu_count(), **line}


def _stored(folder: Path, measured: int, many: int) -> dict[str, Any]:
    """What the server says about stored numbers."""
    store = hs.open(folder / "run.zarr")
    labels = sorted({name for row in read_labels(store).concepts for name in row if name is not None})
    stores, starts = [folder / "run.zarr", folder / "patches.zarr"], []
    for _ in range(_STARTS - 1):
        with served(stores, _free_port()) as server:
            starts.append(server.ready_seconds)
    with served(stores, _free_port()) as server:
        starts.append(server.ready_seconds)
        began = time.perf_counter()
        for path in SCREEN:
            _try(server, path)
        screen = time.perf_counter() - began
        parts = json.loads(server.get("/api/stores/run/planes/embedding"))["parts"]
        mix = Mix(store, stored_pool(store, "general").texts, labels, hs.open(folder / "patches.zarr"), parts)
        began = time.perf_counter()
        for path in mix.through_all() * 2:
            server.get(path)
        server.wait_until_idle(_SKETCH_SECONDS)
        for _ in range(2):
            server.get(mix.of_text())
        server.wait_until_idle(_SKETCH_SECONDS)
        built = time.perf_counter() - began
        _loop(server, mix, measured)
        row = _loop(server, mix, measured)
        alone = _loop(server, mix, max(len(mix.kinds), measured // 10), 1)
        memory = {}
        for asked in (max(CLIENTS, many // 10), many - many // 10):
            _loop(server, mix, asked)
            memory[f"{asked}"] = server.own_bytes
        has_torch = server.has_torch
    first, last = memory.values()
    kinds = {kind: {**times, "alone": alone["kinds"][kind]["p50"]} for kind, times in row["kinds"].items()}
    return {
        "ready_seconds": round(float(np.median(starts)), 3),
        "has_torch": has_torch,
        "first_screen_seconds": round(screen, 3),
        "sketches_seconds": round(built, 1),
        **{name: value for name, value in row.items() if name != "kinds"},
        "kinds": kinds,
        "own_bytes": [first, last],
    }


def _loop(server: Served, mix: Mix, count: int, clients: int = CLIENTS) -> dict[str, Any]:
    """Seconds of requests, over all and by kind, and what took processor time."""
    kinds, paths = mix.some(count)
    used = server.processor_seconds
    load = closed_loop(server.port, paths, clients)
    used = server.processor_seconds - used
    if refused := [path for path, status in zip(paths, load.statuses, strict=True) if status != 200]:
        raise ValueError(f"{len(refused)} requests were refused, such as {refused[0]}")
    by_kind = defaultdict(list)
    for kind, each in zip(kinds, load.seconds, strict=True):
        by_kind[kind].append(each)
    cores = os.cpu_count() or 1
    rate = count / load.all_seconds
    return {
        **_quantiles(load.seconds),
        "requests_a_second": round(rate, 1),
        "processor_seconds": float(f"{used / count:.3g}"),
        "share_of_cores": round(rate * used / count / cores, 3),
        "client_share": round(load.client_seconds / (load.all_seconds * cores), 4),
        "kinds": {kind: _quantiles(times) for kind, times in sorted(by_kind.items())},
    }


def _quantiles(times: list[float]) -> dict[str, float]:
    return {f"p{share}": float(f"{np.quantile(times, share / 100):.3g}") for share in (50, 95, 99)}


def _model(folder: Path, toy: bool) -> dict[str, Any]:
    """Seconds of a typed text and of a dropped-in image, which need the model, beside a forward pass."""
    model, pictures = ("reference", 4) if toy else ("ViT-B-32", 24)
    encoded = [photo_like(np.random.default_rng(100 + seed), 500, 375) for seed in range(pictures)]
    write_shards(folder / "few", encoded[:4], 4)
    settings = {"shards": str(folder / "few"), "out": str(folder / "model.zarr"), "model": model}
    precompute(PrecomputeSettings.from_dict({**settings, "pretrained": "random:0", "layers": "last4"}))
    store, waiting = hs.open(folder / "model.zarr"), encoded[4:] or encoded
    repeats = 2 if toy else len(waiting) - 1
    opened = iter([Image.open(io.BytesIO(each)) for each in [*waiting, *waiting]])
    forward = seconds(lambda: query_image(store, next(opened)), repeats=repeats)
    with served([folder / "model.zarr"], _free_port()) as server:
        place, numbers = "/api/stores/model", iter(range(1000))
        began = time.perf_counter()
        server.get(f"{place}/texts?text={quote('the first text')}")
        loaded = time.perf_counter() - began
        new = seconds(lambda: server.get(f"{place}/texts?text={quote(f'text {next(numbers)}')}"), repeats=repeats)
        known = seconds(lambda: server.get(f"{place}/texts?text={quote('the first text')}"), repeats=repeats)
        dropped = iter([*waiting, *waiting])

        def drop() -> None:
            found = server.post(f"{place}/uploads", next(dropped))["id"]
            server.get(f"{place}/neighbours?image={found}")

        images = seconds(drop, repeats=repeats)
        has_torch = server.has_torch
    return {
        "model": model,
        "forward_seconds": float(f"{forward.median:.3g}"),
        "dropped_seconds": float(f"{images.median:.3g}"),
        "model_loaded_seconds": float(f"{loaded:.3g}"),
        "new_text_seconds": float(f"{new.median:.3g}"),
        "known_text_seconds": float(f"{known.median:.3g}"),
        "has_torch_with_model": has_torch,
    }


def _try(server: Served, path: str) -> None:
    """Ask for a path; the page is missing in a checkout that has not built it."""
    try:
        server.get(path)
    except OSError:
        if path != "/":
            raise


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        found: int = listener.getsockname()[1]
    return found


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """Rows for the marks, then one for each kind of answer, the slowest first."""
    first, last = line["own_bytes"]
    torch = "with" if line["has_torch"] else "without"
    found = [
        ["20 requests at a time", "p50", "p95", "p99", "one at a time", "mark"],
        ["all kinds of stored answers", *_three(line), "", _mark(line["p95"], ANSWER_MARK)],
    ]
    for kind, times in sorted(line["kinds"].items(), key=lambda item: -item[1]["p50"]):
        found.append([kind, *_three(times), _milliseconds(times["alone"]), ""])
    ready, screen = line["ready_seconds"], line["first_screen_seconds"]
    rate = line["requests_a_second"]
    found += [
        [f"server ready, {torch} torch", _milliseconds(ready), "", "", "", _mark(ready, READY_MARK)],
        ["first screen", _milliseconds(screen), "", "", "", _mark(screen, SCREEN_MARK)],
        [f"{rate:,.0f} requests a second: share of the cores, of the clients", *_shares(line), "", "", ""],
        [
            "memory without mapped files after a tenth of the requests, and after all",
            _mega(first),
            _mega(last),
            "",
            "",
            "",
        ],
        [
            f"dropped-in image, one forward pass of {line['model']}",
            *(_milliseconds(line["dropped_seconds"]), _milliseconds(line["forward_seconds"]), "", "", ""),
        ],
        [
            "typed text: new, known",
            *(_milliseconds(line["new_text_seconds"]), _milliseconds(line["known_text_seconds"]), "", "", ""),
        ],
    ]
    return found


def _three(times: Mapping[str, float]) -> tuple[str, str, str]:
    return _milliseconds(times["p50"]), _milliseconds(times["p95"]), _milliseconds(times["p99"])


def _shares(line: Mapping[str, Any]) -> tuple[str, str]:
    return f"{line['share_of_cores']:.0%}", f"{line['client_share']:.1%}"


def _mark(found: float, mark: float) -> str:
    return _milliseconds(mark) + ("" if found < mark else ", MISSED")


def _mega(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _milliseconds(found: float) -> str:
    return f"{found * 1e3:,.3g} ms" if found < 1 else f"{found:,.2f} s"


if __name__ == "__main__":
    benchmark(QUESTION, run)
