"""How exact are the contributions that a CPU computes in float32, bf16 and float16?

Each pass is compared with one in float64, over all layers: the sum of contributions, every head, every patch. The
models are ViT-L/14 with random weights on random pixels, and headspan's trained reference model on scenes of its world.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu import Sizes
from benchmarks.measure import benchmark
from benchmarks.models import MODELS, TOY, random_visual
from benchmarks.precision import Exact, marks_met
from headspan.model.convert import to_tower
from headspan.model.load import REFERENCE, load_model
from headspan.model.tower import normalise
from headspan.world.drawing import render
from headspan.world.scenes import scene

QUESTION = "contributions in fewer bits on a CPU"
DUE_TO = (
    "The errors are those of the types' digits. Large trained models have a few activations a hundred times as large "
    "as the others; neither model here has."
)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Images of random pixels, and scenes.
_IMAGES, _SCENES = 4, 64


def run(toy: bool) -> dict[str, Any]:
    """Every model's errors in every type, and whether those in bf16 are within the required limits."""
    torch.manual_seed(0)
    name, size, scenes = ("toy", TOY, 2) if toy else ("ViT-L-14", MODELS["ViT-L-14"], _SCENES)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for model, exact in ((name, _random(size)), (REFERENCE, _trained(scenes))):
        rows[model] = {kind: _short(exact.errors(dtype)) for kind, dtype in _DTYPES.items()}
    met = all(marks_met(row["bf16"]) for row in rows.values())
    return {"images": _IMAGES, "scenes": scenes, "rows": rows, "marks_met": met}


def _random(size: Sizes) -> Exact:
    return Exact(to_tower(random_visual(size), "random"), torch.randn(_IMAGES, 3, size.pixels, size.pixels))


def _trained(scenes: int) -> Exact:
    model = load_model(REFERENCE, None)
    pixels = torch.from_numpy(render(scene(0, "held_out", index) for index in range(scenes)))
    normalised = normalise(pixels, model.preprocess.mean, model.preprocess.std, torch.float32)
    return Exact(to_tower(model.clip.visual, REFERENCE), normalised)


def _short(errors: Mapping[str, float]) -> dict[str, float]:
    """To three digits; a cosine, which is nearly 1, to seven."""
    return {name: round(value, 7) if name == "cosine" else float(f"{value:.3g}") for name, value in errors.items()}


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model and type: relative errors, and the lowest cosine."""
    head = ["relative error against float64", "sum of contributions", "heads", "patches", "lowest cosine of the sum"]
    rows = [
        [
            f"{model}, {kind}",
            *(f"{errors[f'{part}_error']:.1e}" for part in ("sum", "heads", "patches")),
            f"{errors['cosine']:.7f}",
        ]
        for model, kinds in line["rows"].items()
        for kind, errors in kinds.items()
    ]
    met = "met" if line["marks_met"] else "MISSED"
    return [head, *rows, [f"required of bf16: {met}", "1e-2", "", "", "0.9999"]]


if __name__ == "__main__":
    benchmark(QUESTION, run)
