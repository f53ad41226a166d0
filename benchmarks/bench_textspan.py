"""How long does TEXTSPAN take, against the published procedure, and how near is it to the machine's limit?

64 heads of 64 dimensions in a joint space of 768, 3,498 texts, 60 rounds: the last 4 layers of ViT-L/14 and the
published pool; then all 384 heads. The peer is the published procedure on one head's dense contributions, of few
and of 10,000 images. The limit is reading the texts twice a round, at this machine's measured rate of matrix-vector
products over them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measure import Seconds, benchmark, seconds
from headspan.spans.algorithm import Spread, span_heads

QUESTION = "TEXTSPAN of all heads"
# Times faster than the published procedure at 10,000 images, and seconds for 384 heads.
TIMES_MARK, SECONDS_MARK = 1000, 4.0
_HEAD_DIM = 64
_RANK = 80


def run(toy: bool) -> dict[str, Any]:
    """Seconds for all heads from the moments of few and of many images, and for the peer."""
    heads, texts, rounds = (2, 60, 10) if toy else (64, 3498, 60)
    few, many, most = (100, 1_000, 300) if toy else (2_000, 20_000, 10_000)
    whole = 3 if toy else 384
    repeats = 3 if toy else 5
    random = np.random.default_rng()
    pool = random.standard_normal((texts, 768)) + 1.5 * random.standard_normal(768)
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float32)
    times = {}
    for images in (few, many):
        spreads = [head_spread(random, images)[0] for _ in range(heads)]
        times[images] = seconds(lambda spreads=spreads: span_heads(spreads, pool, rounds, _RANK), repeats=repeats)  # type: ignore[misc]
    spreads = [head_spread(random, few)[0] for _ in range(whole)]
    everything = seconds(lambda: span_heads(spreads, pool, rounds, _RANK), repeats=3)
    peer, same = _peer(random, few, pool, rounds)
    peer_at_most, same_at_most = _peer(random, most, pool, rounds)
    # The texts, in a head's own coordinates and in float64, are read twice a round.
    read = 2 * texts * _HEAD_DIM * 8 * rounds * heads
    limit = matrix_vector_rate(random, texts, 30 if toy else 3_000)
    return {
        "heads": heads,
        "texts": texts,
        "rounds": rounds,
        "seconds": round(times[few].median, 4),
        "seconds_20_80": [round(times[few].low, 4), round(times[few].high, 4)],
        "images": few,
        f"seconds_at_{many}_images": round(times[many].median, 4),
        "published_seconds_a_head": round(peer.median, 3),
        "times_faster": round(peer.median * heads / times[few].median, 1),
        "same_picks": same and same_at_most,
        "most_images": most,
        "published_seconds_a_head_at_most_images": round(peer_at_most.median, 3),
        "times_faster_at_most_images": round(peer_at_most.median * heads / times[few].median, 1),
        "times_mark": TIMES_MARK,
        "matrix_vector_gb_s": round(limit / 1e9, 2),
        "share_of_matrix_vector_limit": round(read / times[few].median / limit, 4),
        "all_heads": whole,
        "all_heads_seconds": round(everything.median, 4),
        "all_heads_seconds_mark": SECONDS_MARK,
    }


def _peer(random: np.random.Generator, images: int, pool: np.ndarray, rounds: int) -> tuple[Seconds, bool]:
    """The published procedure's time on one head, and whether headspan picks the same texts."""
    spread, contributions = head_spread(random, images)
    picks: list[np.ndarray] = []
    peer = seconds(lambda: picks.append(published(contributions, pool, rounds)), repeats=1, warmup=0)
    own = span_heads([spread], pool, rounds, _RANK)[0].indices
    return peer, bool((own == picks[0]).all())


def matrix_vector_rate(random: np.random.Generator, texts: int, products: int) -> float:
    """Bytes of matrix a second that products of a head's texts with a vector read, a thread a core."""
    threads = os.cpu_count() or 1
    vector = random.standard_normal(_HEAD_DIM)
    matrices = [random.standard_normal((texts, _HEAD_DIM)) for _ in range(threads)]

    def work(matrix: np.ndarray) -> None:
        out = np.empty(texts)
        for _ in range(products):
            np.matmul(matrix, vector, out=out)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        taken = seconds(lambda: list(pool.map(work, matrices)), repeats=5)
    return products * sum(matrix.nbytes for matrix in matrices) / taken.median


def head_spread(random: np.random.Generator, images: int) -> tuple[Spread, np.ndarray]:
    """One head's moments over random images with a decaying spectrum, and the contributions themselves."""
    directions = random.standard_normal((_HEAD_DIM, 768)) / np.sqrt(768)
    coordinates = (random.standard_normal((images, _HEAD_DIM)) + 0.5) * np.geomspace(1, 0.02, _HEAD_DIM)
    spread = Spread(images, coordinates.sum(axis=0), coordinates.T @ coordinates, directions)
    return spread, (coordinates @ directions).astype(np.float32)


def published(contributions: np.ndarray, pool: np.ndarray, rounds: int, rank: int = _HEAD_DIM) -> np.ndarray:
    """The published procedure, float32 and dense, as its paper and code describe it; the picks."""
    basis = np.linalg.svd(contributions, full_matrices=False)[2][:rank]
    texts = pool @ basis.T @ basis
    residual = contributions - contributions.mean(axis=0)
    picks = np.empty(rounds, np.int64)
    for number in range(rounds):
        picks[number] = best = int((residual @ texts.T).std(axis=0, ddof=1).argmax())
        text = texts[best] / np.linalg.norm(texts[best])
        residual = residual - np.outer(residual @ text, text)
        texts = texts - np.outer(texts @ text, text)
    return picks


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: seconds, and the published procedure's."""
    number = f"{line['heads']} heads × {line['texts']:,} texts × {line['rounds']} rounds: {line['seconds']:.2f} s"
    against = (
        f"published procedure, dense, {line['images']:,} images: {line['published_seconds_a_head']:.1f} s a head, "
        f"so {line['times_faster']:,.0f}× slower; same picks: {'yes' if line['same_picks'] else 'NO'}"
    )
    # Lines of before these were measured have none of them.
    if "all_heads" in line:
        number += f"; {line['all_heads']} heads: {line['all_heads_seconds']:.2f} s"
        against += (
            f"; {line['most_images']:,} images: {line['published_seconds_a_head_at_most_images']:.1f} s, "
            f"{line['times_faster_at_most_images']:,.0f}×; share of the matrix-vector limit: "
            f"{line['share_of_matrix_vector_limit']:.2f}"
        )
    return number, against


if __name__ == "__main__":
    benchmark(QUESTION, run)
