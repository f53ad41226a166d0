"""Unit text vectors of a store's distinct captions, embedded once and kept in a file that is mapped into memory.

The file is `vectors.npy` (float32) in a folder that is named after the text tower and the captions. Batches are
written one after the other, and `captions.json` says how many captions are done, so an interrupted embedding continues
where it stopped. The store is not written to.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.errors import SettingsError, StoreError
from headspan.events import Listener, Progress, ignore
from headspan.features.pairs.caption_index import CaptionIndex
from headspan.io.array_file import ArrayFile
from headspan.io.files import make_folder, refusals, write_atomically
from headspan.io.locks import alone
from headspan.store.reader import Store
from headspan.texts.vectors import encode_batches, vector_key
from headspan.user_paths import cache_folder, expand_user

# Texts of a batch: what an interruption may cost, and what is in memory at once.
_BATCH = 4096
_FOLDER = "caption-vectors"


def caption_vectors(
    store: Store,
    index: CaptionIndex,
    keep: str | Path | None = None,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Float32[np.ndarray, "caption joint"]:
    """The unit vectors of the captions of `index`, as a read-only memory map.

    They are kept in `keep`, by default in `caption-vectors` of the user's cache folder: 2 GB for 1,000,000 captions of
    512 numbers. `weights` is as in `text_vectors`. Raises StoreError if the folder cannot be written, and ModelError
    if the model cannot be loaded or is not the one that made the store.
    """
    folder = _place(store, index, keep, weights)
    settings = {"captions": len(index), "joint": store.joint, "captions_sha256": index.sha256}
    file = ArrayFile(folder / "vectors.npy", (len(index), store.joint))
    if _done(folder, settings, file) == len(index):
        return file.array()
    with refusals(folder, "name another folder for the vectors of captions"):
        make_folder(folder)
    # Other processes that want the same vectors wait, and then find them.
    with alone(folder):
        done = _done(folder, settings, file)
        if done == len(index):
            return file.array()
        if not done:
            file.create()
        file.open()
        try:
            batches = index.batches(store, done, _BATCH)
            for vectors in encode_batches(store, batches, on_progress, weights=weights, done=done, total=len(index)):
                file.put(done * store.joint, vectors)
                file.sync()
                done += len(vectors)
                write_atomically(folder / "captions.json", [json.dumps({**settings, "done": done}).encode()])
        finally:
            file.close()
    on_progress(Progress("captions", len(index), len(index)))
    return file.array()


def _place(store: Store, index: CaptionIndex, keep: str | Path | None, weights: str | Path | None) -> Path:
    try:
        parent = cache_folder() / _FOLDER if keep is None else expand_user(keep, StoreError)
    except RuntimeError as error:
        raise SettingsError(
            "there is no home folder to keep the vectors of captions in; name a folder with --keep-captions"
        ) from error
    name = hashlib.sha256(json.dumps([vector_key(store, weights), index.sha256]).encode()).hexdigest()
    return parent / name[:24]


def _done(folder: Path, settings: dict[str, Any], file: ArrayFile) -> int:
    """How many captions are embedded; 0 if nothing is kept or it is damaged."""
    try:
        kept = json.loads((folder / "captions.json").read_text())
        done = kept.pop("done")
    except (OSError, ValueError, AttributeError, KeyError):
        return 0
    return int(done) if kept == settings and isinstance(done, int) and file.whole else 0
