"""What does headspan's form of a contribution save against the published way, dense per-patch contributions?

The peer is open_clip's image tower with a hook in every block's attention, which multiplies each token's `α v` by
its head's output projection; once the pass is over, the final norm's share (convention `even`) and the projection
make `[batch, head, token, joint]` of it, float32, layer by layer. Source: Gandelsman, Efros, Steinhardt, ICLR 2024.
Its numbers are compared with headspan's own in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import Sizes
from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.models import MODELS, TOY, random_visual
from headspan.decompose.contributions import contributions
from headspan.decompose.fold import fold
from headspan.decompose.formula import head_coordinates, head_directions
from headspan.model.convert import to_tower
from headspan.model.tower import Tower

QUESTION = "decomposed forward against dense contributions"
# Images a batch, and rounds.
_RUNS = {"ViT-B-32": (8, 5), "ViT-B-16": (4, 5)}


def run(toy: bool) -> dict[str, Any]:
    """How much faster, for patches and for heads alone, and how far the two differ."""
    rows = {}
    for name, (batch, rounds) in ({"toy": (3, 2)} if toy else _RUNS).items():
        rows[name] = _row(TOY if toy else MODELS[name], batch, rounds)
    return {"threads": torch.get_num_threads(), "rows": rows}


def _row(size: Sizes, batch: int, rounds: int) -> dict[str, Any]:
    visual = random_visual(size)
    tower = to_tower(visual, "the benchmark's")
    pixels, every = torch.randn(batch, 3, size.pixels, size.pixels), range(size.layers)
    works: dict[str, Callable[[], object]] = {
        "plain": lambda: visual(pixels),
        "heads": lambda: tower.forward(pixels, every),
        "patches": lambda: tower.forward(pixels, every, with_patches=True, patches_dtype=torch.float16),
        "dense heads": lambda: dense(visual, pixels, with_patches=False),
        "dense patches": lambda: dense(visual, pixels, with_patches=True),
    }
    with torch.inference_mode():
        times = alternate(works, rounds)
        errors = [disagreement(visual, tower, pixels[:1], with_patches) for with_patches in (False, True)]
    return {
        "batch": batch,
        "rounds": rounds,
        "patches_seconds": median(times["patches"]),
        "times_faster_patches": ratio(times, "dense patches", "patches"),
        "times_faster_heads": ratio(times, "dense heads", "heads"),
        "dense_patches_over_plain": ratio(times, "dense patches", "plain"),
        "dense_heads_over_plain": ratio(times, "dense heads", "plain"),
        "largest_relative_error": float(f"{max(errors):.1e}"),
    }


def dense(visual: Any, pixels: Tensor, with_patches: bool) -> list[Tensor]:
    """Each layer's contributions in joint space: `[batch, head, token, joint]`, or `[batch, head, 1, joint]` with the
    tokens summed; convention `even`, not divided by the embedding's length."""
    layers: list[Tensor] = []
    states: list[Tensor] = []
    blocks = visual.transformer.resblocks

    def keep(attention: Any, arguments: tuple[Tensor, ...], _: object) -> None:
        layers.append(_by_head(attention, arguments[0], with_patches))

    handles = [block.attn.register_forward_hook(keep) for block in blocks]
    handles.append(visual.ln_post.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0])))
    try:
        visual(pixels)
    finally:
        for handle in handles:
            handle.remove()
    (state,) = states
    state = state if state.ndim == 2 else state[:, 0]
    mean = state.mean(dim=1)[:, None, None, None]
    std = torch.sqrt(state.var(dim=1, correction=0) + visual.ln_post.eps)[:, None, None, None]
    heads, parts = layers[0].shape[1], layers[0].shape[2]
    shared = (2 * len(blocks) + 1) * heads * parts
    for place, block in enumerate(blocks):
        rows = layers[place]
        rows += block.attn.out_proj.bias / (heads * parts) - mean / shared
        rows *= visual.ln_post.weight / std
        rows += visual.ln_post.bias / shared
        layers[place] = rows @ visual.proj
    return layers


def _by_head(attention: Any, x: Tensor, with_patches: bool) -> Tensor:
    """What the class token takes of each head through the output projection: `[batch, head, token or 1, width]`."""
    width, heads = x.shape[2], attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = F.linear(x[:, :1], weight[:width], bias[:width]).unflatten(-1, (heads, -1)).transpose(1, 2)
    key_value = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1))
    key, value = key_value.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
    taken = weights.transpose(2, 3) * value if with_patches else weights @ value
    return taken @ attention.out_proj.weight.T.unflatten(0, (heads, -1))


def disagreement(visual: Any, tower: Tower, pixels: Tensor, with_patches: bool) -> float:
    """The largest relative error of a head of the first image between the peer and headspan's own reading."""
    layers = range(tower.layers)
    row = tower.forward(pixels, layers, with_patches=True)
    norm, folded = contributions(row, tower).norm[0].numpy(), fold(tower, layers)
    assert row.patches is not None
    head_outputs = row.patches[0] if with_patches else row.heads[0][:, :, None]
    found = []
    for layer, peer in enumerate(dense(visual, pixels, with_patches)):
        for head, wanted in enumerate(peer[0].double().numpy()):
            own = head_outputs[layer, head].numpy()
            norms = np.broadcast_to(norm, (len(own), 3))
            coordinates = head_coordinates(own, norms, normalised=False, parts=len(own))
            got = coordinates @ head_directions(folded, layer, layer, head, "uniform")
            found.append(float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
    return max(found)


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: how much faster, and than what."""
    rows: Mapping[str, Mapping[str, Any]] = line["rows"]
    return (
        "; ".join(
            f"{name}: patches {row['times_faster_patches']:.1f}×, heads {row['times_faster_heads']:.1f}× as fast"
            for name, row in rows.items()
        ),
        "hooks that make dense contributions in joint space, "
        + "; ".join(
            f"{row['dense_patches_over_plain']:.1f}× and {row['dense_heads_over_plain']:.1f}× the plain pass"
            for row in rows.values()
        )
        + f"; the same numbers within {max(row['largest_relative_error'] for row in rows.values()):.0e}",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
