"""Compute contributions in joint space from head coordinates, in both conventions.

Only this module implements the conventions, in NumPy. A head's contribution to an image's embedding is
`coordinates @ directions`. The coordinates depend on the image: the head's `head_dim` numbers divided by `s`, and three
more scalars, which only the `uniform` convention uses. The directions are a fixed matrix per head. The store's reader,
the moments and TEXTSPAN all compute with coordinates and directions.

Notation: the embedding is `(x − μ) / s · diag(γ) P + β P`, where x is the pooled row, μ its mean over the width,
s = sqrt(var + eps), γ and β the final norm's weight and bias, and P the projection. x is a sum of K terms c_k:

* `per_term`: a term contributes `(c_k − mean c_k) / s · diag(γ) P`; the biases are terms of their own.
* `uniform`: a term contributes `(c_k − μ/K) / s · diag(γ) P + β/K · P`; each head takes 1/H of its layer's output bias.

Source: Gandelsman, Efros and Steinhardt, "Interpreting CLIP's Image Representation via Text-Based Decomposition",
ICLR 2024, and its published code, whose convention is `uniform`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError

Convention = Literal["uniform", "per_term"]
# The coordinates after the head's own: 1/s (output bias), μ/s (mean), 1 (the final norm's bias).
EXTRA_COORDINATES = 3
# What the conventions were called in earlier versions.
_EARLIER_NAMES = {"even": "uniform", "own": "per_term"}


@dataclass(frozen=True, slots=True)
class Folded:
    """The fixed matrices that the store holds of the model; γ and β are the final norm's, P is the projection.

    `head_to_joint` and `head_mean` cover the stored layers. The biases cover all direct layers, those whose heads
    write to the pooled row. A model without a final norm has γ = 1; its means and `gain` are zero, since nothing is
    centred.
    """

    # W_O[l,h] diag(γ) P, and the mean of each row of W_O[l,h] over the residual width.
    head_to_joint: Float32[np.ndarray, "layer head head_dim joint"]
    head_mean: Float32[np.ndarray, "layer head head_dim"]
    # b_O[l] diag(γ) P, and the mean of b_O[l].
    bias_to_joint: Float32[np.ndarray, "direct_layer joint"]
    bias_mean: Float32[np.ndarray, " direct_layer"]
    # g = γ P and β P, to which the projection's own bias is added.
    gain: Float32[np.ndarray, " joint"]
    shift: Float32[np.ndarray, " joint"]
    # K, the number of terms: L attention outputs, L MLPs and the initial state, 2L + 1 in all; with attention pooling,
    # the pooling's output, and its MLP if it has one.
    share_count: Float32[np.ndarray, "1"]


def head_coordinates(
    heads: Float[np.ndarray, "*rows head_dim"],
    norm: Float[np.ndarray, "*rows 3"],
    normalised: bool,
    parts: int = 1,
) -> Float[np.ndarray, "*rows coordinate"]:
    """`[Σ α v / s, 1/s, μ/s, 1]`, all divided by `‖embedding‖` if `normalised`.

    `heads` are head outputs `Σ α v`, or `α v` of single source tokens. Of N tokens each takes 1/N of the last three
    coordinates: give N as `parts`. `norm` holds `μ`, `s` and `‖embedding‖` of each row.
    """
    mean_and_bias = mean_and_bias_terms(norm, normalised)
    return np.concatenate([heads * mean_and_bias[..., :1], mean_and_bias / parts], axis=-1)


def mean_and_bias_terms(norm: Float[np.ndarray, "*rows 3"], normalised: bool) -> Float[np.ndarray, "*rows term"]:
    """`[1/s, μ/s, 1]`, all divided by `‖embedding‖` if `normalised`; a head's output is multiplied by the first."""
    mean, std, length = (norm[..., i : i + 1] for i in range(3))
    scale = 1 / length if normalised else np.ones_like(length)
    return np.concatenate([scale / std, scale * mean / std, scale], axis=-1)


def head_directions(
    folded: Folded, index: int, layer: int, head: int, convention: Convention
) -> Float32[np.ndarray, "coordinate joint"]:
    """The matrix that maps the coordinates of one head to its contribution.

    `index` is the layer's index among the stored layers. `layer` is its index among the direct layers; a negative index
    counts from their end. In `per_term` the rows of the last three coordinates are zero.
    """
    matrix = folded.head_to_joint[index, head]
    if convention == "uniform":
        mean_and_bias = mean_and_bias_directions(folded, layer)
    else:
        matrix = matrix - np.outer(folded.head_mean[index, head], folded.gain)
        mean_and_bias = np.zeros((EXTRA_COORDINATES, matrix.shape[1]), np.float32)
    return np.concatenate([matrix, mean_and_bias]).astype(np.float32)


def mean_and_bias_directions(folded: Folded, layer: int) -> Float32[np.ndarray, "term joint"]:
    """The last rows of the directions of every head of a layer in `uniform`, see `head_directions`."""
    heads = folded.head_to_joint.shape[1]
    parts = folded.share_count[0] * heads
    found = np.stack([folded.bias_to_joint[layer] / heads, -folded.gain / parts, folded.shift / parts])
    return found.astype(np.float32)


def mlp_contributions(
    centred: Float32[np.ndarray, "image term joint"],
    means: Float32[np.ndarray, "image term"],
    norm: Float32[np.ndarray, "image 3"],
    folded: Folded,
    convention: Convention,
    normalised: bool,
) -> Float32[np.ndarray, "image term joint"]:
    """Contributions of the initial state and the MLPs.

    `centred` holds their `per_term` contributions, not normalised, and `means` the means of the terms over the width.
    """
    contributions = centred
    if convention == "uniform":
        terms = folded.share_count[0]
        mean, std = norm[:, :1], norm[:, 1:2]
        contributions = centred + ((means - mean / terms) / std)[..., None] * folded.gain + folded.shift / terms
    return contributions / norm[:, 2, None, None] if normalised else contributions


def bias_contributions(
    norm: Float32[np.ndarray, "image 3"], folded: Folded, normalised: bool
) -> Float32[np.ndarray, "image bias joint"]:
    """The terms that only `per_term` has: each direct layer's output bias, then the final norm's bias."""
    outputs = folded.bias_to_joint - folded.bias_mean[:, None] * folded.gain
    outputs = outputs / norm[:, 1, None, None]
    shift = np.broadcast_to(folded.shift, (len(norm), 1, len(folded.shift)))
    contributions = np.concatenate([outputs, shift], axis=1)
    return contributions / norm[:, 2, None, None] if normalised else contributions


def check_convention(convention: str) -> Convention:
    """`convention` itself. Raises SettingsError if it is neither `uniform` nor `per_term`."""
    if convention in _EARLIER_NAMES:
        raise SettingsError(f"convention {convention!r} is now called {_EARLIER_NAMES[convention]!r}; use that name")
    if convention not in ("uniform", "per_term"):
        raise SettingsError(f"convention {convention!r} is unknown; use 'uniform' (the published code's) or 'per_term'")
    return convention  # type: ignore[return-value]
