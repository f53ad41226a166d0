"""What do 23 sets of pruned heads in the last 4 of 24 layers cost, in plain passes of the model?

The sets are those of a study: high, low, 20 random draws, and a single head. Four ways to their embeddings run
alternately in one process, on the same threads, type, weights and pixels:

* plain: one pass of headspan's tower with all heads;
* variants: all sets in one pass, as `total_effect` runs them;
* one pass each: headspan's tower with pruned weights, whole for each set;
* open_clip: its own tower, whole for each set, with hooks that swap pruned output projections in and out. It runs in
  evaluation and inference mode; swapping costs nothing, and its fused attention stays in use.

Of the last two, whole passes of three sets are timed, since each set costs the same. Weights and pixels are random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.models import MODELS, TOY, random_visual
from headspan.decompose.contributions import contributions
from headspan.head_names import Head
from headspan.model.allocator import keep_freed_memory
from headspan.model.convert import to_tower
from headspan.model.pruned import by_layer, pruned
from headspan.model.tower import Tower
from headspan.model.variants import embeddings_of_variants

QUESTION = "sets of pruned heads in one pass"
DUE_TO = (
    "All sets share the layers before their first pruned one, and that layer's attention. Each set repeats its output "
    "projection and MLP, the layers behind it, and of the last block the keys, the values and the class token's row. "
    "The floor counts these matrix products."
)
# The most plain passes that the 23 sets may cost, and the least gain over one pass each.
PASSES, GAIN = 5.0, 4.0
_DRAWS = 20
# Sets of which a whole pass is timed.
_WHOLE = 3
# Images in a batch, and rounds.
_RUNS = {"ViT-L-14": (2, 3)}


def run(toy: bool) -> dict[str, Any]:
    """Times and the number of plain passes."""
    # As in a run; open_clip's tower profits too.
    keep_freed_memory()
    rows = {}
    for name, (batch, rounds) in ({"toy": (3, 2)} if toy else _RUNS).items():
        size = TOY if toy else MODELS[name]
        visual = random_visual(size)
        tower = to_tower(visual, name)
        pixels = torch.randn(batch, 3, size.pixels, size.pixels)
        rows[name] = _row(visual, tower, pixels, sets_of(tower, min(4, tower.layers - 1)), rounds)
    return {
        "threads": torch.get_num_threads(),
        "rows": rows,
        "marks": {"passes": PASSES, "gain": GAIN},
        "missed": [] if toy else [name for name, row in rows.items() if row["passes"] > PASSES or row["gain"] < GAIN],
    }


def sets_of(tower: Tower, layers: int) -> list[list[Head]]:
    """High, low, draws that have as many heads of each layer as high, and one head, all in the last `layers`."""
    random = np.random.default_rng(0)
    heads, last = tower.trunk_heads, range(tower.layers - layers, tower.layers)

    def draw() -> list[Head]:
        chosen = {layer: random.choice(heads, max(1, heads // 4), replace=False) for layer in last}
        return [(layer, int(head)) for layer, own in chosen.items() for head in own]

    return [*(draw() for _ in range(2 + _DRAWS)), [(last[-2], heads - 1)]]


def _row(visual: Any, tower: Tower, pixels: Tensor, sets: Sequence[Sequence[Head]], rounds: int) -> dict[str, Any]:
    whole = sets[:_WHOLE]
    towers = [pruned(tower, heads) for heads in whole]
    weights = [_pruned_weights(visual, tower, heads) for heads in whole]
    last = (tower.layers - 1,)

    def open_clip() -> list[Tensor]:
        found = []
        for each in weights:
            with _swapped(visual, each):
                found.append(visual(pixels))
        return found

    def one_pass_each() -> list[Tensor]:
        return [contributions(each.forward(pixels, last), each).embedding for each in towers]

    works = {
        "plain": lambda: embeddings_of_variants(tower, pixels, [[]]),
        "variants": lambda: embeddings_of_variants(tower, pixels, sets),
        "one_pass_each": one_pass_each,
        "open_clip": open_clip,
    }
    with torch.inference_mode():
        together = embeddings_of_variants(tower, pixels, whole)
        others = zip([*together, *together], [*one_pass_each(), *open_clip()], strict=True)
        distance = float(max((mine - other).norm() / other.norm() for mine, other in others))
        times = alternate(works, rounds, warmup=0)
    each, hooks = (len(sets) / _WHOLE * ratio(times, way, "plain") for way in ("one_pass_each", "open_clip"))
    passes = ratio(times, "variants", "plain")
    return {
        "batch": len(pixels),
        "rounds": rounds,
        "sets": len(sets),
        "layers": tower.layers,
        "plain_seconds": median(times["plain"]),
        "variants_seconds": median(times["variants"]),
        "passes": passes,
        "floor": round(_products(tower, sets), 4),
        "one_pass_each": round(each, 4),
        "open_clip": round(hooks, 4),
        "gain": round(each / passes, 4),
        "gain_over_open_clip": round(hooks / passes, 4),
        "largest_distance": float(f"{distance:.1e}"),
    }


def _products(tower: Tower, sets: Sequence[Sequence[Head]]) -> float:
    """Matrix products of blocks that the sets need, in plain passes. A block has 12 of width × width for each row."""
    # Queries, keys and values are 3, the output projection 1, the MLP 8. The last block makes keys and values only.
    plain = 12 * (tower.layers - 1) + 2
    first = min(layer for heads in sets for layer, _ in heads)
    total = 12 * first
    for layer in range(first, tower.layers):
        # Of a layer, sets that agree so far share the attention.
        so_far = {tuple(sorted(head for head in heads if head[0] < layer)) for heads in sets}
        behind = {tuple(sorted(head for head in heads if head[0] <= layer)) for heads in sets}
        total += 2 * len(so_far) if layer == tower.layers - 1 else 3 * len(so_far) + 9 * len(behind)
    return total / plain


def _pruned_weights(visual: Any, tower: Tower, heads: Sequence[Head]) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """The output projections that lack some of `heads`, each with its own weight and the pruned one."""
    found = []
    for layer, own in by_layer(tower, heads).items():
        projection = visual.transformer.resblocks[layer].attn.out_proj
        weight = projection.weight.detach().clone().unflatten(1, (tower.trunk_heads, -1))
        weight[:, list(own)] = 0
        found.append((projection, projection.weight.detach(), weight.flatten(1)))
    return found


@contextmanager
def _swapped(visual: Any, weights: Sequence[tuple[Any, Tensor, Tensor]]) -> Iterator[None]:
    """Hooks on open_clip's attention that swap the pruned weight in before it runs, and out behind it."""
    of_projection = {projection: (whole, lacking) for projection, whole, lacking in weights}
    with ExitStack() as hooks:
        for block in visual.transformer.resblocks:
            projection = block.attn.out_proj
            if projection not in of_projection:
                continue
            whole, lacking = of_projection[projection]

            def before(module: Any, given: Any, lacking: Tensor = lacking) -> None:
                module.out_proj.weight.data = lacking

            def behind(module: Any, given: Any, output: Any, whole: Tensor = whole) -> None:
                module.out_proj.weight.data = whole

            hooks.callback(block.attn.register_forward_pre_hook(before).remove)
            hooks.callback(block.attn.register_forward_hook(behind).remove)
        yield


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model: the passes that each way takes."""
    head = [
        f"time in plain passes ({line['threads']} threads)",
        "one pass, all sets",
        "floor",
        "one pass each",
        "open_clip with hooks",
        "gain",
        "of open_clip",
        "seconds for a batch",
    ]
    rows = [
        [
            f"{name}, {row['sets']} sets in the last of {row['layers']} layers",
            f"{row['passes']:.2f}",
            f"{row['floor']:.2f}",
            f"{row['one_pass_each']:.1f}",
            f"{row['open_clip']:.1f}",
            f"{row['gain']:.1f}×",
            f"{row['gain_over_open_clip']:.1f}×",
            f"{row['variants_seconds']:.3g} of {row['batch']} images",
        ]
        for name, row in line["rows"].items()
    ]
    verdict = f"MISSED: {', '.join(line['missed'])}" if line["missed"] else "met"
    marks = line["marks"]
    return [head, *rows, [f"required: {verdict}", f"{marks['passes']:g}", "", "", "", f"{marks['gain']:g}×", "", ""]]


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: plain passes, and the other ways."""
    name, row = next(iter(line["rows"].items()))
    return (
        f"{name}: {row['sets']} sets of pruned heads in one pass cost {row['passes']:.1f} plain passes",
        f"one pass each {row['one_pass_each']:.1f}; open_clip with hooks {row['open_clip']:.1f}; the matrix products "
        f"alone {row['floor']:.1f}",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
