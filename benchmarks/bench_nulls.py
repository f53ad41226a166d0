"""How many images does a head need to rise above chance, and do heads of random weights stay at chance?

The reference model's heads over the first 50 to 20,000 scenes of the image world, and those of the same tower with the
random weights of ten seeds over the first 50 to 2,000. For each number of images: the number of heads above chance at
five texts (p at most 0.05 among 40 rotated pools), the mean excess, the median stability of the first five texts, and
the count that a pool without meaning gives. For random weights, the median and the range over seeds.
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
from headspan.errors import percent
from headspan.run.precompute import precompute
from headspan.spans.algorithm import Principal, Spread, principals, span_principals
from headspan.spans.draws import rotated_spans
from headspan.spans.nulls import DRAWS, LEAST_DRAWS, heads_above
from headspan.spans.stability import FIRST_TEXTS, kept_share
from headspan.store.reader import Store
from headspan.texts.pool import read_pool
from headspan.texts.vectors import text_vectors
from headspan.world import write_world_shards

QUESTION = "heads above chance by number of images"
DUE_TO = (
    "Chance has the covariance of the same images, so few images do not put heads above chance: they make the texts "
    "unstable. The rows of one model share its texts and the first images, so they rise and fall together. Chance "
    "gives 5 % of the heads of random weights on average over seeds."
)
_LEVEL = 0.05
_SEEDS = 10
# Random weights see fewer images, for the time that ten models take.
_MOST_AT_RANDOM = 2_000


def run(toy: bool, counts: Sequence[int] | None = None) -> dict[str, Any]:
    """For each weights and number of images: heads above chance, their excess and stability."""
    counts = counts or ((20, 60) if toy else (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000))
    draws = LEAST_DRAWS if toy else DRAWS
    seeds = 2 if toy else _SEEDS
    texts = read_pool("world").texts[:: 20 if toy else 1]
    at_random = [count for count in counts if count <= _MOST_AT_RANDOM]
    with tempfile.TemporaryDirectory() as folder:

        def model(name: str, counts: Sequence[int], **random: str) -> dict[str, dict[str, float]]:
            # Scenes are drawn by their number, so that all models see the same first ones.
            shards = Path(folder) / f"shards-{max(counts)}"
            if not shards.exists():
                write_world_shards(shards, max(counts), 2, split="held_out")
            values = {"shards": str(shards), "out": str(Path(folder) / name), "model": "reference", "layers": "last4"}
            precompute(PrecomputeSettings.from_dict({**values, **random}))
            store = Store(Path(folder) / name)
            return curve(store, text_vectors(store, texts), counts, draws)

        trained = model("trained.zarr", counts)
        curves = [model(f"{seed}.zarr", at_random, pretrained=f"random:{seed}") for seed in range(seeds)]
        store = Store(Path(folder) / "trained.zarr")
        heads = len(store.layers) * store.heads_per_layer
    rows = {"trained": trained, "random weights": over_seeds(curves, heads)}
    return {"heads": heads, "texts": len(texts), "draws": draws, "level": _LEVEL, "seeds": seeds, "rows": rows}


def over_seeds(curves: Sequence[dict[str, dict[str, float]]], heads: int) -> dict[str, dict[str, Any]]:
    """One curve of several models: means of what a model has, and the counts above chance of each."""
    found: dict[str, dict[str, Any]] = {}
    for images in curves[0]:
        each = [curve[images] for curve in curves]
        above = [int(at["above"]) for at in each]
        means = {name: round(float(np.mean([at[name] for at in each])), 4) for name in each[0]}
        share = sum(above) / (heads * len(each))
        found[images] = {**means, "above": float(np.median(above)), "above_by_seed": above, "share_above": share}
    return found


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
                    above_in_words(at, line["heads"]),
                    f"{at['chance_mean']:.1f} ({at['chance_low']:.0f} to {at['chance_high']:.0f})",
                    f"{at['excess']:+.3f}",
                    f"{at['stability']:.2f}",
                ]
            )
    return found


def above_in_words(at: Mapping[str, Any], heads: int) -> str:
    """The heads above chance; over several seeds their median and range, and the share of all heads."""
    each = at.get("above_by_seed")
    if each is None:
        return f"{at['above']}"
    return f"{at['above']:g} ({min(each)} to {max(each)}); {percent(at['share_above'])} of {heads * len(each):,}"


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: heads above chance and their excess at 2,000 images, trained and with random weights."""
    # A run at toy size has fewer images.
    trained, random = (row.get("2000", row[max(row, key=int)]) for row in line["rows"].values())
    each, heads = random["above_by_seed"], line["heads"]
    return (
        f"reference model, five texts a head: {trained['above']} of {heads} heads above chance, mean excess "
        f"{100 * trained['excess']:+.1f} points",
        f"random weights, {len(each)} seeds: {random['above']:g} heads ({min(each)} to {max(each)}), mean excess "
        f"{100 * random['excess']:+.1f} points; chance gives {random['chance_mean']:.1f}",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
