"""Embed the texts of a pool with the text tower of a store's model, without writing to the store.

Vectors come from the store if it keeps them, else from a cache of this process, else from the user's cache
(`user_cache`), else from the model. Only the last needs torch. `stored.keep_vectors` writes vectors into a store.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from headspan.errors import ModelError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store.reader import Store
from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import EmbeddedPool, find_vectors, kept_text_tower
from headspan.texts.user_cache import cache_vectors, find_cached

# 3,500 texts of 1,280 numbers are 18 MB.
_CACHE_BYTES = 256 << 20
# More texts are a pool, and not a query.
_QUERY_TEXTS = 32


class _Cache:
    """The vectors that were used last, up to `_CACHE_BYTES`."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, EmbeddedPool] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> EmbeddedPool | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: str, embedded: EmbeddedPool) -> None:
        with self._lock:
            self._found[key] = embedded
            while sum(each.vectors.nbytes for each in self._found.values()) > _CACHE_BYTES:
                self._found.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._found.clear()


_cache = _Cache()


def forget_vectors() -> None:
    """Empty the cache of this process, to free its memory."""
    _cache.clear()


def text_vectors(
    store: Store,
    texts: str | Path | Sequence[str] | Pool,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> Float32[np.ndarray, "text joint"]:
    """Unit vectors of texts in the joint space of a store's model; read-only, the store is not changed.

    Vectors that the model computes are cached in the user's cache folder, and found there for any list of texts.

    `texts` is anything that `read_pool` accepts. `weights` names a file, a folder or `hf-hub:NAME` that holds the
    model's weights, if they have moved since the store was made; `hf-hub:` may download. Raises TextsError as
    `read_pool` does, and ModelError if the model cannot be loaded or is not the one that made the store.
    """
    return embed_pool(store, texts, on_progress, weights=weights).vectors


def embed_pool(
    store: Store,
    texts: str | Path | Sequence[str] | Pool,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> EmbeddedPool:
    """As `text_vectors`, but returns the pool and the text tower too, as `keep_vectors` needs them."""
    pool = read_pool(texts)
    tower = _text_tower(store)
    found = _without_model(store, pool, tower, weights)
    if isinstance(found, EmbeddedPool):
        return found
    missing = [text for text in dict.fromkeys(pool.texts) if text not in found]
    # Imported here, since this is the only step that needs the model and torch.
    from headspan.model import load
    from headspan.model.kept import is_kept, kept_model
    from headspan.model.text import encode_texts

    # The model stays loaded for further queries; an analysis that embeds a pool needs the memory itself.
    keeps = len(missing) <= _QUERY_TEXTS or is_kept(store.attributes, weights)
    loaded = kept_model if keeps else load.load_stored_model
    model = loaded(store.attributes, store.path, weights, on_progress)
    _refuse_other_text_tower(store, model.text_sha256, tower, f"the weights {weights or model.pretrained}")
    cut: list[str] = []
    vectors = encode_texts(model, missing, on_progress=on_progress, on_cut=cut.extend)
    # A text that was cut is not cached, so that a note says so whenever it is used.
    whole = np.array([text not in cut for text in missing])
    cache_vectors(_model_key(store, model.text_sha256), [text for text in missing if text not in cut], vectors[whole])
    known = {**found, **dict(zip(missing, vectors, strict=True))}
    if cut:
        return _with_vectors(pool, known, model.text_sha256)
    return _cached(store, pool, known, model.text_sha256, weights)


def known_vectors(store: Store, texts: str | Path | Sequence[str] | Pool) -> EmbeddedPool | None:
    """As `embed_pool`, but None where the model would be needed, since a text's vector is nowhere stored or cached."""
    pool = read_pool(texts)
    found = _without_model(store, pool, _text_tower(store), None)
    return found if isinstance(found, EmbeddedPool) else None


def cached_vectors(store: Store, texts: Sequence[str]) -> dict[str, Float32[np.ndarray, " joint"]]:
    """The vectors of single texts that the user's cache has of the store's model; texts without one are left out."""
    tower = _text_tower(store)
    return find_cached(_model_key(store, tower), texts, store.joint) if tower else {}


def vector_key(store: Store, weights: str | Path | None = None) -> str:
    """A checksum of what decides the vector of a text, besides the text: equal for stores of the same text tower."""
    tower = _text_tower(store)
    model = _model_key(store, tower) if tower else [str(store.path.resolve()), str(weights)]
    return hashlib.sha256(json.dumps(model).encode()).hexdigest()


def encode_batches(
    store: Store,
    batches: Iterable[Sequence[str]],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    done: int = 0,
    total: int | None = None,
) -> Iterator[Float32[np.ndarray, "text joint"]]:
    """Unit vectors of many texts, batch by batch, from the model, which is loaded once; nothing is cached.

    `done` of `total` texts were embedded before. `weights` is as in `text_vectors`, and so are the errors.
    """
    # Imported here, since only this needs the model and torch.
    from headspan.model import load
    from headspan.model.text import encode_texts

    model = load.load_stored_model(store.attributes, store.path, weights, on_progress)
    _refuse_other_text_tower(store, model.text_sha256, _text_tower(store), f"the weights {weights or model.pretrained}")
    cut, before = 0, done

    def forward(event: Progress) -> None:
        if event.stage != NOTE:
            on_progress(Progress("captions", before + event.done, total))

    def count(texts: list[str]) -> None:
        nonlocal cut
        cut += len(texts)

    for texts in batches:
        vectors = encode_texts(model, texts, on_progress=forward, on_cut=count)
        before += len(texts)
        yield vectors
    if cut:
        said = f"{counted(cut, 'caption')} filled the model's context, so their ends may have been cut"
        on_progress(Progress(NOTE, 0, None, said))


def _text_tower(store: Store) -> str | None:
    """The checksum of the store's text tower, as far as it is known without the model."""
    return store.attributes.get("text_sha256") or kept_text_tower(store)


def _without_model(
    store: Store, pool: Pool, tower: str | None, weights: str | Path | None
) -> EmbeddedPool | dict[str, Float32[np.ndarray, " joint"]]:
    """The pool's vectors from the store or a cache; where some are in neither, those of the user's cache by text."""
    # First, because the store's pools are files.
    if (cached := _cache.get(_cache_key(store, tower, weights, pool))) is not None:
        return EmbeddedPool(pool, cached.vectors, cached.text_sha256)
    if (kept := find_vectors(store, pool)) is not None:
        _refuse_other_text_tower(store, kept.text_sha256, tower, f"the stored vectors of pool {kept.pool.name!r}")
        return _embedded(pool, kept.vectors, kept.text_sha256 or tower)
    wanted = list(dict.fromkeys(pool.texts))
    # Without its checksum, the text tower is known only after it is loaded.
    known = find_cached(_model_key(store, tower), wanted, store.joint) if tower else {}
    return known if len(known) < len(wanted) else _cached(store, pool, known, tower, weights)


def _cached(
    store: Store,
    pool: Pool,
    known: Mapping[str, Float32[np.ndarray, " joint"]],
    tower: str | None,
    weights: str | Path | None,
) -> EmbeddedPool:
    """The pool with its vectors from `known`, now in this process's cache."""
    embedded = _with_vectors(pool, known, tower)
    _cache.put(_cache_key(store, _text_tower(store), weights, pool), embedded)
    return embedded


def _with_vectors(pool: Pool, known: Mapping[str, Float32[np.ndarray, " joint"]], tower: str | None) -> EmbeddedPool:
    return _embedded(pool, np.stack([known[text] for text in pool.texts]), tower)


def _embedded(pool: Pool, vectors: np.ndarray, text_sha256: str | None) -> EmbeddedPool:
    # Every caller gets the same array, so it must not change.
    vectors.flags.writeable = False
    return EmbeddedPool(pool, vectors, text_sha256)


def _cache_key(store: Store, tower: str | None, weights: str | Path | None, pool: Pool) -> str:
    """Text tower and texts. Concepts and the pool's name do not change a vector."""
    model = _model_key(store, tower) if tower else [str(store.path.resolve()), str(weights)]
    return hashlib.sha256(json.dumps([model, pool.texts], sort_keys=True).encode()).hexdigest()


def _model_key(store: Store, tower: str) -> str:
    """What decides a text's vector. The checksum covers the weights; the rest, how they and the tokenizer are used."""
    settings = [store.attributes.get(name) for name in ("model", "model_config", "tower")]
    return hashlib.sha256(json.dumps([tower, *settings], sort_keys=True).encode()).hexdigest()


def _refuse_other_text_tower(store: Store, found: str | None, wanted: str | None, what: str) -> None:
    if found and wanted and found != wanted:
        raise ModelError(
            f"{store.path}: {what} are of text tower {found[:12]}, but its other texts are of {wanted[:12]}; "
            "give the weights of that tower"
        )
