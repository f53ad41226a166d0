"""From the pooled row to joint space: the final norm, the projection and its bias."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from headspan.model.description import Description


def means(rows: Float[Tensor, "*rows width"], tower: Description) -> Float[Tensor, "*rows 1"]:
    """The rows' means over the width; zeros without a final norm, since nothing then subtracts them."""
    found = rows.mean(dim=-1, keepdim=True)
    return found if tower.ln_post is not None else found.new_zeros(found.shape)


def to_joint(rows: Float[Tensor, "*rows width"], tower: Description) -> Float[Tensor, "*rows joint"]:
    """The projection of rows that the final norm has centred and divided, with the norm's weight but no bias."""
    return (rows if tower.ln_post is None else rows * tower.ln_post.weight) @ tower.projection


def embedding(
    state: Float[Tensor, "batch width"], std: Float[Tensor, " batch"], tower: Description
) -> Float[Tensor, "batch joint"]:
    """The model's image embedding, not normalised, of the pooled row `state`, which the final norm divides by `std`."""
    bias = tower.projection_bias
    shift = bias if tower.ln_post is None else tower.ln_post.bias @ tower.projection + bias
    return to_joint((state - means(state, tower)) / std[:, None], tower) + shift
