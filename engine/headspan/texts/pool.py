"""Text pools: read from a file or from the package, and embedded once per store by its own model.

A pool is a text file with one description a line, or with lines of text<TAB>concept (`pool_file`). The vectors are
kept in the store as `texts/<pool>`, so that only the first analysis over a pool needs the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from headspan.errors import ModelError, TextsError
from headspan.events import Listener, ignore
from headspan.store import results
from headspan.store.reader import Store
from headspan.store.write import analyses
from headspan.texts.pool_file import read_lines

# Line ends and tabs part texts and concepts; half of a surrogate pair is no letter.
_NOT_IN_A_TEXT = re.compile(r"[\n\r\t\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Pool:
    """Descriptions, and the concept of each where they are annotated."""

    name: str
    texts: tuple[str, ...]
    concepts: tuple[str, ...] | None = None
    # The language model that wrote texts and concepts, where one did.
    author: str | None = None

    def __post_init__(self) -> None:
        """Raise TextsError for what is no text of one line: the checksum would take two of those for the same."""
        for text in (*self.texts, *(self.concepts or ())):
            if not isinstance(text, str):
                raise TextsError(f"pool {self.name}: {text!r} is no text; give strings")
            if found := _NOT_IN_A_TEXT.search(text):
                raise TextsError(
                    f"pool {self.name}: the text {text[:60]!a} holds {found[0]!a}; give each text in one line, without "
                    "tabs and halves of letters"
                )

    @property
    def sha256(self) -> str:
        """Identifies the texts and their order, and the concepts."""
        lines = self.texts if self.concepts is None else map("\t".join, zip(self.texts, self.concepts, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_pool(source: str | Path | Sequence[str] | Pool) -> Pool:
    """A pool from a file, from a sequence of texts, or one that ships with headspan (`general`, `world`).

    Raises TextsError where the file is missing, empty, of another kind, or annotates only some of its lines.
    """
    if isinstance(source, Pool):
        return source
    if not isinstance(source, str | Path):
        return _listed(tuple(source))
    shipped = files("headspan.texts") / "pools" / f"{source}.tsv"
    path = Path(source)
    try:
        content = shipped.read_bytes() if shipped.is_file() and not path.is_file() else path.read_bytes()
    except (OSError, ValueError) as error:
        raise TextsError(
            f"{source}: cannot be read ({getattr(error, 'strerror', None) or error}); give a file with one description "
            "a line, or general or world, which ship with headspan"
        ) from error
    columns = list(zip(*read_lines(content, str(source)), strict=True))
    # As a name in the store; the checksum tells pools of one name apart.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "pool"
    return Pool(name, columns[0], columns[1] if len(columns) > 1 else None, _author(path, content))


def _listed(texts: tuple[str, ...]) -> Pool:
    if not texts:
        raise TextsError("an empty list of texts; give at least one description")
    pool = Pool("list", texts)
    return replace(pool, name=f"list-{pool.sha256[:8]}")


def answers_path(pool: Path) -> Path:
    """The file beside a pool that holds the language model's answers that it was made from."""
    return pool.with_name(f"{pool.name}.answers.json")


def _author(path: Path, content: bytes) -> str | None:
    """Who wrote the pool, as the file of answers beside it says."""
    try:
        beside = json.loads(answers_path(path).read_bytes())
        changed = "" if hashlib.sha256(content).hexdigest() in beside["sha256"] else ", changed since"
        return f"{beside['about']['model']}{changed}"
    # No such file, or one of something else.
    except (OSError, ValueError, LookupError, TypeError):
        return None


def text_vectors(
    store: Store,
    texts: str | Path | Sequence[str] | Pool,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Float32[np.ndarray, "text joint"]:
    """Unit vectors of the texts of a pool, as `read_pool` takes it, from the store if it has them, else from its model.

    `weights` says where the model's weights lie now, if they have moved: a file, a folder, or `hf-hub:NAME`, which may
    then be fetched. Raises TextsError as `read_pool` does, and ModelError where the model cannot be had, or is not the
    one that made the store.
    """
    pool = read_pool(texts)
    name = stored_name(store, pool)
    wanted = _text_tower(store)
    if results.sound(store, "texts", name):
        arrays, settings = results.load(store, "texts", name)
        _refuse_other_text_tower(store, settings.get("text_sha256"), wanted, f"the stored vectors of pool {name!r}")
        return arrays["vectors"]
    # Only here is the model needed, and with it torch.
    from headspan.model.load import load_stored_model
    from headspan.model.text import encode_texts

    model = load_stored_model(store.attributes, store.path, weights, on_progress)
    _refuse_other_text_tower(store, model.text_sha256, wanted, f"the weights {weights or model.pretrained}")
    vectors = encode_texts(model, pool.texts, on_progress=on_progress)
    analyses.save(
        store,
        "texts",
        name,
        {"vectors": (vectors, ("text", "joint"))},
        {
            "pool_sha256": pool.sha256,
            "text_sha256": model.text_sha256,
            "texts": list(pool.texts),
            "concepts": pool.concepts and list(pool.concepts),
            "author": pool.author,
        },
    )
    return vectors


def _text_tower(store: Store) -> str | None:
    """The checksum of the text tower whose vectors the store takes: the store's own; where it is older and records
    none, that of the first vectors which record one."""
    own = store.attributes.get("text_sha256")
    names = [] if own else results.runs(store, "texts")
    recorded = (
        results.load_settings(store, "texts", name).get("text_sha256")
        for name in names
        if results.sound(store, "texts", name, metadata_alone=True)
    )
    return own or next(filter(None, recorded), None)


def _refuse_other_text_tower(store: Store, found: str | None, wanted: str | None, what: str) -> None:
    if found and wanted and found != wanted:
        raise ModelError(
            f"{store.path}: {what} are of text tower {found[:12]}, but its other texts are of {wanted[:12]}; "
            "give the weights of that tower"
        )


def stored_name(store: Store, pool: Pool) -> str:
    """The name of `pool` in the store: its own, or, where another pool has that, with its checksum."""
    # One whose texts cannot be read is made anew.
    if not results.sound(store, "texts", pool.name, metadata_alone=True):
        return pool.name
    settings = results.load_settings(store, "texts", pool.name)
    return pool.name if settings["pool_sha256"] == pool.sha256 else f"{pool.name}-{pool.sha256[:8]}"


def stored_pool(store: Store, name: str) -> Pool:
    """The pool `name` as the store keeps it."""
    settings = results.load_settings(store, "texts", name)
    with results.as_written(store, "texts", name):
        concepts, author = settings["concepts"], settings.get("author")
        return Pool(
            name,
            tuple(map(str, settings["texts"])),
            tuple(map(str, concepts)) if concepts else None,
            author and str(author),
        )
