"""The greedy rounds of TEXTSPAN for all heads side by side, one launch a round.

    j = argmax score,  u = P t[j] / ‖P t[j]‖,  w = P Σ u,  λ = u·w,  score −= a (2 T·w − a λ) with a = T·u

P takes the directions chosen before away; the covariance itself is never changed, nor are the texts. A program owns
some of one head's texts. Its launch first joins the best scores that the round before left for each program, so
every program of a head works out the same u, w and λ, and then reads its texts once, for one product with u and w on
the tensor cores. float64, as on a CPU.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float64, Int64
from torch import Tensor

from headspan_kernels.pooled import padded

# Texts a program: few programs a head, since each works out u and w. Texts a step; directions, or rows of the
# covariance, a step.
BLOCK, TEXTS, STEP = 1024, 32, 16
WARPS = 4


def textspan_rounds(
    texts: Float64[Tensor, "head pool rank"], covariance: Float64[Tensor, "head rank rank"], count: int, least: float
) -> tuple[Int64[Tensor, "head {count}"], Float64[Tensor, "head {count} rank"], Float64[Tensor, "head {count}"]]:
    """As `reference.textspan_rounds`."""
    heads, pool, rank = texts.shape
    texts, covariance = texts.contiguous(), covariance.contiguous()
    blocks = triton.cdiv(pool, BLOCK)
    chosen = torch.full((heads, count), -1, dtype=torch.int64, device=texts.device)
    directions = torch.zeros(heads, count, rank, dtype=torch.float64, device=texts.device)
    variances = torch.zeros(heads, count, dtype=torch.float64, device=texts.device)
    scores = ((texts @ covariance) * texts).sum(dim=2)
    limit = least * scores.amax(dim=1)
    # Each program's best score and its text, of this round and of the one before.
    best = torch.empty(2, heads, blocks, dtype=torch.float64, device=texts.device)
    place = torch.empty(2, heads, blocks, dtype=torch.int64, device=texts.device)
    padded_scores = torch.nn.functional.pad(scores, (0, blocks * BLOCK - pool), value=-torch.inf)
    best[0], within = padded_scores.view(heads, blocks, BLOCK).max(dim=2)
    place[0] = within + BLOCK * torch.arange(blocks, device=texts.device)
    with torch.cuda.device_of(texts):
        for done in range(count):
            old, new = done % 2, (done + 1) % 2
            take_round[(heads * blocks,)](
                *(texts, covariance, scores, limit, best[old], place[old], best[new], place[new]),
                *(chosen, directions, variances, pool, count, done),
                RANK=rank,
                PADDED=padded(rank),
                BLOCKS=blocks,
                PADDED_BLOCKS=triton.next_power_of_2(blocks),
                BLOCK=BLOCK,
                TEXTS=TEXTS,
                STEP=STEP,
                num_warps=WARPS,
                num_stages=2,
                enable_fp_fusion=True,
            )
    return chosen, directions, variances


@triton.jit(do_not_specialize=["pool", "count", "done"])
@no_type_check
def take_round(
    texts,
    covariance,
    scores,
    limit,
    best,
    place,
    next_best,
    next_place,
    chosen,
    directions,
    variances,
    pool,
    count,
    done,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDED_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TEXTS: tl.constexpr,
    STEP: tl.constexpr,
):
    head, block = (tl.program_id(0) // BLOCKS).to(tl.int64), tl.program_id(0) % BLOCKS
    lanes = tl.arange(0, PADDED_BLOCKS)
    # [PADDED_BLOCKS]
    tops = tl.load(best + head * BLOCKS + lanes, mask=lanes < BLOCKS, other=float("-inf"))
    top = tl.max(tops, axis=0)
    # Of equal scores the first text, as elsewhere.
    places = tl.load(place + head * BLOCKS + lanes, mask=lanes < BLOCKS, other=pool)
    # Of scores that are all NaN none is the best, and the text is one past the end.
    text = tl.minimum(tl.min(tl.where(tops == top, places, pool), axis=0), pool - 1)
    going = top > tl.load(limit + head)

    columns = tl.arange(0, PADDED)
    inside = columns < RANK
    own_texts = texts + head * pool * RANK
    own_directions = directions + head * count * RANK
    # [PADDED]
    u = tl.where(going, tl.load(own_texts + text * RANK + columns, mask=inside, other=0.0), 0.0)
    # The second pass takes away what rounding left of the first.
    u = _deflated(u, own_directions, done, columns, RANK, STEP)
    u = _deflated(u, own_directions, done, columns, RANK, STEP)
    length = tl.sqrt(tl.sum(u * u, axis=0))
    u = u / tl.where(length > 0, length, 1.0)
    w = tl.zeros([PADDED], tl.float64)
    for start in range(0, RANK, STEP):
        lines = start + tl.arange(0, STEP)
        # [STEP, PADDED]; the covariance is symmetric.
        part = tl.load(
            covariance + (head * RANK + lines[:, None]) * RANK + columns[None, :],
            mask=(lines < RANK)[:, None] & inside[None, :],
            other=0.0,
        )
        own_u = tl.sum(tl.where(columns[None, :] == lines[:, None], u[None, :], 0.0), axis=1)
        w += tl.sum(own_u[:, None] * part, axis=0)
    w = _deflated(w, own_directions, done, columns, RANK, STEP)
    variance = tl.sum(u * w, axis=0)

    # [PADDED, 16]: u, w, and nothing, in as many columns as a matrix product takes.
    column = tl.arange(0, 16)[None, :]
    pair = tl.where(column == 0, u[:, None], tl.where(column == 1, w[:, None], 0.0))
    highest, highest_place = tl.full([], float("-inf"), tl.float64), pool.to(tl.int64)
    for start in range(block * BLOCK, tl.minimum((block + 1) * BLOCK, pool), TEXTS):
        rows = start + tl.arange(0, TEXTS)
        # [TEXTS, PADDED]
        own = tl.load(
            own_texts + rows[:, None] * RANK + columns[None, :],
            mask=(rows < pool)[:, None] & inside[None, :],
            other=0.0,
        )
        along = tl.dot(own, pair, out_dtype=tl.float64)
        along_u = tl.sum(tl.where(column == 0, along, 0.0), axis=1)
        along_w = tl.sum(tl.where(column == 1, along, 0.0), axis=1)
        score = tl.load(scores + head * pool + rows, mask=rows < pool, other=float("-inf"))
        score -= along_u * (2 * along_w - along_u * variance)
        score = tl.where(rows == text, 0.0, score)
        tl.store(scores + head * pool + rows, score, mask=rows < pool)
        best_here = tl.max(score, axis=0)
        place_here = tl.min(tl.where(score == best_here, rows, pool), axis=0).to(tl.int64)
        highest_place = tl.where(best_here > highest, place_here, highest_place)
        highest = tl.maximum(best_here, highest)
    tl.store(next_best + head * BLOCKS + block, highest)
    tl.store(next_place + head * BLOCKS + block, highest_place)
    if block == 0:
        tl.store(chosen + head * count + done, tl.where(going, text, -1))
        tl.store(own_directions + done * RANK + columns, u, mask=inside)
        tl.store(variances + head * count + done, variance)


@triton.jit
@no_type_check
def _deflated(vector, directions, done, columns, RANK: tl.constexpr, STEP: tl.constexpr):
    """`vector` without its parts along the directions chosen so far."""
    left = vector
    for start in range(0, done, STEP):
        numbers = start + tl.arange(0, STEP)
        # [STEP, PADDED]
        taken = tl.load(
            directions + numbers[:, None] * RANK + columns[None, :],
            mask=(numbers < done)[:, None] & (columns < RANK)[None, :],
            other=0.0,
        )
        left -= tl.sum(tl.sum(taken * vector[None, :], axis=1)[:, None] * taken, axis=0)
    return left
