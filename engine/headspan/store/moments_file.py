"""Moments of many images' head coordinates and unit embeddings: their addition and their file format.

Moments are count, sum and uncentred Gram matrix. A file contains the upper triangles of the Gram matrices, which are
symmetric. The checksums of zip reveal damage.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from headspan.errors import StoreError, one_line

# A unit embedding of float32 numbers differs from the exact one by 2⁻²⁴ of its length, so its variance by 4e-15.
_LEAST_VARIANCE = 1e-13


@dataclass(frozen=True, slots=True)
class EmbeddingMoments:
    """Number of images, and sum and uncentred Gram matrix of their unit embeddings."""

    count: int
    total: Float64[np.ndarray, " joint"]
    gram: Float64[np.ndarray, "joint joint"]

    @property
    def squared_length(self) -> float:
        """`E‖e‖²`, which is 1 up to rounding."""
        return float(np.trace(self.gram)) / self.count

    @property
    def variance(self) -> float:
        """`tr Σ_e = E‖e − E e‖²`; 0 if the embeddings differ by no more than their rounding to float32."""
        mean = self.total / self.count
        variance = self.squared_length - float(mean @ mean)
        return variance if variance > _LEAST_VARIANCE else 0.0

    def __add__(self, other: EmbeddingMoments) -> EmbeddingMoments:
        return EmbeddingMoments(self.count + other.count, self.total + other.total, self.gram + other.gram)


@dataclass(frozen=True, slots=True)
class MergedMoments:
    """Number of images, sum `[layer, head, coordinate]`, Gram `[layer, head, coordinate, coordinate]`, float64.

    `embedding` holds the moments of the same images' unit embeddings; None if an earlier version computed some of them.
    """

    count: int
    total: np.ndarray
    gram: np.ndarray
    embedding: EmbeddingMoments | None = None

    @property
    def sha256(self) -> str:
        """A checksum of the heads' numbers; it identifies the images that the moments were computed from."""
        digest = hashlib.sha256(str(self.count).encode())
        for numbers in (self.total, self.gram):
            digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()

    def __add__(self, other: MergedMoments) -> MergedMoments:
        embedding = None if self.embedding is None or other.embedding is None else self.embedding + other.embedding
        return MergedMoments(self.count + other.count, self.total + other.total, self.gram + other.gram, embedding)


def covariance_of(
    total: Float64[np.ndarray, " coordinate"], gram: Float64[np.ndarray, "coordinate coordinate"], count: int
) -> Float64[np.ndarray, "coordinate coordinate"]:
    """The covariance of the coordinates of `count` images, with these sum and Gram matrix."""
    mean = total / count
    covariance: Float64[np.ndarray, "coordinate coordinate"] = gram / count - np.outer(mean, mean)
    return covariance


def variances_along(
    vectors: Float64[np.ndarray, "vector coordinate"],
    total: Float64[np.ndarray, " coordinate"],
    gram: Float64[np.ndarray, "coordinate coordinate"],
    count: int,
) -> Float64[np.ndarray, " vector"]:
    """The variance of every vector's product with the coordinates whose moments are given."""
    # Rounding may make the variance of a constant product negative.
    squares: Float64[np.ndarray, " vector"] = np.einsum("vc,vc->v", vectors @ gram, vectors) / count
    return (squares - (vectors @ total / count) ** 2).clip(0)


def pack(moments: MergedMoments) -> bytes:
    """Return the moments as the content of a file."""
    packed: dict[str, Any] = {"count": moments.count, "total": moments.total, "upper": _upper(moments.gram)}
    if moments.embedding is not None:
        packed |= {"embedding_total": moments.embedding.total, "embedding_upper": _upper(moments.embedding.gram)}
    buffer = io.BytesIO()
    np.savez(buffer, **packed)
    return buffer.getvalue()


def unpack(content: bytes, name: str) -> MergedMoments:
    """Return the moments in the content of the file `name`. Raises StoreError if it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            count, total, upper = int(packed["count"]), packed["total"], packed["upper"]
            # Files of earlier versions have no moments of embeddings.
            embedding = [packed[name] for name in ("embedding_total", "embedding_upper") if name in packed]
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{name}: these moments are damaged ({one_line(error)}); run headspan repair") from error
    moments = MergedMoments(count, total, _whole(upper, total.shape[-1]))
    if not embedding:
        return moments
    embedding_total, embedding_upper = embedding
    gram = _whole(embedding_upper, len(embedding_total))
    return replace(moments, embedding=EmbeddingMoments(count, embedding_total, gram))


def _upper(gram: Float64[np.ndarray, "*heads size size"]) -> Float64[np.ndarray, "*heads place"]:
    """Return the upper triangles of symmetric matrices."""
    rows, columns = np.triu_indices(gram.shape[-1])
    return gram[..., rows, columns]


def _whole(upper: Float64[np.ndarray, "*heads place"], size: int) -> Float64[np.ndarray, "*heads size size"]:
    """Return the symmetric matrices with these upper triangles."""
    rows, columns = np.triu_indices(size)
    gram = np.empty((*upper.shape[:-1], size, size))
    gram[..., rows, columns] = upper
    gram[..., columns, rows] = upper
    return gram
