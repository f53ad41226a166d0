"""Head coordinates to joint-space contributions, in either mean-share convention; NumPy alone.

The one place where the conventions' arithmetic stands. A contribution is `coordinates @ directions`:
the coordinates of an image are its `head_dim` numbers over `s`, and, for `even`, three scalars more;
the directions are fixed per head. Reading, moments and TEXTSPAN all use these two.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024, and its public code, whose convention is `even`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError

Convention = Literal["uniform", "per_term"]
# Coordinates beside the head's own: 1/s (output bias), μ/s (mean), 1 (the final norm's bias).
EXTRA_COORDINATES = 3


@dataclass(frozen=True, slots=True)
class Folded:
    """What the store keeps of the model; γ, β are the final norm's, P the projection, g = γ P.

    `head_to_joint` and `head_mean` hold the kept layers, the biases all direct ones: those whose heads write to
    the pooled row. A model that ends without a norm has γ = 1, and means and `gain` of zero, as nothing is centred.
    """

    # W_O[l,h] diag(γ) P, and the mean over the residual width of each row of W_O[l,h].
    head_to_joint: Float32[np.ndarray, "layer head head_dim joint"]
    head_mean: Float32[np.ndarray, "layer head head_dim"]
    # b_O[l] diag(γ) P, and the mean of b_O[l].
    bias_to_joint: Float32[np.ndarray, "direct_layer joint"]
    bias_mean: Float32[np.ndarray, " direct_layer"]
    # g = γ P and β P, to which the projection's own bias is added.
    gain: Float32[np.ndarray, " joint"]
    shift: Float32[np.ndarray, " joint"]
    # K, how many terms share mean and bias: attention outputs, MLPs and the initial state, 2L + 1; with attention
    # pooling its output and its MLP.
    share_count: Float32[np.ndarray, "1"]


def head_coordinates(
    heads: Float[np.ndarray, "*rows head_dim"],
    norm: Float[np.ndarray, "*rows 3"],
    normalised: bool,
    parts: int = 1,
) -> Float[np.ndarray, "*rows coordinate"]:
    """`[Σ α v / s, 1/s, μ/s, 1]`, all over `‖embedding‖` where `normalised`.

    `parts` is the number of source tokens over which the three mean_and_bias are spread (1 for their sum).
    """
    mean_and_bias = mean_and_bias_terms(norm, normalised)
    return np.concatenate([heads * mean_and_bias[..., :1], mean_and_bias / parts], axis=-1)


def mean_and_bias_terms(norm: Float[np.ndarray, "*rows 3"], normalised: bool) -> Float[np.ndarray, "*rows share"]:
    """`[1/s, μ/s, 1]`, all over `‖embedding‖` where `normalised`; the first is also what a head's numbers take."""
    mean, std, length = (norm[..., i : i + 1] for i in range(3))
    scale = 1 / length if normalised else np.ones_like(length)
    return np.concatenate([scale / std, scale * mean / std, scale], axis=-1)


def head_directions(
    folded: Folded, kept: int, layer: int, head: int, convention: Convention
) -> Float32[np.ndarray, "coordinate joint"]:
    """The rows that `head_coordinates` multiply, for head `head` of the `kept`-th kept layer.

    `layer` is its place among the direct layers; it may count from their end. `own` has no use for the three
    mean_and_bias: their rows are zero.
    """
    matrix = folded.head_to_joint[kept, head]
    if convention == "uniform":
        heads = folded.head_to_joint.shape[1]
        shared = folded.share_count[0] * heads
        mean_and_bias = np.stack([folded.bias_to_joint[layer] / heads, -folded.gain / shared, folded.shift / shared])
    else:
        matrix = matrix - np.outer(folded.head_mean[kept, head], folded.gain)
        mean_and_bias = np.zeros((EXTRA_COORDINATES, matrix.shape[1]), np.float32)
    return np.concatenate([matrix, mean_and_bias]).astype(np.float32)


def mlp_contributions(
    centred: Float32[np.ndarray, "image term joint"],
    means: Float32[np.ndarray, "image term"],
    norm: Float32[np.ndarray, "image 3"],
    folded: Folded,
    convention: Convention,
    normalised: bool,
) -> Float32[np.ndarray, "image term joint"]:
    """Contributions of the initial state and the MLPs from their `own` form and their means over the width."""
    contributions = centred
    if convention == "uniform":
        shared = folded.share_count[0]
        mean, std = norm[:, :1], norm[:, 1:2]
        contributions = centred + ((means - mean / shared) / std)[..., None] * folded.gain + folded.shift / shared
    return contributions / norm[:, 2, None, None] if normalised else contributions


def bias_contributions(
    norm: Float32[np.ndarray, "image 3"], folded: Folded, normalised: bool
) -> Float32[np.ndarray, "image bias joint"]:
    """The terms that `own` keeps apart: each layer's output bias, then the final norm's bias."""
    outputs = folded.bias_to_joint - folded.bias_mean[:, None] * folded.gain
    outputs = outputs / norm[:, 1, None, None]
    shift = np.broadcast_to(folded.shift, (len(norm), 1, len(folded.shift)))
    contributions = np.concatenate([outputs, shift], axis=1)
    return contributions / norm[:, 2, None, None] if normalised else contributions


def check_convention(convention: str) -> Convention:
    """`convention` itself, or SettingsError where it is neither `even` nor `own`."""
    if convention not in ("uniform", "per_term"):
        raise SettingsError(f"convention {convention!r} is unknown; use 'uniform' (the published code's) or 'per_term'")
    return convention  # type: ignore[return-value]
