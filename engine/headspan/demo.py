"""The whole chain on one's own machine in a minute: shards, store, TEXTSPAN, CCS, report.

The images are scenes of the image world. Until trained weights ship with headspan, the small model has random
ones: what the report shows of heads is then arithmetic, not meaning, and its first line says so.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from headspan.analyse.ccs import concept_consistency
from headspan.analyse.labels import label_heads
from headspan.analyse.report import random_weights_notice, write_report
from headspan.analyse.spans import textspan
from headspan.config import PrecomputeSettings
from headspan.errors import StoreError
from headspan.pipeline import precompute
from headspan.records import Listener, Summary, ignore
from headspan.store.reader import Store
from headspan.world import write_world_shards

_IMAGES, _IMAGES_PER_SHARD = 1000, 500


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where the demo put its report, what must be said of it, and what precompute did."""

    report: Path
    notice: str | None
    summary: Summary


def run_demo(out: str | Path, listen: Listener = ignore) -> DemoResult:
    """Run the chain in the folder `out`, which is made anew. StoreError where it holds something else."""
    folder = Path(out)
    config = folder / "headspan-reference-vit.json"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not config.is_file():
        raise StoreError(f"{folder}: is not empty and no earlier demo; choose another --out")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        config.write_bytes((files("headspan") / "reference-vit.json").read_bytes())
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    write_world_shards(folder / "shards", _IMAGES, seed=0, images_per_shard=_IMAGES_PER_SHARD, listen=listen)
    settings = PrecomputeSettings(
        shards=(str(folder / "shards"),),
        out=str(folder / "run.zarr"),
        model=str(config),
        pretrained="random:0",
        layers="all",
        emit=("heads", "patches", "mlps"),
    )
    summary = precompute(settings, listen)
    store = Store(settings.out)
    textspan(store, "world", texts_per_head=20, listen=listen)
    label_heads(store)
    concept_consistency(store)
    report = write_report(store, folder / "report.html", listen=listen)
    return DemoResult(report, random_weights_notice(store), summary)
