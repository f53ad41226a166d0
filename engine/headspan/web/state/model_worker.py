"""The process of one store's model: it loads both towers, then answers one question at a time over a pipe.

`model_process` starts it. It ends when the other end of the pipe is closed, so it does not outlive the server. It reads
the store itself, and opens it again when it is asked about an image that it does not know yet.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.errors import HeadspanError, SettingsError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.explore.heads.spectra import spectra
from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.query.computed_image import computed
from headspan.explore.query.image_source import ImageSource
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.store.head_space import Head
from headspan.texts.stored import largest_pool, stored_pool
from headspan.texts.vectors import forget_vectors, text_vectors
from headspan.web.state.kept_on_disk import opened_with_cache
from headspan.web.state.worker_messages import ANSWER, BROKEN, FAILED, LOADING, READY, REFUSED, WorkerSettings


class Worker:
    """A loaded model and its store. The public methods are the questions that the process answers."""

    def __init__(self, settings: WorkerSettings, on_progress: Listener) -> None:
        """Load both towers and use each once. Raises ModelError if that is impossible."""
        from headspan.model.kept import kept_model
        from headspan.model.text import encode_texts
        from headspan.run.image_encoder import image_encoder

        self._store = opened_with_cache(settings.store, settings.cache_bytes)
        self._weights, self._shards, self._cache_bytes = settings.weights, settings.shards, settings.cache_bytes
        encoder = image_encoder(self._store, self._weights, on_progress)
        self._model = kept_model(self._store.attributes, self._store.path, self._weights, on_progress)
        encode_texts(self._model, ["a"])
        encoder.encode(np.zeros((*encoder.preprocess.size, 3), np.uint8), self._store.layers, True)

    def text_vectors(self, texts: Sequence[str]) -> tuple[Float32[np.ndarray, "text joint"], dict[str, str]]:
        """As `Model.text_vectors`."""
        from headspan.model.text import part_read

        vectors = text_vectors(self._store, texts, weights=self._weights)
        # They are in the user's cache; every list of texts would stay in this process's too.
        forget_vectors()
        parts = {text: part_read(self._model, text) for text in texts}
        return vectors, {text: part for text, part in parts.items() if part is not None}

    def uploaded_image(self, encoded: bytes) -> QueryImage:
        """The numbers of an encoded image, with its patches."""
        source = ImageSource("the dropped-in image", encoded, None)
        found = computed(self._store, source, True, ignore, self._weights)
        return QueryImage(source.name, None, found["norm"], found["embedding"], found["heads"], found["patches"])

    def stored_image(self, row: int) -> QueryImage:
        """The numbers of the image at `row` of the store, with its patches."""
        (image,) = self._store.images_of_rows(np.array([row])).tolist()
        if image < 0:
            self._store = opened_with_cache(self._store.path, self._cache_bytes)
            (image,) = self._store.images_of_rows(np.array([row])).tolist()
        if image < 0:
            raise SettingsError(f"{self._store.path}: does not show row {row} any more; choose another image")
        return query_image(self._store, image, with_patches=True, weights=self._weights, shards=self._shards)

    def spectrum(self, head: Head, pool: str | None) -> HeadSpectra:
        """As `Model.spectrum`."""
        texts = largest_pool(self._store) if pool is None else stored_pool(self._store, pool)
        return spectra(self._store, [head], texts or "general", weights=self._weights)


def answer_questions(connection: Connection) -> None:
    """Load the model that the first message names, then answer questions until the connection is closed."""
    settings: WorkerSettings = connection.recv()
    # Notes come from another thread.
    sending = threading.Lock()

    def on_progress(progress: Progress) -> None:
        if progress.stage == NOTE:
            with sending:
                connection.send((LOADING, progress.note))

    try:
        worker = Worker(settings, on_progress)
    except HeadspanError as error:
        with sending:
            connection.send((FAILED, str(error)))
        return
    with sending:
        connection.send((READY, None))
    while True:
        name, arguments = connection.recv()
        connection.send(_answer(worker, name, arguments))


def _answer(worker: Worker, name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return ANSWER, getattr(worker, name)(*arguments)
    except HeadspanError as error:
        return REFUSED, (type(error), str(error))
    except Exception as error:
        traceback.print_exc()
        return BROKEN, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    # Ctrl-C in the terminal is the server's, which closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer_questions(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit()
