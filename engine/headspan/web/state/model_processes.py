"""The models of the open stores, each in a process of its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.query.query_image import QueryImage
from headspan.io.locations import Location
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.web.answers.stores import ModelState
from headspan.web.state.bounded import Bounded
from headspan.web.state.known_texts import KnownTexts, Stored
from headspan.web.state.model_process import ModelProcess
from headspan.web.state.worker_messages import WorkerSettings

# Dropped-in images whose numbers are kept. With patches of 24 layers of ViT-L/14 an image takes 13 MB.
_KEPT_BYTES = 128 << 20
# What names a repository in place of a path, and thus allows to fetch it.
REPOSITORY = "hf-hub:"
# Longer texts are cut before the tokenizer sees them; no model reads more.
_MOST_LETTERS = 2_000


class ModelProcesses:
    """A `Model` whose answers come from what is stored, or else from a process for each store."""

    def __init__(
        self,
        weights: Mapping[Location, str | Path] | None = None,
        shards: Sequence[str] = (),
        *,
        download: bool = False,
        cache_bytes: int = 0,
    ) -> None:
        """`weights` are places of weights by the absolute path of the store; `shards` are as in `query_image`.

        Of stores in buckets, at most `cache_bytes` are kept on disk. Without `download`, nothing is fetched from a
        network, except weights that are named as `hf-hub:…`.
        """
        self._weights = dict(weights or {})
        self._shards, self._download, self._cache_bytes = tuple(shards), download, cache_bytes
        self._known = KnownTexts()
        self._uploaded: Bounded[QueryImage] = Bounded(_KEPT_BYTES, _bytes_of)
        self._processes: dict[Location, ModelProcess] = {}
        self._lock = threading.Lock()
        self._closed = False

    def process(self, store: Store) -> ModelProcess:
        """The process of a store's model, which may not have been started."""
        path = store.path.absolute()
        with self._lock:
            if path not in self._processes:
                weights = self._weights.get(path)
                place = None if weights is None else str(weights)
                settings = WorkerSettings(path, place, self._shards, self._cache_bytes)
                download = self._download or str(weights).startswith(REPOSITORY)
                self._processes[path] = ModelProcess(settings, download)
                if self._closed:
                    self._processes[path].close()
            return self._processes[path]

    def state(self, store: Store) -> ModelState:
        """As `Model.state`."""
        return self.process(store).state

    def warm(self, store: Store) -> None:
        """As `Model.warm`."""
        self.process(store).start()

    def known_texts(self, store: Store) -> Stored:
        """As `Model.known_texts`."""
        return self._known.stored(store)

    def text_vectors(
        self, store: Store, texts: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "text joint"], dict[str, str]]:
        """As `Model.text_vectors`."""
        shortened = {text: text[:_MOST_LETTERS] for text in texts}
        found = self._known.vectors(store, list(shortened.values()))
        missing = [text for text in dict.fromkeys(shortened.values()) if text not in found]
        cut = {text: short for text, short in shortened.items() if short != text}
        if missing:
            vectors, parts = self.process(store).ask("text_vectors", missing)
            found.update(zip(missing, vectors, strict=True))
            cut |= {text: parts[short] for text, short in shortened.items() if short in parts}
        return np.stack([found[shortened[text]] for text in texts]), cut

    def query_image(self, store: Store, image: int | bytes, with_patches: bool = False) -> QueryImage:
        """As `Model.query_image`."""
        process = self.process(store)
        if isinstance(image, int):
            # The process may have opened the store at another time, when its images had other indices.
            answer: QueryImage = process.ask("stored_image", store.row_of(image))
            return replace(answer, image=image)
        key = process, hashlib.sha256(image).digest()
        found = self._uploaded.get(key)
        if found is None:
            found = process.ask("uploaded_image", image)
            self._uploaded.put(key, found)
        return found

    def spectrum(self, store: Store, head: Head, pool: str | None = None) -> HeadSpectra:
        """As `Model.spectrum`."""
        spectra: HeadSpectra = self.process(store).ask("spectrum", head, pool)
        return spectra

    def close(self) -> None:
        """As `Model.close`."""
        with self._lock:
            self._closed = True
            for process in self._processes.values():
                process.close()


def _bytes_of(image: QueryImage) -> int:
    patches = 0 if image.patches is None else image.patches.nbytes
    return image.norm.nbytes + image.embedding.nbytes + image.heads.nbytes + patches
