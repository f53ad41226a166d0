"""Vectors of texts in the user's cache folder, by model and text: `headspan/text-vectors-1.sqlite3`.

A vector is found again by every pool that contains its text. Several processes may use the file. A file that cannot be
read or written is ignored; a damaged one is deleted, and a damaged vector is embedded again. Beyond 1 GiB, the vectors
that were written first are deleted.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from headspan.user_paths import cache_folder

_MOST_BYTES = 1 << 30
# Another process may be writing.
_WAIT_SECONDS = 5.0
# SQLite accepts at least this many values in one statement.
_AT_ONCE = 500
_COLUMNS = "model TEXT, text TEXT, vector BLOB, crc INTEGER, PRIMARY KEY (model, text)"


def cache_file() -> Path:
    """The file of cached vectors. Raises RuntimeError if the user has no home folder."""
    return cache_folder() / "text-vectors-1.sqlite3"


def find_cached(model: str, texts: Sequence[str], joint: int) -> dict[str, Float32[np.ndarray, " joint"]]:
    """The cached vectors of `texts` of a model, by text; texts without one are left out.

    `model` names everything but the text that decides a vector; `joint` is the vectors' length.
    """
    found: dict[str, np.ndarray] = {}
    with _errors_ignored():
        if not cache_file().is_file():
            return found
        with closing(_connected("ro")) as database:
            for start in range(0, len(texts), _AT_ONCE):
                some = list(texts[start : start + _AT_ONCE])
                marks = ", ".join("?" * len(some))
                query = f"SELECT text, vector, crc FROM vectors WHERE model = ? AND text IN ({marks})"
                for text, data, crc in database.execute(query, [model, *some]):
                    if isinstance(data, bytes) and len(data) == 4 * joint and zlib.crc32(data) == crc:
                        found[text] = np.frombuffer(data, np.float32)
    return found


def cache_vectors(model: str, texts: Sequence[str], vectors: Float32[np.ndarray, "text joint"]) -> None:
    """Cache the vectors of `texts` of a model."""
    rows = [
        (model, text, data := np.ascontiguousarray(vector, np.float32).tobytes(), zlib.crc32(data))
        for text, vector in zip(texts, vectors, strict=True)
    ]
    with _errors_ignored():
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        # Closed after it is committed, or rolled back.
        with closing(_connected("rwc")) as database, database:
            database.execute(f"CREATE TABLE IF NOT EXISTS vectors ({_COLUMNS})")
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
            _forget_oldest(database)


def _forget_oldest(database: sqlite3.Connection) -> None:
    """Delete the quarter of the vectors that was written first, if the file is too large."""
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    if (pages - free) * size > _MOST_BYTES:
        database.execute(
            "DELETE FROM vectors WHERE rowid IN "
            "(SELECT rowid FROM vectors ORDER BY rowid LIMIT (SELECT (count(*) + 3) / 4 FROM vectors))"
        )


def _connected(mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{cache_file().absolute().as_uri()}?mode={mode}", _WAIT_SECONDS, uri=True)


@contextmanager
def _errors_ignored() -> Iterator[None]:
    """End the block at an error of the cache, which is only a cache. A file that is no sound database is deleted."""
    try:
        yield
    # The user has no home folder, the folder cannot be written, or another process has locked the file.
    except (OSError, RuntimeError, sqlite3.OperationalError):
        pass
    except sqlite3.DatabaseError:
        with suppress(OSError):
            cache_file().unlink(missing_ok=True)
