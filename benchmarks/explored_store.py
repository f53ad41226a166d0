"""Write a store of random numbers that has everything the explorer shows: classes, captions, pictures, and results.

Numbers are `random_store.Spectrum`'s. Captions have words of falling frequency, as in a language. The shards hold a few
pictures, which repeat, under hard links, so that the pictures of 1,000,000 images take a few megabytes. Vectors of the
texts are random; heads are described by them (TEXTSPAN), labelled, and scored from stored moments.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import headspan as hs
from benchmarks.pictures import photo_like, write_shards
from benchmarks.random_store import Spectrum, add_moments, random_folded, unit_batches, write_store, zero_moments
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.config import Preprocess
from headspan.decompose.formula import Folded
from headspan.shards.samples import Sample, Shard
from headspan.store.reader import Store
from headspan.store.schema import FORMAT, Dimensions
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter
from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import EmbeddedPool, find_vectors, keep_vectors, stored_pool

# Each is the label of about as many of the heads.
_CONCEPTS = ("colours", "shapes", "places", "animals")
CLASSES, WORDS, CAPTION_WORDS = 100, 500, 9
# The text tower that the vectors of texts are of, so that the model need not be searched for it.
_TOWER = "0" * 64
_PICTURES, _SHARD_IMAGES = 50, 10_000


def write_explored_store(
    folder: Path, size: Dimensions, random: np.random.Generator, texts: int | None = None, pixels: int = 224
) -> Store:
    """Write `folder`/run.zarr and its shards; `texts` is how many of the texts of the pool `general` it has."""
    path = folder / "run.zarr"
    per_shard = min(_SHARD_IMAGES, size.images)
    places = _write_pictures(folder / "shards", per_shard, -(-size.images // per_shard))
    attributes = {
        "format": FORMAT,
        "version": "benchmark",
        "emit": ["heads"],
        "dimensions": asdict(size),
        **_attributes(pixels),
    }
    shards = [
        Shard(url, number * per_shard, min(per_shard, size.images - number * per_shard), Path(url).stat().st_size, None)
        for number, url in enumerate(places)
    ]
    with NewStore(path) as staged:
        staged.plan(_samples(size.images, places, per_shard, random), size.unit_images, [])
        staged.publish(attributes, shards, _smaller(random_folded(size, random), size))
    _write_numbers(StoreWriter(path), size, random)
    store = hs.open(path)
    _add_results(store, texts, random)
    return hs.open(path)


def _smaller(folded: Folded, size: Dimensions) -> Folded:
    """The matrices with contributions of all heads that are together about as long as the embedding, as a model's."""
    factor = np.float32(1 / np.sqrt(size.head_dim * len(size.layers) * size.heads))
    return replace(folded, head_to_joint=folded.head_to_joint * factor, head_mean=folded.head_mean * factor)


def _write_numbers(store: StoreWriter, size: Dimensions, random: np.random.Generator) -> None:
    spectrum = Spectrum(size, random)
    for unit in store.unfinished():
        moments = zero_moments(size)
        with store.begin(unit) as writer:
            for rows, arrays in unit_batches(unit, size, ("heads",), random, spectrum):
                add_moments(moments, arrays)
                writer.put(rows, np.ones(len(rows), bool), arrays)
            writer.commit(moments, [])
    store.finish()


def _write_pictures(folder: Path, per_shard: int, shards: int) -> dict[str, list[tuple[str, int, int]]]:
    """The shards' paths, each with the member, offset and size of its pictures, which repeat."""
    encoded = [photo_like(np.random.default_rng(seed), 500, 375) for seed in range(_PICTURES)]
    write_shards(folder, encoded, min(per_shard, 4 * _PICTURES))
    first = folder / "00000.tar"
    with tarfile.open(first) as tar:
        members = [(member.name, member.offset_data, member.size) for member in tar.getmembers()]
    found = {str(first): members}
    for number in range(1, shards):
        os.link(first, folder / f"{number:05d}.tar")
        found[str(folder / f"{number:05d}.tar")] = members
    return found


def _samples(
    images: int, places: dict[str, list[tuple[str, int, int]]], per_shard: int, random: np.random.Generator
) -> Iterator[Sample]:
    urls = list(places)
    shares = 1 / np.arange(1, WORDS + 1)
    for first in range(0, images, per_shard):
        count = min(per_shard, images - first)
        words = random.choice(WORDS, (count, CAPTION_WORDS), p=shares / shares.sum()).tolist()
        labels = random.integers(0, CLASSES, count).tolist()
        url = urls[first // per_shard]
        members = places[url]
        for number in range(count):
            member, offset, size_bytes = members[number % len(members)]
            row, caption = first + number, " ".join(f"word{word}" for word in words[number])
            yield Sample(row, f"{row:09d}", url, member, offset, size_bytes, caption, labels[number])


def _add_results(store: Store, texts: int | None, random: np.random.Generator) -> None:
    general = read_pool("general")
    chosen = general.texts[:texts]
    pool = Pool(general.name, chosen, tuple(_CONCEPTS[number % len(_CONCEPTS)] for number in range(len(chosen))))
    vectors = random.standard_normal((len(pool.texts), store.joint), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keep_vectors(store, EmbeddedPool(pool, vectors, _TOWER))
    count = min(20, store.head_dim)
    hs.textspan(store, pool, texts_per_head=count, draws=20, save=True)
    labels = label_heads(store, pool.name, save=True)
    concept_consistency(store, labels.run, save=True)


def write_patches_store(path: Path, size: Dimensions, random: np.random.Generator, texts: Store) -> None:
    """Write a store with patches, which knows the vectors of the texts of another one."""
    spectrum = Spectrum(size, random)
    write_store(path, size, ("heads", "patches"), random, spectrum=spectrum, **_attributes(224))
    found = find_vectors(texts, stored_pool(texts, "general"))
    assert found is not None, "the other store keeps them"
    keep_vectors(hs.open(path), found)


def _attributes(pixels: int) -> dict[str, Any]:
    """What a store says about its model, apart from sizes."""
    return {
        "model": "random",
        "pretrained": None,
        "precision": "fp32",
        "weights_sha256": _TOWER,
        "text_sha256": _TOWER,
        "preprocess": asdict(Preprocess((pixels, pixels))),
    }
