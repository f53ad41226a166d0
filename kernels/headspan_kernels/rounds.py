"""The greedy rounds of TEXTSPAN for all heads side by side, one launch a round.

    j = argmax score,  u = P t[j] / ‖P t[j]‖,  w = P Σ u,  λ = u·w,  score −= a (2 T·w − a λ) with a = T·u

P takes the directions chosen before away; the covariance itself is never changed, nor are the texts. A program owns
a block of one head's texts. Its launch first joins the best scores that the round before left for each block, so
every program of a head works out the same u, w and λ, and the block's texts are read once. float64, as on a CPU.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float64, Int64
from torch import Tensor

# Texts a program, and its warps.
BLOCK = 32
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
    # Each block's best score and its text, of this round and of the one before.
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
                PADDED=triton.next_power_of_2(rank),
                BLOCKS=blocks,
                PADDED_BLOCKS=triton.next_power_of_2(blocks),
                BLOCK=BLOCK,
                num_warps=WARPS,
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
):
    head, block = (tl.program_id(0) // BLOCKS).to(tl.int64), tl.program_id(0) % BLOCKS
    lanes = tl.arange(0, PADDED_BLOCKS)
    # [PADDED_BLOCKS]
    tops = tl.load(best + head * BLOCKS + lanes, mask=lanes < BLOCKS, other=float("-inf"))
    top = tl.max(tops, axis=0)
    # Of equal scores the first text, as elsewhere.
    places = tl.load(place + head * BLOCKS + lanes, mask=lanes < BLOCKS, other=pool)
    text = tl.min(tl.where(tops == top, places, pool), axis=0)
    going = top > tl.load(limit + head)

    columns = tl.arange(0, PADDED)
    inside = columns < RANK
    own_texts = texts + head * pool * RANK
    own_directions = directions + head * count * RANK
    # [PADDED]
    u = tl.where(going, tl.load(own_texts + text * RANK + columns, mask=inside, other=0.0), 0.0)
    for _ in range(2):
        left = u
        for number in range(done):
            # [PADDED]
            taken = tl.load(own_directions + number * RANK + columns, mask=inside, other=0.0)
            left -= tl.sum(taken * u, axis=0) * taken
        u = left
    length = tl.sqrt(tl.sum(u * u, axis=0))
    u = u / tl.where(length > 0, length, 1.0)
    # [PADDED], row by row: the covariance is symmetric.
    w = tl.zeros([PADDED], tl.float64)
    for row in range(RANK):
        line = tl.load(covariance + (head * RANK + row) * RANK + columns, mask=inside, other=0.0)
        w += line * tl.sum(tl.where(columns == row, u, 0.0), axis=0)
    left = w
    for number in range(done):
        taken = tl.load(own_directions + number * RANK + columns, mask=inside, other=0.0)
        left -= tl.sum(taken * w, axis=0) * taken
    w = left
    variance = tl.sum(u * w, axis=0)

    rows = block * BLOCK + tl.arange(0, BLOCK)
    # [BLOCK, PADDED]
    own = tl.load(
        own_texts + rows[:, None] * RANK + columns[None, :], mask=(rows < pool)[:, None] & inside[None, :], other=0.0
    )
    along_u, along_w = tl.sum(own * u[None, :], axis=1), tl.sum(own * w[None, :], axis=1)
    score = tl.load(scores + head * pool + rows, mask=rows < pool, other=float("-inf"))
    score -= along_u * (2 * along_w - along_u * variance)
    score = tl.where(rows == text, 0.0, score)
    tl.store(scores + head * pool + rows, score, mask=rows < pool)
    highest = tl.max(score, axis=0)
    tl.store(next_best + head * BLOCKS + block, highest)
    tl.store(next_place + head * BLOCKS + block, tl.min(tl.where(score == highest, rows, pool), axis=0).to(tl.int64))
    if block == 0:
        tl.store(chosen + head * count + done, tl.where(going, text, -1))
        tl.store(own_directions + done * RANK + columns, u, mask=inside)
        tl.store(variances + head * count + done, variance)
