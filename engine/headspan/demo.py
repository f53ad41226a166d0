"""The whole chain on one's own machine in a minute: shards, store, TEXTSPAN, CCS, sparse features, report.

The images are held-out scenes of the image world, and the model is the reference CLIP. So the report begins with the
analyses' scores against the known scenes, beside the scores of two controls: the reference model before the training
step that specialises its heads, whose scores ship with headspan, and random weights, for which the chain runs again.
A small dictionary of sparse features is learned from the scenes and their captions, scored and named.

A demo replaces an earlier demo in its folder and deletes nothing else. Files are written in a folder with a random name
and then moved to their final names. Before each move, a marker file records the random name, and the size and checksum
of every file. The next demo deletes only files that the marker records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.config import PrecomputeSettings
from headspan.errors import StoreError
from headspan.events import Listener, ignore
from headspan.features.naming import name_features
from headspan.features.pairs.opening import open_pairs
from headspan.features.scoring import score
from headspan.features.training.train import train
from headspan.io.files import checksum, delete_folder, move, new_token, refusals, staged, write_atomically
from headspan.report.collect import write_report
from headspan.run.precompute import precompute
from headspan.run.summary import Summary
from headspan.spans.over_store import textspan
from headspan.store.reader import Store
from headspan.user_paths import expand_user
from headspan.world import write_world_shards
from headspan.world.checks import GroundTruth
from headspan.world.ground_truth import check_ground_truth
from headspan.world.reference_scores import CONTRASTIVE_ONLY, RANDOM, reference_scores

__all__ = ["DemoResult", "run"]

# The reference model was trained on seed 0 and tuned on seed 1.
IMAGES, IMAGES_PER_SHARD, SEED, SPLIT = 2000, 500, 2, "held_out"
# A learner whose features do not split into those of images and those of captions; trained for a few seconds.
LEARNER, FEATURES, ACTIVE, STEPS, BATCH = "group_sparse", 256, 8, 400, 256
_SHARDS, _STORE, _AT_RANDOM, _REPORT = "shards", "run.zarr", "random.zarr", "report.html"
_DICTIONARY, _CAPTIONS = "run.features", "captions"
MARKER = ".headspan-demo.json"
# Size and crc32c of each file, by its path in the demo's folder; None for a folder.
Entries = dict[str, list[int] | None]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The path of the demo's report, the scores against the ground truth, and the summary of `precompute`."""

    report: Path
    truth: GroundTruth
    summary: Summary


def run(out: str | Path, on_progress: Listener = ignore) -> DemoResult:
    """Draw scenes, precompute, run the analyses and write the report, all in the folder `out`. Needs torch.

    An earlier demo in the folder is replaced. If the folder holds anything else, nothing is deleted, and StoreError is
    raised.
    """
    if not str(out):
        raise StoreError("--out is empty; name the folder to write, such as headspan-demo")
    place = _Place.begin(expand_user(out))
    made = write_world_shards(
        place.making / _SHARDS,
        IMAGES,
        SEED,
        images_per_shard=IMAGES_PER_SHARD,
        split=SPLIT,
        on_progress=on_progress,
    )
    # Stores record the paths of their shards, so the shards are moved to their final place first.
    place.move(_SHARDS)
    shards = str(place.folder / _SHARDS / Path(made).name)
    store, summary = analyse_scenes(
        PrecomputeSettings(
            shards=(shards,),
            out=str(place.making / _STORE),
            model="reference",
            layers="all",
            emit=("heads", "patches", "mlps"),
        ),
        on_progress,
    )
    at_random, _ = analyse_scenes(
        PrecomputeSettings(
            shards=(shards,),
            out=str(place.making / _AT_RANDOM),
            model="reference",
            pretrained="random:0",
            layers="all",
            emit=("heads", "patches"),
        ),
        on_progress,
    )
    truth = check_ground_truth(
        store,
        controls={CONTRASTIVE_ONLY: reference_scores()[CONTRASTIVE_ONLY], RANDOM: at_random},
        on_progress=on_progress,
        save=True,
    )
    _learn_features(store, place, on_progress)
    write_report(store, place.making / _REPORT, on_progress=on_progress)
    place.move(_STORE, _AT_RANDOM, _REPORT)
    place.making.rmdir()
    return DemoResult(place.folder / _REPORT, truth, replace(summary, path=str(place.folder / _STORE)))


def analyse_scenes(settings: PrecomputeSettings, on_progress: Listener = ignore) -> tuple[Store, Summary]:
    """Precompute a store, find the text spans of its last four layers' heads, label and score the heads.

    Four layers and the pool's concepts as labels follow the published procedure, with 20 texts for each head.
    """
    summary = precompute(settings, on_progress)
    store = Store(settings.out)
    textspan(store, "world", texts_per_head=20, layers=store.layers[-4:], on_progress=on_progress, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    return store, summary


def _learn_features(store: Store, place: _Place, on_progress: Listener) -> None:
    """Train a dictionary on the store's pairs, score its features, and name them by the pool of the heads' texts."""
    captions = place.making / _CAPTIONS
    pairs = open_pairs(store, keep=captions, on_progress=on_progress)
    train(
        pairs,
        place.making / _DICTIONARY,
        LEARNER,
        features=FEATURES,
        k=ACTIVE,
        steps=STEPS,
        batch=min(BATCH, len(pairs)),
        on_progress=on_progress,
    )
    # Scores record the path of their dictionary.
    place.move(_DICTIONARY)
    scores = score(pairs, place.folder / _DICTIONARY, run="world", on_progress=on_progress)
    name_features(store, scores, "world", saved=True, on_progress=on_progress)
    delete_folder(captions)


@dataclass(frozen=True, slots=True)
class _Place:
    """The folder of a demo, and what its marker says: the token of the temporary folder, and the demo's files."""

    folder: Path
    token: str
    made: Entries

    @property
    def making(self) -> Path:
        """The temporary folder."""
        return self.folder / f".headspan-demo-{self.token}"

    @classmethod
    def begin(cls, folder: Path) -> _Place:
        """Delete an earlier demo in `folder`, and begin one. Raises StoreError if it holds anything else."""
        if "\0" in str(folder):
            raise StoreError(f"{folder}: no folder can have that name; choose another --out")
        with refusals(folder):
            if folder.exists() and not folder.is_dir():
                raise StoreError(f"{folder}: is a file; choose another --out")
            if not folder.exists() or not any(folder.iterdir()):
                folder.mkdir(parents=True, exist_ok=True)
                place = cls(folder, new_token(), {})
            else:
                place = cls(folder, *_read_marker(folder))
                place._delete_made()
            place._mark()
            place.making.mkdir()
        return place

    def move(self, *names: str) -> None:
        """Move files and folders to their final place, after the marker has listed them."""
        with refusals(self.folder):
            self.made.update(_entries(self.making))
            self._mark()
            for name in names:
                if (self.folder / name).exists():
                    raise StoreError(f"{self.folder / name}: appeared while the demo ran; choose another --out")
                move(self.making / name, self.folder / name)

    def _delete_made(self) -> None:
        """Delete the marker's files and the temporary folder. Raises StoreError if there are other files."""
        own = {MARKER, staged(self.folder / MARKER, self.token).name, self.making.name}
        if self.making.is_symlink():
            own.remove(self.making.name)
        found = _entries(self.folder, skip=own)
        strangers = sorted(name for name, entry in found.items() if entry == [] or self.made.get(name, ()) != entry)
        if strangers:
            raise StoreError(
                f"{self.folder}: holds {strangers[0]}, which the earlier demo did not write, or which has changed "
                "since; choose another --out, or move it away"
            )
        delete_folder(self.making)
        for name in sorted(found, reverse=True):
            if found[name] is None:
                (self.folder / name).rmdir()
            else:
                (self.folder / name).unlink()
        self.made.clear()

    def _mark(self) -> None:
        content = {"made by": f"headspan {version('headspan')} demo", "making": self.token, "files": self.made}
        write_atomically(self.folder / MARKER, [json.dumps(content, indent=0).encode()], self.token)


def _read_marker(folder: Path) -> tuple[str, Entries]:
    """The token and the files that the marker in `folder` records. Raises StoreError if there is no readable marker."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        token, made = marker["making"], dict(marker["files"])
        if not re.fullmatch("[0-9a-f]{8}", token):
            raise ValueError("not a token")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise StoreError(
            f"{folder}: is not empty and has no readable {MARKER}, so no demo of this version wrote it; choose another "
            "--out, or delete the folder yourself"
        ) from None
    return token, made


def _entries(folder: Path, skip: Collection[str] = ()) -> Entries:
    """Every file and folder below `folder`, except the top entries named in `skip`.

    A link or a special file, which no demo writes, gets an entry that no marker can contain.
    """
    found: Entries = {}
    for top in sorted(folder.iterdir()):
        if top.name in skip:
            continue
        for path in (top, *(top.rglob("*") if top.is_dir() and not top.is_symlink() else ())):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                found[name] = []
            else:
                found[name] = None if path.is_dir() else list(checksum(path))
    return found
