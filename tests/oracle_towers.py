"""An independent decomposition of every family of Vision Transformer in float64, one image at a time.

It is written from timm's and open_clip's modules and imports nothing of headspan. Weights have timm's names; `as_timm`
renames open_clip's. `Facts` holds what cannot be read from the weights. Every row goes through every layer, and what
each token adds to each row is stored, so that the code follows the formulas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

from tests.oracle import Activation, Decomposition, _activate, _layer_norm, _softmax

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Rotary:
    """How positions become angles: the grid that they are scaled to, an offset, and which axis comes first."""

    reference: tuple[int, int] | None
    offset: float
    columns_first: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a tower that cannot be read from its weights."""

    heads: int
    activation: Activation
    eps: float
    pool: Literal["token", "avg", "latent"]
    # Norms come after attention and MLP instead of before.
    post_norm: bool = False
    rotary: Rotary | None = None
    pool_heads: int = 0
    pool_skip: int = 0


def as_timm(weights: Weights) -> dict[str, np.ndarray]:
    """An open_clip VisionTransformer's weights under timm's names."""
    names = {
        r"^conv1\.": "patch_embed.proj.",
        r"^ln_pre\.": "norm_pre.",
        r"^ln_post\.": "fc_norm.",
        r"^transformer\.resblocks\.": "blocks.",
        r"\.ln_([12])\.": r".norm\1.",
        r"^(blocks.*)attn\.in_proj_": r"\1attn.qkv.",
        r"^(blocks.*)attn\.out_proj\.": r"\1attn.proj.",
        r"\.c_fc\.": ".fc1.",
        r"\.c_proj\.": ".fc2.",
        r"\.ls_([12])\.": r".ls\1.",
    }
    found = {}
    for name, value in weights.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        found[name] = value
    found["cls_token"] = found.pop("class_embedding")[None, None]
    found["pos_embed"] = found.pop("positional_embedding")[None]
    found["head.weight"] = found.pop("proj").T
    if "attn_pool.query" in found:
        width = found["attn_pool.query"].shape[1]
        joined = found.get("attn_pool.attn.in_proj_weight")
        parts = [found[f"attn_pool.attn.{x}_proj_weight"] for x in "qkv"] if joined is None else np.split(joined, 3)
        bias = found["attn_pool.attn.in_proj_bias"]
        found |= {
            "norm.weight": found["attn_pool.ln_k.weight"],
            "norm.bias": found["attn_pool.ln_k.bias"],
            "attn_pool.latent": _layer_norm(
                found["attn_pool.query"][:1], found["attn_pool.ln_q.weight"], found["attn_pool.ln_q.bias"], 1e-5
            )[None],
            "attn_pool.q.weight": parts[0],
            "attn_pool.q.bias": bias[:width],
            "attn_pool.kv.weight": np.concatenate(parts[1:]),
            "attn_pool.kv.bias": bias[width:],
            "attn_pool.proj.weight": found["attn_pool.attn.out_proj.weight"],
            "attn_pool.proj.bias": found["attn_pool.attn.out_proj.bias"],
        }
    return found


def decompose_tower(state_dict: Weights, facts: Facts, pixels: Float[np.ndarray, "3 height width"]) -> Decomposition:
    """Run one image through the tower and return every term of its pooled row."""
    weights = {name: np.asarray(value, np.float64) for name, value in state_dict.items()}
    stream, grid = _embed(weights, np.asarray(pixels, np.float64))
    if "norm_pre.weight" in weights:
        stream = _normed(weights, "norm_pre", stream, facts.eps)
    entering = stream
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    run = [None] * layers
    for layer in range(layers):
        block = _under(weights, f"blocks.{layer}.")
        run[layer] = _Block(block, facts, grid, stream)  # type: ignore[call-overload]
        stream = run[layer].after  # type: ignore[attr-defined]
    trunk: list[_Block] = run  # type: ignore[assignment]
    projection = weights["head.weight"].T if "head.weight" in weights else None
    if facts.pool == "latent":
        return _pool_by_attention(weights, facts, entering, trunk, projection)
    assert projection is not None
    return _pool_rows(weights, facts, entering, trunk, projection)


class _Block:
    """One block applied to a stream: `outputs[head, row, token]` is what a token adds to a row through a head."""

    def __init__(self, block: Weights, facts: Facts, grid: tuple[int, int], stream: np.ndarray) -> None:
        tokens, width = stream.shape
        heads, eps = facts.heads, facts.eps
        y = stream if facts.post_norm else _normed(block, "norm1", stream, eps)
        query, key, value = (part.reshape(tokens, heads, -1) for part in self._project(block, y))
        size = query.shape[2]
        if facts.rotary is not None:
            query, key = (_turn(x, facts.rotary, grid) for x in (query, key))
        weight = block["attn.proj.weight"] * block.get("ls1.gamma", block.get("gamma_1", np.ones(width)))[:, None]
        bias = block["attn.proj.bias"] * block.get("ls1.gamma", block.get("gamma_1", np.ones(width)))
        # [head, row n, token m]: attention weight times value, before the output projection.
        self.head_outputs = np.zeros((heads, tokens, tokens, size))
        for h in range(heads):
            scores = query[:, h] @ key[:, h].T / math.sqrt(size)
            if "attn.rel_pos.mlp.fc1.weight" in block:
                scores = scores + _relative(block, grid, tokens)[h]
            self.head_outputs[h] = _softmax(scores)[:, :, None] * value[None, :, h]
        # After the norms that follow the heads, if there are any; what these add to every row is a bias.
        emitted = self.head_outputs
        if "attn.norm.weight" in block:
            whole = self.head_outputs.sum(axis=2)
            mean = whole.mean(axis=(0, 2))[None, :, None, None]
            std = np.sqrt(whole.var(axis=(0, 2)) + eps)[None, :, None, None]
            emitted = (self.head_outputs - mean / tokens) / std
            bias = bias + weight @ block["attn.norm.bias"]
            weight = weight * block["attn.norm.weight"]
        self.outputs = np.stack([emitted[h] @ weight[:, h * size : (h + 1) * size].T for h in range(heads)])
        if facts.post_norm:
            row = self.outputs.sum(axis=(0, 2)) + bias
            std = np.sqrt(row.var(axis=1) + eps)
            shared = self.outputs + bias / (heads * tokens)
            gamma = block["norm1.weight"]
            self.outputs = (shared - shared.mean(axis=3, keepdims=True)) / std[None, :, None, None] * gamma
            ones = np.full((*emitted.shape[:3], 1), 1 / tokens)
            emitted = np.concatenate([emitted, ones], axis=3) / std[None, :, None, None]
            bias = block["norm1.bias"]
        self.emitted, self.bias = emitted, bias
        between = stream + self.outputs.sum(axis=(0, 2)) + bias
        self.mlp = _mlp(block, between if facts.post_norm else _normed(block, "norm2", between, eps), facts)
        self.mlp = self.mlp * block.get("ls2.gamma", block.get("gamma_2", np.ones(width)))
        if facts.post_norm:
            self.mlp = _normed(block, "norm2", self.mlp, eps)
        self.after = between + self.mlp

    @staticmethod
    def _project(block: Weights, y: np.ndarray) -> list[np.ndarray]:
        if "attn.qkv.weight" in block:
            parts = np.split(block["attn.qkv.weight"], 3)
            zero = np.zeros(len(parts[0]))
            if "attn.q_bias" in block:
                biases = [block["attn.q_bias"], zero, block["attn.v_bias"]]
            else:
                biases = np.split(block["attn.qkv.bias"], 3) if "attn.qkv.bias" in block else [zero] * 3
            return [y @ part.T + bias for part, bias in zip(parts, biases, strict=True)]
        parts = [block[f"attn.{x}_proj.weight"] for x in "qkv"]
        return [
            y @ part.T + block.get(f"attn.{x}_proj.bias", np.zeros(len(part)))
            for x, part in zip("qkv", parts, strict=True)
        ]


def _pool_rows(
    weights: Weights, facts: Facts, entering: np.ndarray, trunk: list[_Block], projection: np.ndarray
) -> Decomposition:
    """Pool the class token's row, or the mean of the patches' rows with the final norm before or after it."""
    stream, tokens = trunk[-1].after, len(entering)
    prefix = len(_prefix(weights, entering.shape[1]))
    before = "norm.weight" in weights
    norm = "norm" if before else "fc_norm"
    offset = weights.get("head.bias", np.zeros(projection.shape[1]))
    rows = np.zeros(tokens)
    if facts.pool == "token":
        rows[0] = 1.0
        mu, s = stream[0].mean(), math.sqrt(stream[0].var() + facts.eps)
        out = _normed(weights, norm, stream[:1], facts.eps)[0]
    elif not before:
        rows[prefix:] = 1 / (tokens - prefix)
        mean_row = rows @ stream
        mu, s = mean_row.mean(), math.sqrt(mean_row.var() + facts.eps)
        out = _normed(weights, norm, mean_row[None], facts.eps)[0]
    else:
        inverse = 1 / np.sqrt(stream[prefix:].var(axis=1) + facts.eps)
        rows[prefix:] = inverse / inverse.sum()
        mu, s = float(rows @ stream.mean(axis=1)), 1 / inverse.mean()
        out = _normed(weights, norm, stream[prefix:], facts.eps).mean(axis=0)
    embedding = out @ projection + offset
    return Decomposition(
        embedding=embedding,
        mu=float(mu),
        s=float(s),
        norm=float(np.linalg.norm(embedding)),
        initial=rows @ entering,
        patch_head_outputs=np.stack([np.einsum("n,hnmk->hmk", rows, block.emitted) for block in trunk]),
        patch_outputs=np.stack([np.einsum("n,hnmw->hmw", rows, block.outputs) for block in trunk]),
        projection_biases=np.stack([block.bias for block in trunk]),
        mlp_outputs=np.stack([rows @ block.mlp for block in trunk]),
        final_weight=weights[f"{norm}.weight"],
        final_bias=weights[f"{norm}.bias"],
        projection=projection,
        projection_bias=offset,
    )


def _pool_by_attention(
    weights: Weights, facts: Facts, entering: np.ndarray, trunk: list[_Block], projection: np.ndarray | None
) -> Decomposition:
    """Pool by one latent query over the rows; its output, plus an MLP's if there is one, is the pooled row."""
    pool, eps, heads = _under(weights, "attn_pool."), facts.eps, facts.pool_heads
    stream = trunk[-1].after[facts.pool_skip :]
    normed = _normed(weights, "norm", stream, eps)
    tokens = len(stream)
    query = pool["latent"][0, 0] @ pool["q.weight"].T + pool["q.bias"]
    width = len(query)
    size = width // heads
    key_weight, value_weight = np.split(pool["kv.weight"], 2)
    key_bias, value_bias = np.split(pool["kv.bias"], 2)
    key, value = normed @ key_weight.T + key_bias, normed @ value_weight.T + value_bias
    attention, head_outputs = np.zeros((heads, tokens)), np.zeros((1, heads, tokens, size))
    outputs = np.zeros((1, heads, tokens, len(pool["proj.weight"])))
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        attention[h] = _softmax((query[own] @ key[:, own].T / math.sqrt(size))[None])[0]
        head_outputs[0, h] = attention[h][:, None] * value[:, own]
        outputs[0, h] = head_outputs[0, h] @ pool["proj.weight"][:, own].T
    row = outputs.sum(axis=(0, 1, 2)) + pool["proj.bias"]
    mlps = np.zeros((0, len(row)))
    if "mlp.fc1.weight" in pool:
        mlps = _mlp(pool, _normed(pool, "norm", row[None], eps), facts)
    state = row + mlps.sum(axis=0)
    mu, s, final_weight, final_bias, out = 0.0, 1.0, None, None, state
    if "fc_norm.weight" in weights:
        mu, s = float(state.mean()), math.sqrt(state.var() + eps)
        final_weight, final_bias = weights["fc_norm.weight"], weights["fc_norm.bias"]
        out = _normed(weights, "fc_norm", state[None], eps)[0]
    projection = np.eye(len(state)) if projection is None else projection
    offset = weights.get("head.bias", np.zeros(projection.shape[1]))
    embedding = out @ projection + offset

    def through(rows: np.ndarray) -> np.ndarray:
        """The pooling attention's output for a part of the rows, with the norm's statistics of the whole rows."""
        std = np.sqrt(stream.var(axis=1, keepdims=True) + eps)
        part = (rows - rows.mean(axis=1, keepdims=True)) / std * weights["norm.weight"] @ value_weight.T
        pooled = [attention[h] @ part[:, h * size : (h + 1) * size] for h in range(heads)]
        return np.concatenate(pooled) @ pool["proj.weight"].T

    skip = slice(facts.pool_skip, None)
    by_head = np.stack([[through(block.outputs[h].sum(axis=1)[skip]) for h in range(facts.heads)] for block in trunk])
    # Everything that went through the pooling, plus what it adds to every image, must be the output of its heads.
    everything = by_head.sum(axis=(0, 1)) + through(entering[skip])
    for block in trunk:
        everything = everything + through(np.tile(block.bias, (tokens, 1))) + through(block.mlp[skip])
    constant = (weights["norm.bias"] @ value_weight.T + value_bias) @ pool["proj.weight"].T
    assert np.allclose(everything + constant, outputs.sum(axis=(0, 1, 2)), rtol=1e-9, atol=1e-9)
    if final_weight is not None:
        by_head = final_weight * (by_head - by_head.mean(axis=-1, keepdims=True)) / s
    return Decomposition(
        embedding=embedding,
        mu=mu,
        s=s,
        norm=float(np.linalg.norm(embedding)),
        initial=None,
        patch_head_outputs=head_outputs,
        patch_outputs=outputs,
        projection_biases=pool["proj.bias"][None],
        mlp_outputs=mlps,
        final_weight=final_weight,
        final_bias=final_bias,
        projection=projection,
        projection_bias=offset,
        through_pool=by_head @ projection,
    )


def _under(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _normed(weights: Weights, name: str, rows: np.ndarray, eps: float) -> np.ndarray:
    return _layer_norm(rows, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _mlp(weights: Weights, rows: np.ndarray, facts: Facts) -> np.ndarray:
    if "mlp.fc1_g.weight" in weights:
        gate = _silu(rows @ weights["mlp.fc1_g.weight"].T + weights["mlp.fc1_g.bias"])
        hidden = gate * (rows @ weights["mlp.fc1_x.weight"].T + weights["mlp.fc1_x.bias"])
    else:
        hidden = rows @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"]
        if hidden.shape[1] == 2 * weights["mlp.fc2.weight"].shape[1]:
            gate, hidden = np.split(hidden, 2, axis=1)
            hidden = _silu(gate) * hidden
        else:
            hidden = _activate(hidden, facts.activation)
    if "mlp.norm.weight" in weights:
        hidden = _normed(weights, "mlp.norm", hidden, facts.eps)
    return hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]


def _embed(weights: Weights, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The rows that enter the tower, `[token, width]`, and the grid of the patches."""
    steps = [_under(weights, f"patch_embed.backbone.{n}.") for n in range(3)]
    if steps[0]:
        for step in steps:
            pixels = _convolve(pixels, step["conv.weight"], step.get("conv.bias"))
            if "bn.weight" in step:
                mean, var = step["bn.running_mean"], step["bn.running_var"]
                scaled = (pixels - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
                scaled = scaled * step["bn.weight"][:, None, None] + step["bn.bias"][:, None, None]
                pixels = _activate(scaled, "gelu")
    else:
        pixels = _convolve(pixels, weights["patch_embed.proj.weight"], weights.get("patch_embed.proj.bias"))
    width, *grid = pixels.shape
    rows = pixels.reshape(width, -1).T
    prefix = _prefix(weights, width)
    positions = weights["pos_embed"][0] if "pos_embed" in weights else np.zeros_like(rows)
    if len(positions) == len(rows):
        return np.concatenate([prefix, rows + positions]), (grid[0], grid[1])
    return np.concatenate([prefix, rows]) + positions, (grid[0], grid[1])


def _prefix(weights: Weights, width: int) -> np.ndarray:
    """Class token and registers, if there are any."""
    tokens = [weights[name][0] for name in ("cls_token", "reg_token") if name in weights]
    return np.concatenate([np.zeros((0, width)), *tokens])


def _convolve(image: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """A convolution whose stride is the size of its kernel."""
    size = kernel.shape[-1]
    rows, columns = image.shape[1] // size, image.shape[2] // size
    found = np.zeros((len(kernel), rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = image[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
            found[:, i, j] = kernel.reshape(len(kernel), -1) @ patch.reshape(-1)
    return found if bias is None else found + bias[:, None, None]


def _turn(x: Float64[np.ndarray, "token head size"], rotary: Rotary, grid: tuple[int, int]) -> np.ndarray:
    """Rotary positions: pairs of numbers as complex ones, turned by the row, then the column, times frequencies."""
    found = x.copy()
    size = x.shape[2]
    frequencies = 10000.0 ** -(np.arange(size // 4) / (size // 4))
    first = len(x) - grid[0] * grid[1]
    for i in range(grid[0]):
        for j in range(grid[1]):
            place = [i + rotary.offset, j + rotary.offset]
            if rotary.reference is not None:
                place = [p / g * r for p, g, r in zip(place, grid, rotary.reference, strict=True)]
            if rotary.columns_first:
                place.reverse()
            angles = np.concatenate([p * frequencies for p in place])
            row = x[first + i * grid[1] + j]
            turned = (row[:, 0::2] + 1j * row[:, 1::2]) * np.exp(1j * angles)
            found[first + i * grid[1] + j] = np.stack([turned.real, turned.imag], axis=-1).reshape(row.shape)
    return found


def _relative(block: Weights, grid: tuple[int, int], tokens: int) -> np.ndarray:
    """What relative positions add to the scores, `[head, row, token]`: an MLP of signed logarithms of distances."""
    heads = len(block["attn.rel_pos.mlp.fc2.weight"])
    first = tokens - grid[0] * grid[1]
    found = np.zeros((heads, tokens, tokens))
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    for n, (i, j) in enumerate(places):
        for m, (k, q) in enumerate(places):
            steps = np.array([i - k, j - q], np.float64)
            coordinates = np.sign(steps) * np.log1p(np.abs(steps))
            hidden = block["attn.rel_pos.mlp.fc1.weight"] @ coordinates + block["attn.rel_pos.mlp.fc1.bias"]
            out = block["attn.rel_pos.mlp.fc2.weight"] @ np.maximum(hidden, 0) + block["attn.rel_pos.mlp.fc2.bias"]
            found[:, first + n, first + m] = out
    return found
