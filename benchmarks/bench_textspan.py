"""How long does TEXTSPAN take, against the published procedure, and does the number of images matter?

64 heads of 64 dimensions in a joint space of 768, 3,498 texts, 60 rounds: the last 4 layers of ViT-L/14 and
the published pool. The peer is the published procedure on one head's dense contributions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.measure import benchmark, seconds
from headspan.analyse.textspan import Spread, span_heads

QUESTION = "TEXTSPAN of all heads"


def run(toy: bool) -> dict[str, Any]:
    """Seconds for all heads from the moments of few and of many images, and for the peer."""
    heads, texts, rounds = (2, 60, 10) if toy else (64, 3498, 60)
    few, many = (100, 1_000) if toy else (2_000, 20_000)
    random = np.random.default_rng(0)
    pool = random.standard_normal((texts, 768)) + 1.5 * random.standard_normal(768)
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float32)
    times = {}
    for images in (few, many):
        spreads = [head_spread(random, images)[0] for _ in range(heads)]
        times[images] = seconds(lambda spreads=spreads: span_heads(spreads, pool, rounds, 80), repeats=3 if toy else 5)  # type: ignore[misc]
    spread, contributions = head_spread(random, few)
    peer = seconds(lambda: published(contributions, pool, rounds), repeats=1, warmup=0)
    picks = span_heads([spread], pool, rounds, 80)[0].indices
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
        "same_picks": bool((picks == published(contributions, pool, rounds)).all()),
    }


def head_spread(random: np.random.Generator, images: int) -> tuple[Spread, np.ndarray]:
    """One head's moments over random images with a decaying spectrum, and the contributions themselves."""
    size = 64
    directions = random.standard_normal((size, 768)) / np.sqrt(768)
    coordinates = (random.standard_normal((images, size)) + 0.5) * np.geomspace(1, 0.02, size)
    spread = Spread(images, coordinates.sum(axis=0), coordinates.T @ coordinates, directions)
    return spread, (coordinates @ directions).astype(np.float32)


def published(contributions: np.ndarray, pool: np.ndarray, rounds: int, rank: int = 64) -> np.ndarray:
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


if __name__ == "__main__":
    benchmark(QUESTION, run)
