"""The greedy rounds of TEXTSPAN for many problems at once: shares and picks, without the directions in joint space.

`algorithm` chooses the texts of a run. The nulls and the bootstrap repeat its rounds thousands of times, on other pools
or other covariances, and need less of the result. Both choose the same texts. Their shares differ in the last bit, and
one problem alone takes a quarter longer here, so runs keep the rounds of `algorithm`.

A problem is a head with one pool and one covariance. Problems of different rank are padded with coordinates that are
zero in texts and covariance, which changes nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

from headspan.spans.algorithm import SCORE_TOLERANCE


def greedy(
    texts: Float64[np.ndarray, "shared pool rank"], covariances: Float64[np.ndarray, "problem rank rank"], count: int
) -> tuple[Int64[np.ndarray, "problem text"], Float64[np.ndarray, "problem text"]]:
    """Choose `count` texts for each problem; return their places, and the variance that they explain so far.

    `texts` may be of one pool for all problems. Places are -1 once no variance is left. The rounds are those of
    `algorithm`, but the covariance needs no update: the residual covariance times a direction `u` that is orthogonal to
    the earlier ones is `Σu` without its part along the earlier ones.
    """
    problems, rank = len(covariances), covariances.shape[-1]
    every = np.arange(problems)
    pool_of = every if len(texts) == problems else np.zeros(problems, np.int64)
    scores = np.einsum("...tr,...tr->...t", texts @ covariances, texts)
    least = SCORE_TOLERANCE * scores.max(axis=1, initial=0)
    chosen = np.full((problems, count), -1, np.int64)
    explained = np.zeros((problems, count))
    directions = np.zeros((problems, min(count, rank, texts.shape[1]), rank))
    for done in range(directions.shape[1]):
        best = scores.argmax(axis=1)
        going = scores[every, best] > least
        if not going.any():
            break
        earlier = directions[:, :done]
        u = texts[pool_of, best]
        for _ in range(2):
            # As in `algorithm`, the second pass removes the rounding errors of the first.
            u = u - _along(earlier, u)
        length = np.linalg.norm(u, axis=1)
        going &= length > 0
        u /= np.where(going, length, np.inf)[:, None]
        w = (covariances @ u[..., None])[..., 0]
        w -= _along(earlier, w)
        variance = (u * w).sum(axis=1)
        along_u, along_w = np.moveaxis(texts @ np.stack([u, w], axis=-1), -1, 0)
        scores -= along_u * (2 * along_w - along_u * variance[:, None])
        scores[every, best] = 0
        chosen[going, done] = best[going]
        directions[:, done] = u
        explained[:, done:] += variance[:, None]
    return chosen, explained


def _along(
    directions: Float64[np.ndarray, "problem direction rank"], vectors: Float64[np.ndarray, "problem rank"]
) -> Float64[np.ndarray, "problem rank"]:
    """The part of each vector along the orthonormal directions of its problem."""
    return ((directions @ vectors[..., None]).swapaxes(1, 2) @ directions)[:, 0]
