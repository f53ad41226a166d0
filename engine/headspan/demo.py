"""The whole chain on one's own machine in a minute: shards, store, TEXTSPAN, CCS, report.

The images are held-out scenes of the image world and the model is the reference CLIP, so the report leads with
what the analyses say beside what is true. The same chain with random weights is what they are held against.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from headspan.analyse.ccs import concept_consistency
from headspan.analyse.ground_truth import GroundTruth, check_ground_truth
from headspan.analyse.labels import label_heads
from headspan.analyse.report import write_report
from headspan.analyse.spans import textspan
from headspan.config import PrecomputeSettings
from headspan.errors import StoreError
from headspan.pipeline import precompute
from headspan.records import Listener, Summary, ignore
from headspan.store.reader import Store
from headspan.world import write_world_shards

# Seed 0 is what the model was trained on, seed 1 what it was tuned on.
_IMAGES, _IMAGES_PER_SHARD, _SEED = 2000, 500, 2
_SHARDS, _STORE, _AT_RANDOM, _REPORT = "shards", "run.zarr", "random.zarr", "report.html"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where the demo put its report, what it found to be true, and what precompute did."""

    report: Path
    truth: GroundTruth
    summary: Summary


def run_demo(out: str | Path, listen: Listener = ignore) -> DemoResult:
    """Run the chain in the folder `out`, which is made anew. StoreError where it holds something else."""
    folder = Path(out)
    _make_anew(folder)
    shards = write_world_shards(
        folder / _SHARDS, _IMAGES, _SEED, images_per_shard=_IMAGES_PER_SHARD, split="held_out", listen=listen
    )
    store, summary = _analyse(
        PrecomputeSettings(
            shards=(shards,),
            out=str(folder / _STORE),
            model="reference",
            layers="all",
            emit=("heads", "patches", "mlps"),
        ),
        listen,
    )
    at_random, _ = _analyse(
        PrecomputeSettings(shards=(shards,), out=str(folder / _AT_RANDOM), model="reference", pretrained="random:0"),
        listen,
    )
    truth = check_ground_truth(store, at_random=at_random, listen=listen)
    return DemoResult(write_report(store, folder / _REPORT, listen=listen), truth, summary)


def _analyse(settings: PrecomputeSettings, listen: Listener) -> tuple[Store, Summary]:
    """The chain from shards to scores; TEXTSPAN describes the last four layers, as published."""
    summary = precompute(settings, listen)
    store = Store(settings.out)
    textspan(store, "world", texts_per_head=20, layers=store.layers[-4:], listen=listen)
    label_heads(store)
    concept_consistency(store)
    return store, summary


def _make_anew(folder: Path) -> None:
    ours = {_SHARDS, _STORE, _AT_RANDOM, _REPORT}
    if folder.exists() and (not folder.is_dir() or any(path.name not in ours for path in folder.iterdir())):
        raise StoreError(f"{folder}: is not empty and no earlier demo; choose another --out")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
