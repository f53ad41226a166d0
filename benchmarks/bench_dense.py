"""What does headspan's compact form save against dense contributions made in the same pass?

The peer is open_clip's image tower with headspan's linear layers (`ops.linear`, GELU fused) and one product for
queries, keys and values in each block. It makes `[batch, head, token, joint]` in float32 for every layer, in two ways:

* published: each token's `α v` through its head's output projection, then the final norm (convention `uniform`), then
  the projection into the joint space. Source: Gandelsman, Efros, Steinhardt, ICLR 2024.
* folded: one fixed matrix from the head's dimensions to the joint space, which is the algebra behind headspan's form.

Both give headspan's numbers, which is checked in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu import Sizes
from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.models import MODELS, TOY, random_visual
from headspan.decompose.contributions import contributions
from headspan.decompose.fold import fold
from headspan.decompose.formula import head_coordinates, head_directions
from headspan.model.convert import to_tower
from headspan.model.tower import Tower
from headspan_kernels import ops
from headspan_kernels.reference import split_heads

QUESTION = "forward pass against dense contributions"
DUE_TO = (
    "headspan does not materialise `[head, token, joint]`. Both sides have the same linear layers and one product for "
    "queries, keys and values; headspan's last block computes the class token's row only, which saves 3 to 7 % of a "
    "pass. “Folded” shows what is left of the saving when the peer folds its matrices as headspan does."
)
# Images a batch, and rounds.
_RUNS = {"ViT-B-32": (8, 5), "ViT-B-16": (4, 5)}
_PEERS = {"published": False, "folded": True}
_linear, _linear_act = ops(torch.device("cpu")).linear, ops(torch.device("cpu")).linear_act


def run(toy: bool) -> dict[str, Any]:
    """How many times as long the peers take, for patches and for heads alone, and how far the numbers differ."""
    rows = {}
    for name, (batch, rounds) in ({"toy": (3, 2)} if toy else _RUNS).items():
        rows[name] = _row(TOY if toy else MODELS[name], batch, rounds)
    return {"threads": torch.get_num_threads(), "rows": rows}


def _row(size: Sizes, batch: int, rounds: int) -> dict[str, Any]:
    visual = random_visual(size)
    tower, peer = to_tower(visual, "the benchmark's"), Dense(visual)
    pixels, every = torch.randn(batch, 3, size.pixels, size.pixels), range(size.layers)
    works: dict[str, Callable[[], object]] = {
        "plain": lambda: peer.plain(pixels),
        "heads": lambda: tower.forward(pixels, every),
        "patches": lambda: tower.forward(pixels, every, with_patches=True, patches_dtype=torch.float16),
    }
    forms = [(kind, name) for kind in ("heads", "patches") for name in _PEERS]
    for kind, name in forms:
        works[f"{name} {kind}"] = lambda kind=kind, name=name: peer.dense(pixels, kind == "patches", _PEERS[name])  # type: ignore[misc]
    with torch.inference_mode():
        times = alternate(works, rounds)
        errors = [disagreement(peer, tower, pixels[:1], kind == "patches", _PEERS[name]) for kind, name in forms]
    return {
        "batch": batch,
        "rounds": rounds,
        "patches_seconds": median(times["patches"]),
        **{f"{name}_{kind}": ratio(times, f"{name} {kind}", kind) for kind, name in forms},
        **{f"{name}_{kind}_over_plain": ratio(times, f"{name} {kind}", "plain") for kind, name in forms},
        "largest_relative_error": float(f"{max(errors):.1e}"),
    }


class Dense:
    """open_clip's image tower, copied, with headspan's linear layers, and its dense contributions."""

    def __init__(self, visual: Any) -> None:
        self._visual = deepcopy(visual)
        self._blocks = [_Attention(block.attn) for block in self._visual.transformer.resblocks]
        for block, attention in zip(self._visual.transformer.resblocks, self._blocks, strict=True):
            block.attn, block.mlp = attention, _Mlp(block.mlp)
        self._states: list[Tensor] = []
        self._visual.ln_post.register_forward_pre_hook(lambda _, arguments: self._states.append(arguments[0]))
        norm, projection = self._visual.ln_post, self._visual.proj
        # [joint, width], and for every head [joint, head_dim].
        self._projection = projection.detach().T.contiguous()
        gain = norm.weight[:, None] * projection
        self._folded = [[(weight.T @ gain).T.contiguous() for weight in each.weights] for each in self._blocks]

    def plain(self, pixels: Tensor) -> Tensor:
        """The embedding, without contributions."""
        return self._pass(pixels, None)[0]

    def dense(self, pixels: Tensor, with_patches: bool, folded: bool) -> list[Tensor]:
        """Each layer's contributions in joint space: `[batch, head, token, joint]`, or `[batch, head, 1, joint]` with
        the tokens summed; convention `uniform`, not divided by the embedding's length."""
        _, state = self._pass(pixels, with_patches)
        norm = self._visual.ln_post
        mean = state.mean(dim=1)[:, None, None, None]
        std = torch.sqrt(state.var(dim=1, correction=0) + norm.eps)[:, None, None, None]
        layers = []
        for block, matrices in zip(self._blocks, self._folded, strict=True):
            taken = block.taken()
            parts = taken.shape[1] * taken.shape[2]
            shared = (2 * len(self._blocks) + 1) * parts
            # The part of the output bias and of the mean that each term is assigned.
            common = block.output.bias / parts - mean / shared
            if folded:
                own = torch.stack([_linear(taken[:, head], matrix, None) for head, matrix in enumerate(matrices)], 1)
                common = common * norm.weight / std + norm.bias / shared
                layers.append(own / std + _linear(common, self._projection, None))
            else:
                rows = [_linear(taken[:, head], weight, None) for head, weight in enumerate(block.weights)]
                terms = torch.stack(rows, 1)
                terms += common
                terms *= norm.weight / std
                terms += norm.bias / shared
                layers.append(_linear(terms, self._projection, None))
        return layers

    def _pass(self, pixels: Tensor, with_patches: bool | None) -> tuple[Tensor, Tensor]:
        """The embedding, and the class token's final state `[batch, width]`."""
        for block in self._blocks:
            block.with_patches = with_patches
        embedding = self._visual(pixels)
        state = self._states.pop()
        return embedding, state if state.ndim == 2 else state[:, 0]


class _Attention(nn.Module):
    """Self-attention with one product for queries, keys and values, which stores `α v` of the class token."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads, self.output = attention.num_heads, attention.out_proj
        self.weight, self.bias = attention.in_proj_weight, attention.in_proj_bias
        # [width, head_dim] for every head.
        self.weights = [part.contiguous() for part in self.output.weight.detach().chunk(self.heads, dim=1)]
        # True stores `α v` of each token, False its sum over tokens, None nothing.
        self.with_patches: bool | None = None
        self._taken: Tensor | None = None

    def forward(self, x: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor, None]:
        query, key, value = split_heads(_linear(x, self.weight, self.bias), 3, self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        if self.with_patches:
            scores = query[:, :, :1] @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            self._taken = torch.softmax(scores, dim=-1).transpose(2, 3) * value
        elif self.with_patches is not None:
            self._taken = mixed[:, :, :1]
        return _linear(mixed.transpose(1, 2).flatten(2), self.output.weight, self.output.bias), None

    def taken(self) -> Tensor:
        """`α v` of the class token, `[batch, head, token, head_dim]`, or their sum as one token; stored no longer."""
        assert self._taken is not None
        taken, self._taken = self._taken, None
        return taken


class _Mlp(nn.Module):
    """open_clip's MLP, its GELU fused with the first product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        assert isinstance(mlp.gelu, nn.GELU)
        self.expand, self.shrink = mlp.c_fc, mlp.c_proj

    def forward(self, x: Tensor) -> Tensor:
        hidden = _linear_act(x, self.expand.weight, self.expand.bias, "gelu")
        return _linear(hidden, self.shrink.weight, self.shrink.bias)


def disagreement(peer: Dense, tower: Tower, pixels: Tensor, with_patches: bool, folded: bool) -> float:
    """The largest relative error of any head of the first image between the peer and headspan's own numbers."""
    layers = range(tower.layers)
    row = tower.forward(pixels, layers, with_patches=True)
    norm, matrices = contributions(row, tower).norm[0].numpy(), fold(tower, layers)
    assert row.patches is not None
    head_outputs = row.patches[0] if with_patches else row.heads[0][:, :, None]
    found = []
    for layer, dense in enumerate(peer.dense(pixels, with_patches, folded)):
        for head, wanted in enumerate(dense[0].double().numpy()):
            own = head_outputs[layer, head].numpy()
            norms = np.broadcast_to(norm, (len(own), 3))
            coordinates = head_coordinates(own, norms, normalised=False, parts=len(own))
            got = coordinates @ head_directions(matrices, layer, layer, head, "uniform")
            found.append(float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
    return max(found)


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model: how many times headspan's time the peers take, and times a plain pass."""
    rows: Mapping[str, Mapping[str, Any]] = line["rows"]
    head = ["time of dense contributions over headspan's (over a plain pass)", *_PEERS, "largest difference"]
    found = [head]
    for name, row in rows.items():
        for kind in ("heads", "patches"):
            cells = [f"{row[f'{peer}_{kind}']:.1f}× ({row[f'{peer}_{kind}_over_plain']:.2f}×)" for peer in _PEERS]
            found.append([f"{name}, {kind}", *cells, f"{row['largest_relative_error']:.0e}"])
    return found


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: how much longer dense patches take."""
    rows = line["rows"].items()
    return (
        "; ".join(f"{name}: dense patches take {row['published_patches']:.1f}× as long" for name, row in rows),
        "dense contributions in the same pass with the same linear layers; with folded matrices "
        + ", ".join(f"{row['folded_patches']:.1f}×" for _, row in rows),
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
