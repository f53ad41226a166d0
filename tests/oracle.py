"""An independent decomposition and TEXTSPAN in float64, in slow loops that are easy to check.

It is written from the papers' formulas and from open_clip's `transformer.py`, and imports nothing of headspan. It
computes one image at a time, every token through every layer, without folded matrices or moments. This module covers
open_clip's plain towers; oracle_towers.py covers attention pooling and timm's families with their norms, gates and
positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int

Convention = Literal["uniform", "per_term"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Pool = Literal["tok", "avg"]


@dataclass(frozen=True, slots=True)
class Contributions:
    """What every term adds to one image's embedding, in joint space; `total()` is that embedding.

    In the `uniform` convention the output projections' biases and the final norm's bias are divided among the other
    terms, and `attention_biases` and `final_bias` are zero.
    """

    heads: Float64[np.ndarray, "layer head joint"]
    # By source token; the sum over tokens is `heads`.
    patches: Float64[np.ndarray, "layer head token joint"]
    # Entry 0 is the state that enters the first block, unless there is attention pooling; the others are MLPs.
    mlps: Float64[np.ndarray, "term joint"]
    attention_biases: Float64[np.ndarray, "layer joint"]
    final_bias: Float64[np.ndarray, "joint"]

    def total(self) -> Float64[np.ndarray, "joint"]:
        """The sum of all terms, each counted once."""
        return self.heads.sum(axis=(0, 1)) + self.mlps.sum(axis=0) + self.attention_biases.sum(axis=0) + self.final_bias


@dataclass(frozen=True, slots=True)
class Decomposition:
    """One image: its embedding, and the terms of its pooled row in the residual stream.

    The terms are those of the residual stream, with LayerScale applied. If the final norm comes before mean pooling,
    rows are weighted by their 1/s, and `s` is the harmonic mean over the rows.
    """

    embedding: Float64[np.ndarray, "joint"]
    # The final norm's mean, its sqrt(var + eps), and the embedding's Euclidean length.
    mu: float
    s: float
    norm: float
    # None under attention pooling, where the pooled row starts from zero.
    initial: Float64[np.ndarray, "width"] | None
    # Per source token: attention weight times value, before the output projection.
    patch_head_outputs: Float64[np.ndarray, "layer head token head_dim"]
    # The same after the head's slice of the output projection, without its bias.
    patch_outputs: Float64[np.ndarray, "layer head token width"]
    projection_biases: Float64[np.ndarray, "layer width"]
    mlp_outputs: Float64[np.ndarray, "mlp width"]
    # None if there is no norm before the projection; then mu is 0 and s is 1.
    final_weight: Float64[np.ndarray, "width"] | None
    final_bias: Float64[np.ndarray, "width"] | None
    projection: Float64[np.ndarray, "width joint"]
    projection_bias: Float64[np.ndarray, "joint"]
    # For each head of an earlier layer, its part of the attention pooling's output, centred by its own mean.
    through_pool: Float64[np.ndarray, "layer head joint"] | None = None

    @property
    def head_outputs(self) -> Float64[np.ndarray, "layer head head_dim"]:
        """Each head's own numbers: attention-weighted values, summed over source tokens."""
        return self.patch_head_outputs.sum(axis=2)

    def pooled(self) -> Float64[np.ndarray, "width"]:
        """The pooled row of the last residual state, as the sum of its terms."""
        return (
            (0 if self.initial is None else self.initial)
            + self.patch_outputs.sum(axis=(0, 1, 2))
            + self.projection_biases.sum(axis=0)
            + self.mlp_outputs.sum(axis=0)
        )

    def contributions(self, convention: Convention, normalised: bool = False) -> Contributions:
        """Every term after the final norm and the projection.

        The conventions differ in which terms the final norm's mean and bias are assigned to (the published code of
        Gandelsman et al., ICLR 2024, is `uniform`). `normalised` divides everything by the embedding's length.
        """
        parts = self._uniform() if convention == "uniform" else self._per_term()
        if not normalised:
            return parts
        return Contributions(
            heads=parts.heads / self.norm,
            patches=parts.patches / self.norm,
            mlps=parts.mlps / self.norm,
            attention_biases=parts.attention_biases / self.norm,
            final_bias=parts.final_bias / self.norm,
        )

    def _uniform(self) -> Contributions:
        """Each of the K terms takes μ/K and β/K, a head 1/H of its layer's, a token 1/N of its head's.

        K is 2L + 1 (attention outputs, MLPs, initial state); with attention pooling, its output and its MLP.
        """
        layers, heads, tokens, _ = self.patch_outputs.shape
        others = [*([] if self.initial is None else [self.initial]), *self.mlp_outputs]
        terms = layers + len(others)

        def to_joint(term: np.ndarray, share: float) -> np.ndarray:
            if self.final_weight is not None and self.final_bias is not None:
                term = self.final_weight * (term - self.mu * share) / self.s + self.final_bias * share
            return term @ self.projection + self.projection_bias * share

        joint = self.projection.shape[1]
        head_parts = np.zeros((layers, heads, joint))
        patch_parts = np.zeros((layers, heads, tokens, joint))
        mlp_parts = np.array([to_joint(term, 1 / terms) for term in others]).reshape(-1, joint)
        for layer in range(layers):
            bias = self.projection_biases[layer]
            for head in range(heads):
                whole = self.patch_outputs[layer, head].sum(axis=0)
                head_parts[layer, head] = to_joint(whole + bias / heads, 1 / (terms * heads))
                for token in range(tokens):
                    part = self.patch_outputs[layer, head, token] + bias / (heads * tokens)
                    patch_parts[layer, head, token] = to_joint(part, 1 / (terms * heads * tokens))
        return Contributions(head_parts, patch_parts, mlp_parts, np.zeros((layers, joint)), np.zeros(joint))

    def _per_term(self) -> Contributions:
        """Each term is centred by its own mean; both kinds of bias are separate terms."""
        layers, heads, tokens, _ = self.patch_outputs.shape

        others = [*([] if self.initial is None else [self.initial]), *self.mlp_outputs]

        def to_joint(term: np.ndarray) -> np.ndarray:
            if self.final_weight is not None:
                term = self.final_weight * (term - term.mean()) / self.s
            return term @ self.projection

        joint = self.projection.shape[1]
        head_parts = np.zeros((layers, heads, joint))
        patch_parts = np.zeros((layers, heads, tokens, joint))
        mlp_parts = np.array([to_joint(term) for term in others]).reshape(-1, joint)
        bias_parts = np.zeros((layers, joint))
        for layer in range(layers):
            for head in range(heads):
                head_parts[layer, head] = to_joint(self.patch_outputs[layer, head].sum(axis=0))
                for token in range(tokens):
                    patch_parts[layer, head, token] = to_joint(self.patch_outputs[layer, head, token])
            bias_parts[layer] = to_joint(self.projection_biases[layer])
        final_bias = self.projection_bias
        if self.final_bias is not None:
            final_bias = final_bias + self.final_bias @ self.projection
        return Contributions(head_parts, patch_parts, mlp_parts, bias_parts, final_bias)


def _layer_norm(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    normed = np.zeros_like(rows)
    for n, row in enumerate(rows):
        normed[n] = weight * (row - row.mean()) / math.sqrt(row.var() + eps) + bias
    return normed


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.zeros_like(scores)
    for n, row in enumerate(scores):
        powers = np.exp(row - row.max())
        weights[n] = powers / powers.sum()
    return weights


def _activate(x: np.ndarray, activation: Activation) -> np.ndarray:
    if activation == "gelu":
        # NumPy has no erf.
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if activation == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-1.702 * x))


def _embed_patches(weights: Mapping[str, np.ndarray], pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """The class token and the patches, row by row of the grid, positions added: [token, width]."""
    kernel = weights["conv1.weight"]
    rows = [weights["class_embedding"]]
    for top in range(0, pixels.shape[1] - patch_size + 1, patch_size):
        for left in range(0, pixels.shape[2] - patch_size + 1, patch_size):
            patch = pixels[:, top : top + patch_size, left : left + patch_size]
            rows.append(kernel.reshape(len(kernel), -1) @ patch.reshape(-1))
    return np.stack(rows) + weights["positional_embedding"]


def decompose(
    state_dict: Mapping[str, np.ndarray],
    *,
    heads: int,
    patch_size: int,
    activation: Activation,
    pool: Pool,
    final_ln_after_pool: bool,
    eps: float = 1e-5,
    pixels: Float[np.ndarray, "3 height width"],
) -> Decomposition:
    """Run one image through an open_clip `VisionTransformer` and return every term of its pooled row.

    `state_dict` is `model.visual.state_dict()` as NumPy arrays of any float type; `pixels` are preprocessed.
    `ln_pre` and LayerScale (`ls_1.gamma`, `ls_2.gamma`) apply if the state dict has them.
    """
    weights = {name: np.asarray(value, dtype=np.float64) for name, value in state_dict.items()}
    stream = _embed_patches(weights, np.asarray(pixels, dtype=np.float64), patch_size)
    if "ln_pre.weight" in weights:
        stream = _layer_norm(stream, weights["ln_pre.weight"], weights["ln_pre.bias"], eps)

    tokens, width = stream.shape
    head_dim = width // heads
    layers = sum(name.endswith("attn.in_proj_weight") for name in weights)

    # The forward pass stores what each part adds to every row, since the weights of the rows are known at its end.
    entering = stream
    attention = np.zeros((layers, heads, tokens, tokens))
    values = np.zeros((layers, heads, tokens, head_dim))
    # The head's slice of the output projection, with LayerScale applied.
    outward = np.zeros((layers, heads, head_dim, width))
    projection_biases = np.zeros((layers, width))
    mlp_rows = np.zeros((layers, tokens, width))
    for layer in range(layers):
        prefix = f"transformer.resblocks.{layer}."
        block = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

        scale = block.get("ls_1.gamma", np.ones(width))
        projection_biases[layer] = scale * block["attn.out_proj.bias"]
        normed = _layer_norm(stream, block["ln_1.weight"], block["ln_1.bias"], eps)
        projected = normed @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
        added = np.tile(projection_biases[layer], (tokens, 1))
        for head in range(heads):
            first, last = head * head_dim, (head + 1) * head_dim
            query = projected[:, first:last]
            key = projected[:, width + first : width + last]
            value = projected[:, 2 * width + first : 2 * width + last]
            attention[layer, head] = _softmax(query @ key.T / math.sqrt(head_dim))
            values[layer, head] = value
            outward[layer, head] = block["attn.out_proj.weight"][:, first:last].T * scale
            added += attention[layer, head] @ value @ outward[layer, head]
        stream = stream + added

        normed = _layer_norm(stream, block["ln_2.weight"], block["ln_2.bias"], eps)
        hidden = _activate(normed @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"], activation)
        mlp_rows[layer] = hidden @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
        mlp_rows[layer] *= block.get("ls_2.gamma", np.ones(width))
        stream = stream + mlp_rows[layer]

    # Pooling is computed as in the model, for the embedding, and as weights of rows, for the terms.
    final_weight, final_bias = weights["ln_post.weight"], weights["ln_post.bias"]
    row_weights = np.zeros(tokens)
    if pool == "tok":
        row_weights[0] = 1.0
        mu, s = stream[0].mean(), math.sqrt(stream[0].var() + eps)
        out = _layer_norm(stream[:1], final_weight, final_bias, eps)[0]
    elif final_ln_after_pool:
        row_weights[1:] = 1 / (tokens - 1)
        mean_row = stream[1:].mean(axis=0)
        mu, s = mean_row.mean(), math.sqrt(mean_row.var() + eps)
        out = _layer_norm(mean_row[None], final_weight, final_bias, eps)[0]
    else:
        inverse = np.array([1 / math.sqrt(row.var() + eps) for row in stream[1:]])
        row_weights[1:] = inverse / inverse.sum()
        mu, s = float(row_weights @ stream.mean(axis=1)), 1 / inverse.mean()
        out = _layer_norm(stream[1:], final_weight, final_bias, eps).mean(axis=0)
    embedding = out @ weights["proj"]

    patch_head_outputs = np.zeros((layers, heads, tokens, head_dim))
    patch_outputs = np.zeros((layers, heads, tokens, width))
    for layer in range(layers):
        for head in range(heads):
            attended = row_weights @ attention[layer, head]
            for token in range(tokens):
                patch_head_outputs[layer, head, token] = attended[token] * values[layer, head, token]
                patch_outputs[layer, head, token] = patch_head_outputs[layer, head, token] @ outward[layer, head]

    return Decomposition(
        embedding=embedding,
        mu=float(mu),
        s=float(s),
        norm=float(np.linalg.norm(embedding)),
        initial=row_weights @ entering,
        patch_head_outputs=patch_head_outputs,
        patch_outputs=patch_outputs,
        projection_biases=projection_biases,
        mlp_outputs=np.stack([row_weights @ rows for rows in mlp_rows]),
        final_weight=final_weight,
        final_bias=final_bias,
        projection=weights["proj"],
        projection_bias=np.zeros(weights["proj"].shape[1]),
    )


# Singular values below this share of the largest are rounding noise of float32 contributions.
RANK_TOLERANCE = 2.0**-20


def textspan(
    contributions: Float[np.ndarray, "images joint"],
    texts: Float[np.ndarray, "texts joint"],
    texts_per_head: int,
    rank: int,
) -> tuple[
    Int[np.ndarray, "texts_per_head"],
    Float64[np.ndarray, "texts_per_head"],
    Float64[np.ndarray, "images joint"],
]:
    """TEXTSPAN (Gandelsman et al., ICLR 2024, Algorithm 1) of one head, every matrix dense.

    `rank` is limited to the numerical rank. Returns the chosen texts in order, the share of the contributions' total
    variance that the reconstruction has after each of them, and the reconstruction after the last.
    """
    residual = np.array(contributions, dtype=np.float64)
    directions = np.array(texts, dtype=np.float64)

    _, singular, right = np.linalg.svd(residual, full_matrices=False)
    rank = min(rank, int((singular > singular[0] * RANK_TOLERANCE).sum()))
    directions = directions @ right[:rank].T @ right[:rank]

    mean = residual.mean(axis=0)
    residual -= mean
    reconstruction = np.tile(mean, (len(residual), 1))
    total_variance = residual.var(axis=0).sum()

    indices = np.zeros(texts_per_head, dtype=np.int64)
    explained = np.zeros(texts_per_head)
    for k in range(texts_per_head):
        spreads = (residual @ directions.T).std(axis=0, ddof=1)
        indices[k] = np.argmax(spreads)
        chosen = directions[indices[k]].copy()
        length_squared = chosen @ chosen
        step = np.outer(residual @ chosen / length_squared, chosen)
        reconstruction += step
        residual -= step
        directions -= np.outer(directions @ chosen / length_squared, chosen)
        explained[k] = reconstruction.var(axis=0).sum() / total_variance
    return indices, explained, reconstruction
