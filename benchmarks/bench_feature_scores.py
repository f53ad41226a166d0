"""How long does scoring 8,192 features over a million pairs take, and does its memory grow with the number of pairs?

Pairs are drawn from their numbers: a vector is a sum of eight atoms, four of which image and text share, and four of
which belong to images alone or to texts alone. The learner is TopK with these atoms among its features. Each number of
pairs runs in a process of its own, whose peak resident memory is the operating system's count; drawing the pairs is not
timed. The ceiling is the encoder's matrix product alone over as many vectors, at the rate measured in the same process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from benchmarks.measure import benchmark, seconds
from headspan.features.learners.make import make_learner
from headspan.features.pairs.block import Block
from headspan.features.scores.encoder import Encoder
from headspan.features.scores.groups import image_hash
from headspan.features.scores.over_pairs import add_block
from headspan.features.scores.running import RunningScores

QUESTION = "scoring features over pairs"
DUE_TO = (
    "Scores are sums over active features alone, so the dense work is the learner's: the product, and the choice of "
    "the largest activations. The bootstrap adds each pair once, to the sums of its group. Libraries take some hundred "
    "MB of the memory."
)
_ATOMS, _SHARED = 8, 4


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of a run."""

    features: int = 8192
    width: int = 512
    k: int = 32
    atoms: int = 3072
    block: int = 4096


TOY = Size(features=256, width=32, k=8, atoms=96, block=256)
PAIRS, TOY_PAIRS = (250_000, 1_000_000), (600, 1_800)


def run(toy: bool, pairs: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Seconds, ceiling and peak resident bytes of each number of pairs."""
    size = TOY if toy else Size()
    rows = []
    for count in pairs or (TOY_PAIRS if toy else PAIRS):
        command = [sys.executable, "-c", _COMMAND, json.dumps(asdict(size)), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {**asdict(size), "rows": rows, "growth": round(rows[-1]["peak_bytes"] / rows[0]["peak_bytes"], 3)}


_COMMAND = (
    "import json, sys; from benchmarks.bench_feature_scores import Size, scored; "
    "print(json.dumps(scored(Size(**json.loads(sys.argv[1])), int(sys.argv[2]))))"
)


def scored(size: Size, pairs: int) -> dict[str, Any]:
    """Score `pairs` pairs in this process."""
    import resource

    torch.manual_seed(0)
    learner = make_learner("topk", size.width, features=size.features, k=size.k).eval()
    drawn = _Drawn(size)
    with torch.no_grad():
        rows = torch.from_numpy(drawn.atoms)
        learner.get_parameter("W_dec")[: size.atoms] = rows
        learner.get_parameter("W_enc")[:, : size.atoms] = rows.T
    encoder = Encoder(learner, size.features)
    running = RunningScores(size.features, size.width, size.width, with_texts=True, own_judge=True)
    spent = 0.0
    for first in range(0, pairs, size.block):
        block = drawn.block(np.arange(first, min(pairs, first + size.block)))
        began = time.perf_counter()
        add_block(running, encoder, block, block.images, block.texts)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    found = running.finished(
        lambda images: drawn.vectors(images, 0),
        lambda captions: drawn.vectors(captions, 1),
        run="drawn",
        dictionary="",
        dictionary_sha256="",
        learner="topk",
        directions=drawn.atoms,
        space=None,
        judge="",
        seed=0,
    )
    finish = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parts = [found.mds[part] for part in drawn.parts]
    return {
        "pairs": pairs,
        "seconds": round(spent + finish, 2),
        "finish_seconds": round(finish, 2),
        "ceiling_seconds": round(_product_seconds(size) * 2 * pairs, 2),
        "peak_bytes": peak,
        # Of the atoms of images alone, of both, and of texts alone: a check that the scores are right.
        "mean_mds": [round(float(np.nanmean(each)), 3) for each in parts],
    }


class _Drawn:
    """Pairs that follow from their numbers."""

    def __init__(self, size: Size) -> None:
        random = np.random.default_rng(0)
        atoms = random.standard_normal((size.atoms, size.width)).astype(np.float32)
        self.atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
        third = size.atoms // 3
        # Atoms of images alone, of both sides, and of texts alone.
        self.parts = [slice(part * third, (part + 1) * third) for part in range(3)]
        self._third = np.uint64(third)

    def vectors(self, numbers: Int64[np.ndarray, " some"], side: int) -> Float32[np.ndarray, "some width"]:
        """The unit vectors of images (side 0) or texts (side 1)."""
        found = np.zeros((len(numbers), self.atoms.shape[1]), np.float32)
        for place in range(_ATOMS):
            shared = place < _SHARED
            hashes = image_hash(np.zeros_like(numbers), numbers, 2 + place if shared else 100 + 10 * place + side)
            part = 1 if shared else 2 * side
            chosen = (hashes % self._third).astype(np.int64) + part * int(self._third)
            found += self.atoms[chosen] * np.float32(1 / (1 + place % _SHARED))
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))

    def block(self, numbers: Int64[np.ndarray, " pair"]) -> Block:
        """The pairs of some numbers."""
        return Block(self.vectors(numbers, 0), self.vectors(numbers, 1), np.zeros_like(numbers), numbers, numbers)


def _product_seconds(size: Size) -> float:
    """Seconds of the encoder's product alone for one vector."""
    rows = 2048
    vectors, weights = torch.randn(rows, size.width), torch.randn(size.features, size.width).t()
    with torch.inference_mode():
        return seconds(lambda: torch.addmm(torch.zeros(size.features), vectors, weights), repeats=5).median / rows


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each number of pairs."""
    title = f"{line['features']:,} features, {line['width']} numbers, {line['k']} active"
    found = [[title, "seconds", "pairs/s", "the product alone", "share of the ceiling", "peak memory"]]
    for row in line["rows"]:
        found.append(
            [
                f"{row['pairs']:,} pairs",
                f"{row['seconds']:,.1f}",
                f"{row['pairs'] / row['seconds']:,.0f}",
                f"{row['ceiling_seconds']:,.2g} s",
                f"{100 * row['ceiling_seconds'] / row['seconds']:.0f} %",
                f"{row['peak_bytes'] / 1e6:,.0f} MB",
            ]
        )
    return found


if __name__ == "__main__":
    benchmark(QUESTION, run)
