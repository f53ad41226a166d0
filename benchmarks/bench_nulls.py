"""How many images does a head need to rise above chance, and do heads of random weights stay at chance?

The reference model's heads and those of the same tower with random weights, over the first 50 to 20,000 scenes of the
image world. For each number of images: the share of heads above chance at five texts (p at most 0.05 among 40 rotated
pools), the mean excess, the median stability of the first five texts, and the count that a pool without meaning gives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from benchmarks.measure import benchmark
from headspan.config import PrecomputeSettings
from headspan.decompose.formula import head_coordinates
from headspan.run.precompute import precompute
from headspan.spans.algorithm import Principal, Spread, principals, span_principals
from headspan.spans.draws import rotated_spans
from headspan.spans.nulls import DRAWS, LEAST_DRAWS, heads_above
from headspan.spans.stability import FIRST_TEXTS, kept_share
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors
from headspan.world import write_world_shards

QUESTION = "heads above chance by number of images"
DUE_TO = (
    "Chance has the covariance of the same images, so few images do not put heads above chance: they make the texts "
    "unstable. The rows of one model share its texts and the first images, so they rise and fall together; the "
    "random weights are those of one seed, and other seeds give other counts, with the mean that chance gives."
)
_LEVEL = 0.05
_WEIGHTS = {"trained": None, "random weights": "random:0"}


def run(toy: bool, counts: Sequence[int] | None = None) -> dict[str, Any]:
    """For each weights and number of images: heads above chance, their excess and stability."""
    counts = counts or ((20, 60) if toy else (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000))
    draws = LEAST_DRAWS if toy else DRAWS
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = str(write_world_shards(Path(folder) / "shards", max(counts), 2, split="held_out"))
        for name, pretrained in _WEIGHTS.items():
            out = Path(folder) / f"{len(rows)}.zarr"
            values = {"shards": shards, "out": str(out), "model": "reference", "layers": "last4"}
            random = {} if pretrained is None else {"pretrained": pretrained}
            precompute(PrecomputeSettings.from_dict({**values, **random}))
            store = Store(out)
            vectors = text_vectors(store, "world")[:: 20 if toy else 1]
            rows[name] = curve(store, vectors, counts, draws)
    heads = len(store.layers) * store.heads_per_layer
    return {"heads": heads, "texts": len(vectors), "draws": draws, "level": _LEVEL, "rows": rows}


def curve(
    store: Store, vectors: Float32[np.ndarray, "text joint"], counts: Sequence[int], draws: int
) -> dict[str, dict[str, float]]:
    """What the first images of a store say, by their number."""
    found = {}
    for count in counts:
        parts = [_first(store, layer, head, count) for layer in store.layers for head in range(store.heads_per_layer)]
        heads, contributions = [part[0] for part in parts], [part[1] for part in parts]
        spans = span_principals(heads, vectors, FIRST_TEXTS)
        own = np.array([span.explained[-1] for span in spans])
        null = rotated_spans(heads, vectors, FIRST_TEXTS, draws, 0).explained[..., -1]
        above = heads_above(own, null, FIRST_TEXTS, _LEVEL)
        stability = [
            kept_share(along, head, vectors.astype(np.float64), span.indices, count, 0)
            for along, head, span in zip(contributions, heads, spans, strict=True)
        ]
        found[str(count)] = {
            "above": above.above,
            "chance_low": above.low,
            "chance_mean": round(above.expected, 2),
            "chance_high": above.high,
            "explained": round(float(own.mean()), 4),
            "excess": round(float((own - null.mean(axis=0)).mean()), 4),
            "stability": round(float(np.nanmedian(stability)), 3),
        }
    return found


def _first(store: Store, layer: int, head: int, count: int) -> tuple[Principal, Float[np.ndarray, "image rank"]]:
    """A head's principal directions over the first images, and their contributions along these."""
    own = head_coordinates(store.head_coordinates(layer, head)[:count], store.norm[:count], normalised=True)
    exact, directions = own.astype(np.float64), store.head_directions(layer, head)
    principal = principals([Spread(len(exact), exact.sum(axis=0), exact.T @ exact, directions)], 80)[0]
    return principal, exact @ (directions.astype(np.float64) @ principal.basis)


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each weights and number of images."""
    found = [["weights", "images", f"of {line['heads']} heads above chance", "by chance", "mean excess", "stability"]]
    for name, row in line["rows"].items():
        for images, at in row.items():
            found.append(
                [
                    name,
                    f"{int(images):,}",
                    f"{at['above']}",
                    f"{at['chance_mean']:.1f} ({at['chance_low']:.0f} to {at['chance_high']:.0f})",
                    f"{at['excess']:+.3f}",
                    f"{at['stability']:.2f}",
                ]
            )
    return found


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: heads above chance and their excess at 2,000 images, trained and with random weights."""
    cells = []
    for row in line["rows"].values():
        # A run at toy size has fewer images.
        at = row.get("2000", row[max(row, key=int)])
        cells.append(
            f"{at['above']} of {line['heads']} heads above chance, mean excess {100 * at['excess']:+.1f} points"
        )
    trained, random = cells
    by_chance = at["chance_mean"], at["chance_low"], at["chance_high"]
    control = "random weights: {}; chance gives {:.1f} ({:.0f} to {:.0f})"
    return f"reference model, five texts a head: {trained}", control.format(random, *by_chance)


if __name__ == "__main__":
    benchmark(QUESTION, run)
