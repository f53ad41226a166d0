"""The ceiling of `precompute` on a GPU: the tower alone, and with moments and the transfer to the host.

The tower alone runs on random pixels that are on the GPU. The second loop starts from grey levels on the host, as a run
does after decoding; nothing is decoded and no store is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import gpu, gpu_switches
from headspan.config import PrecomputeSettings
from headspan.decompose.contributions import Contributions, contributions
from headspan.decompose.moments import Moments
from headspan.model.tower import Tower, normalise
from headspan.run.encoder import Encoder, prepare


def rows(batch: int, settings: dict[str, Any], with_patches: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """The measurements by name; the model that `settings` name is loaded for the first of them."""
    loaded: list[Encoder] = []

    def encoder() -> Encoder:
        if not loaded:
            values = {**settings, "shards": "none.tar", "device": gpu.DEVICE, "precision": "bf16", "batch_size": batch}
            loaded.append(prepare(PrecomputeSettings.from_dict(values)))
        return loaded[0]

    def tower(dtype: torch.dtype) -> Tower:
        return encoder().exact.to(torch.device(gpu.DEVICE), dtype)

    works: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        works[f"tower, {name}"] = lambda dtype=dtype: _forward(tower(dtype), encoder(), batch, False)  # type: ignore[misc]
        works[f"tower with moments and transfer, {name}"] = lambda dtype=dtype: _emitted(tower(dtype), encoder(), batch)  # type: ignore[misc]
        works[f"tower as a CUDA graph, {name}"] = lambda dtype=dtype, name=name: (
            _forward(  # type: ignore[misc]
                tower(dtype), encoder(), batch, False, as_graph=True
            )
            | gpu_switches.decides("TOWER_GRAPH", tower(dtype), f"tower, {name}")
        )
        if with_patches:
            works[f"tower with patches, {name}"] = lambda dtype=dtype: _forward(tower(dtype), encoder(), batch, True)  # type: ignore[misc]
    return works


def _forward(
    tower: Tower,
    encoder: Encoder,
    batch: int,
    with_patches: bool,
    as_graph: bool = False,
) -> dict[str, Any]:
    """The rate of the forward pass on random pixels that are on the GPU."""
    height, width = encoder.model.preprocess.size
    pixels = torch.randn(batch, 3, height, width, device=gpu.DEVICE).to(tower.dtype)
    timed = gpu.replayed if as_graph else gpu.milliseconds
    took = timed(lambda: tower.forward(pixels, encoder.layers, with_patches, patches_dtype=torch.float16), 600)
    return {**took, "images_a_second": round(batch / took["ms"] * 1e3, 1)}


def _emitted(tower: Tower, encoder: Encoder, batch: int) -> dict[str, Any]:
    """The rate of a loop that does all of a run's work on the GPU: grey levels in, moments, numbers on the host."""
    preprocess, device = encoder.model.preprocess, torch.device(gpu.DEVICE)
    levels = torch.randint(0, 256, (batch, *preprocess.size, 3), dtype=torch.uint8)
    if device.type == "cuda":
        levels = levels.pin_memory()
    moments = Moments.zeros(len(encoder.layers), tower.heads, tower.head_dim, device, tower.projection.shape[1])

    def launched() -> Contributions:
        pixels = normalise(levels.to(device, non_blocking=True), preprocess.mean, preprocess.std, tower.dtype)
        result = contributions(tower.forward(pixels, encoder.layers), tower)
        moments.add(result.heads, result.norm, result.finite, result.embedding)
        return result

    def loop(batches: int) -> float:
        began, before = time.perf_counter(), launched()
        for _ in range(batches - 1):
            after = launched()
            _ = before.arrays
            before = after
        _ = before.arrays
        return time.perf_counter() - began

    # As many batches as take about a second.
    batches = max(2, min(100, int(1.0 / max(loop(2) / 2, 1e-3))))
    return {"images_a_second": round(batches * batch / loop(batches), 1)}
