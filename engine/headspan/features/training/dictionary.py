"""A trained dictionary of features: its learner, the space that it is of, and the checksum of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from headspan.errors import HeadspanError, SettingsError, StoreError
from headspan.features.learners.learner import IMAGE, Learner
from headspan.features.learners.make import make_learner
from headspan.features.pairs.image_vectors import refuse_other_space
from headspan.features.pairs.space import EMBEDDING, Space
from headspan.features.training.files import CONFIG, FORMAT, SETTINGS, STATE, learner_state, load_state, weights_sha256
from headspan.features.training.foreign_files import open_foreign
from headspan.io.json_files import read_json
from headspan.store.reader import Store
from headspan.user_paths import expand_user


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """A dictionary that `train` made, or that another library did; `open_dictionary` reads one."""

    folder: Path
    # In evaluation mode, on the CPU.
    learner: Learner
    space: Space
    sha256: str
    # How it was trained: settings, stores, and the versions of libraries; empty for other libraries' dictionaries.
    trained: dict[str, Any]

    def __repr__(self) -> str:
        return f"Dictionary({str(self.folder)!r}: {self.kind}, {self.features:,} features of {self.space})"

    @property
    def kind(self) -> str:
        """The learner's name."""
        return self.learner.kind

    @property
    def settings(self) -> dict[str, Any]:
        """The learner's settings."""
        return self.learner.settings

    @property
    def features(self) -> int:
        """The number of features."""
        return int(self.learner.settings["features"])

    def encode(
        self, vectors: Float32[np.ndarray, "vector width"], side: int = IMAGE
    ) -> Float32[np.ndarray, "vector feature"]:
        """The codes of vectors of one side, IMAGE or TEXT. Raises SettingsError if they have another width."""
        if vectors.ndim != 2 or vectors.shape[1] != self.space.width:
            raise SettingsError(
                f"{self.folder}: vectors of shape {list(vectors.shape)} were given, but the dictionary is of "
                f"{self.space}; give [vector, {self.space.width}]"
            )
        with torch.inference_mode():
            found: np.ndarray = self.learner.encode(
                torch.from_numpy(np.require(vectors, None, ["C", "W"])), side
            ).numpy()
        return found

    def refuse_other(self, store: Store) -> None:
        """Raise SettingsError if the store's vectors are of another space: another width or model."""
        refuse_other_space(self.space, store, str(self.folder))


def open_dictionary(folder: str | Path, *, space: Space | None = None) -> Dictionary:
    """Open the folder of a trained dictionary, or of one that SAELens or Prisma wrote.

    `space` says what the vectors of another library's dictionary are; by default they are embeddings of its width.
    Raises StoreError if the folder is missing, damaged, or of a training that is not finished; and SettingsError if it
    is of another kind.
    """
    path = expand_user(folder, StoreError)
    if not path.exists():
        raise StoreError(f"{path}: no such folder; give the folder that `headspan features train --out` wrote")
    if path.is_dir() and (path / SETTINGS).is_file() and not (path / CONFIG).is_file():
        at = "after its last checkpoint" if (path / STATE).is_file() else "from its start"
        raise StoreError(f"{path}: the training is not finished; run the same command again to continue {at}")
    config = read_json(path / CONFIG, "restore the folder from a copy") if (path / CONFIG).is_file() else None
    if config is None or "headspan" not in config:
        foreign, weights = open_foreign(path)
        width = int(foreign.settings["width"])
        found = space or Space(EMBEDDING, width)
        if found.width != width:
            raise SettingsError(f"{path}: its vectors have {width} numbers, but the space is {found}; give its space")
        return Dictionary(path, foreign.eval(), found, hashlib.sha256(weights.read_bytes()).hexdigest(), {})
    own, todo = config["headspan"], "restore the folder from a copy, or train again"
    if own.get("format") != FORMAT:
        raise StoreError(f"{path / CONFIG}: format {own.get('format')}, this headspan reads {FORMAT}; {todo}")
    sha256 = weights_sha256(path)
    if sha256 != own.get("sha256"):
        raise StoreError(f"{path}: its weights have changed since they were written (sha256 {sha256[:12]}); {todo}")
    try:
        found = Space.from_json(own["space"])
        settings = {name: value for name, value in own["settings"].items() if name != "width"}
        with torch.random.fork_rng(devices=[]):
            learner = make_learner(own["learner"], found.width, **settings)
        trained = dict(own["training"])
    except (KeyError, TypeError, ValueError, AttributeError, HeadspanError) as error:
        raise StoreError(f"{path / CONFIG}: holds settings that headspan does not write ({error}); {todo}") from error
    load_state(learner, learner_state(path, learner))
    return Dictionary(path, learner.eval(), found, sha256, trained)
