"""The whole chain on one's own machine in a minute: shards, store, TEXTSPAN, CCS, report.

The images are held-out scenes of the image world and the model is the reference CLIP, so the report leads with
what the analyses say beside what is true. The same chain with random weights is what they are held against.

A second demo in the same folder deletes the first, and nothing else: a file of the demo's own lists what it made.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
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
from headspan.store.files import refusals, write_atomically
from headspan.store.reader import Store
from headspan.user_paths import expand_user
from headspan.world import write_world_shards

# Seed 0 is what the model was trained on, seed 1 what it was tuned on.
_IMAGES, _IMAGES_PER_SHARD, _SEED = 2000, 500, 2
_SHARDS, _STORE, _AT_RANDOM, _REPORT = "shards", "run.zarr", "random.zarr", "report.html"
# Written before anything else; at the end of a demo it lists every file that the demo made, with its size.
MARKER = ".headspan-demo.json"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where the demo put its report, what it found to be true, and what precompute did."""

    report: Path
    truth: GroundTruth
    summary: Summary


def run_demo(out: str | Path, listen: Listener = ignore) -> DemoResult:
    """Run the chain in the folder `out`.

    An earlier demo there is deleted. Where the folder holds anything that no demo made, nothing is deleted: StoreError.
    """
    folder = expand_user(out)
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
    report = write_report(store, folder / _REPORT, listen=listen)
    _mark(folder, _files(folder))
    return DemoResult(report, truth, summary)


def _analyse(settings: PrecomputeSettings, listen: Listener) -> tuple[Store, Summary]:
    """The chain from shards to scores; TEXTSPAN describes the last four layers, as published."""
    summary = precompute(settings, listen)
    store = Store(settings.out)
    textspan(store, "world", texts_per_head=20, layers=store.layers[-4:], listen=listen)
    label_heads(store)
    concept_consistency(store)
    return store, summary


def _make_anew(folder: Path) -> None:
    """A folder that holds no more than the marker of a demo that has begun."""
    with refusals(folder):
        if folder.exists():
            _refuse_others(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _mark(folder, None)
        for path in list(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()


def _refuse_others(folder: Path) -> None:
    """StoreError where `folder` holds anything but what an earlier demo made, whole or interrupted."""
    if not folder.is_dir():
        raise StoreError(f"{folder}: is a file; choose another --out")
    if not any(folder.iterdir()):
        return
    try:
        made = json.loads((folder / MARKER).read_bytes())["files"]
        strangers = sorted(name for name, size in _files(folder).items() if not _is_made(name, size, made))
    except (OSError, ValueError, LookupError, TypeError):
        raise StoreError(
            f"{folder}: is not empty and has no readable {MARKER}, so no demo of this version made it; choose another "
            "--out, or delete the folder yourself"
        ) from None
    if strangers:
        raise StoreError(
            f"{folder}: holds {strangers[0]}, which the earlier demo did not make or which has changed since; choose "
            "another --out, or move it away"
        )


def _is_made(name: str, size: int | None, made: dict[str, int] | None) -> bool:
    """Whether a demo made a file of that size; `made` is None of a demo that was interrupted."""
    if size is None:
        return False
    top, _, below = name.partition("/")
    if made is not None:
        return top == MARKER or (name in made and made[name] == size)
    if top == _SHARDS:
        return fnmatch(below, "[0-9]*.tar") and "/" not in below
    # Each under its name or, while it is being written, under a temporary one.
    return any(top == each or fnmatch(top, f".{each}.*") for each in (MARKER, _STORE, _AT_RANDOM, _REPORT))


def _files(folder: Path) -> dict[str, int | None]:
    """The size of every file in `folder`; None for links and whatever else a demo does not make."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _mark(folder: Path, files: dict[str, int | None] | None) -> None:
    content = {"made by": f"headspan {version('headspan')} demo", "files": files}
    write_atomically(folder / MARKER, [json.dumps(content, indent=0).encode()])
