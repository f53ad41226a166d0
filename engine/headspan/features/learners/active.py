"""Sparse codes as lists of active features: found in dense activations, and decoded without the zeros.

A code of 8,192 features has some 32 numbers above 0. Decoding them, and the gradients of encoder and decoder, touch
only the rows of active features; the one dense product of a training step is that of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, slots=True, eq=False)
class Active:
    """The active features of vectors, those of one vector after those of another."""

    # Where the features of each vector begin.
    offsets: Int64[Tensor, " vector"]
    features: Int64[Tensor, " active"]
    # Non-negative; a feature may be listed with 0.
    values: Float[Tensor, " active"]

    @classmethod
    def of_rows(cls, features: Int64[Tensor, "vector k"], values: Float[Tensor, "vector k"]) -> Active:
        """As many features for each vector."""
        offsets = torch.arange(0, features.numel(), features.shape[1], device=features.device)
        return cls(offsets, features.flatten(), values.flatten())

    def decode(self, rows: Float[Tensor, "feature width"]) -> Float[Tensor, "vector width"]:
        """The sum of each vector's features' rows times their values."""
        return embedding_bag(self.features, rows, self.offsets, per_sample_weights=self.values, mode="sum")

    def vectors(self) -> Int64[Tensor, " active"]:
        """The number of the vector that each active feature belongs to."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([self.features.numel()])])
        numbers = torch.arange(self.offsets.numel(), device=self.offsets.device)
        return numbers.repeat_interleave(ends - self.offsets)

    def dense(self, features: int) -> Float[Tensor, "vector feature"]:
        """The codes with their zeros."""
        codes = self.values.new_zeros(self.offsets.numel(), features)
        return codes.index_put((self.vectors(), self.features), self.values, accumulate=True)


def largest(
    vectors: Float[Tensor, "vector width"],
    rows: Float[Tensor, "feature width"],
    bias: Float[Tensor, " feature"],
    k: int,
    hidden: Bool[Tensor, "vector feature"] | None = None,
    ordered: bool = False,
) -> Active:
    """The k largest of `ReLU(vectors · rowsᵀ + bias)` of each vector, with their gradients.

    `hidden` features are left out. `ordered` lists the largest of a vector first.
    """
    with torch.no_grad():
        activations = torch.addmm(bias, vectors, rows.t())
        if hidden is not None:
            activations.masked_fill_(hidden, -torch.inf)
        values, features = activations.topk(k, sorted=ordered)
    return of_activations(vectors, rows, bias, Active.of_rows(features, values))


def of_activations(
    vectors: Float[Tensor, "vector width"],
    rows: Float[Tensor, "feature width"],
    bias: Float[Tensor, " feature"],
    chosen: Active,
) -> Active:
    """The chosen activations after ReLU, as a function of vectors, rows and bias; the choice has no gradient."""
    values = _Chosen.apply(vectors, rows, bias, chosen.offsets, chosen.features, chosen.values)
    return Active(chosen.offsets, chosen.features, values)


class _Chosen(torch.autograd.Function):
    """ReLU of chosen entries of `vectors · rowsᵀ + bias`, which are given. The gradient visits no other entry."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, rows: Tensor, bias: Tensor, offsets: Tensor, features: Tensor, values: Tensor
    ) -> Tensor:
        values = values.to(vectors.dtype).relu()
        ctx.save_for_backward(vectors, rows, bias, offsets, features, values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        vectors, rows, bias, offsets, features, values = ctx.saved_tensors
        gradient = gradient * (values > 0)
        of_bias = torch.zeros_like(bias).index_add_(0, features, gradient)
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            # What flows back to the vectors is a decoding of the gradient, and its gradient by the rows, along the
            # vectors, is what flows back to the rows.
            of_vectors = embedding_bag(features, leaf, offsets, per_sample_weights=gradient, mode="sum")
        (of_rows,) = torch.autograd.grad(of_vectors, leaf, vectors)
        return of_vectors.detach(), of_rows, of_bias, None, None, None
