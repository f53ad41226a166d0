"""Stores of scenes made by hand, in which a head writes a factor, for tests of the ground-truth check.

A head's output is 1 at the number of the scene's value, and 0 elsewhere. Each head has its own axes of the joint space,
and the vector of a text is on the axes of what it names. In addition, all images and all texts such as "a red ring"
share one axis, which maps must leave out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.decompose.formula import Folded
from headspan.decompose.moments import Moments
from headspan.shards.samples import Sample, Shard
from headspan.store.schema import FORMAT, Dimensions
from headspan.store.write import analyses
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter
from headspan.tasks.zero_shot import Classes
from headspan.texts.pool import Pool
from headspan.world import FACTORS, Scene, prompts, render, scene, value_of
from headspan.world.checks import FACTOR_OF
from headspan.world.map_checks import DESCRIPTIONS

Head = tuple[int, int]
LAYERS, HEADS, HEAD_DIM, PATCHES = 2, 3, 16, 4
# An axis for each number of each head, and one that no head writes to.
JOINT = LAYERS * HEADS * HEAD_DIM + 1
TOKENS = PATCHES * PATCHES + 1
# In these scenes one colour, one shape and one style is the most common, without a tie.
SCENES = tuple(scene(10, "train", index) for index in range(151))
VALUES = {factor: [value_of(each, factor) for each in SCENES] for factor in FACTORS}
# The writing heads of each store, and the seed of its texts if they are random.
TEXTS: dict[Path, tuple[Mapping[Head, str], int | None]] = {}
EVERYWHERE = np.full((len(SCENES), TOKENS), 1 / 32, np.float32)
# The head and the number whose axis all images and all texts about objects have in common.
SHARED_HEAD, SHARED_NUMBER = (0, 1), HEAD_DIM - 1


def axis(head: Head, number: int) -> np.ndarray:
    """The joint axis of one number of one head."""
    return np.eye(JOINT, dtype=np.float32)[(head[0] * HEADS + head[1]) * HEAD_DIM + number]


def hand_store(
    path: Path,
    writes: Mapping[Head, str],
    labels: Mapping[Head, str],
    scenes: Sequence[Scene] = SCENES,
    where: np.ndarray = EVERYWHERE,
    noise: int | None = None,
    consistent: int = 5,
    by_object: float = 0,
) -> hs.Store:
    """A store whose heads write the factors of `writes`, and are labelled by `labels` with a CCS of `consistent`.

    `where` says how much of a head's output each token gives. With `noise`, a seed, outputs and texts are random. With
    `by_object`, every object's value of a factor is written where the object is, that many times the part of each patch
    that it covers.
    """
    shape = (len(scenes), LAYERS, HEADS, HEAD_DIM)
    outputs = np.zeros(shape, np.float32)
    for (layer, head), factor in writes.items():
        names = list(prompts(factor))
        for row, each in enumerate(scenes):
            if (value := value_of(each, factor)) is not None:
                outputs[row, layer, head, names.index(value)] = 1
    outputs[:, *SHARED_HEAD, SHARED_NUMBER] = 1
    if noise is not None:
        outputs = np.random.default_rng(noise).standard_normal(shape).astype(np.float16).astype(np.float32)
    patches = outputs[:, :, :, None] * where[: len(scenes), None, None, :, None]
    if by_object:
        shares = object_shares(scenes)
        for head, factor in writes.items():
            names = list(prompts(factor))
            patches[:, *head] = 0
            for row, each in enumerate(scenes):
                for number, thing in enumerate(each.things):
                    patches[row, *head, 1:, names.index(getattr(thing, factor))] += by_object * shares[row][number]
            outputs[:, *head] = patches[:, *head].sum(axis=1)
    _write(path, scenes, outputs, patches)
    store = hs.open(path)
    TEXTS[path] = writes, noise
    _add_labels(store, labels, consistent)
    return store


def object_shares(scenes: Sequence[Scene]) -> list[np.ndarray]:
    """For each scene, the share of every patch that each object covers: [object, patch]."""
    found = []
    for each, mask in zip(scenes, render(scenes, masks=True)[1], strict=True):
        own = mask == np.arange(1, each.count + 1)[:, None, None]
        found.append(own.reshape(each.count, PATCHES, 16, PATCHES, 16).mean(axis=(2, 4)).reshape(each.count, -1))
    return found


def _write(path: Path, scenes: Sequence[Scene], outputs: np.ndarray, patches: np.ndarray) -> None:
    count = len(scenes)
    size = Dimensions(count, count, tuple(range(LAYERS)), LAYERS, LAYERS, HEADS, HEAD_DIM, TOKENS, 1, JOINT, 5)
    emit = ("heads", "patches")
    about = {"model": "hand", "pretrained": None, "preprocess": {"size": [64, 64]}, "version": "hand"}
    samples = [
        Sample(row, f"{row}", "0.tar", f"{row}.png", 0, 1, metadata=json.dumps(each.metadata()))
        for row, each in enumerate(scenes)
    ]
    zeros = np.zeros((LAYERS, JOINT), np.float32)
    folded = Folded(
        head_to_joint=np.eye(JOINT - 1, JOINT, dtype=np.float32).reshape(LAYERS, HEADS, HEAD_DIM, JOINT),
        head_mean=np.zeros((LAYERS, HEADS, HEAD_DIM), np.float32),
        bias_to_joint=zeros,
        bias_mean=zeros[:, 0],
        gain=zeros[0],
        shift=zeros[0],
        share_count=np.ones(1, np.float32),
    )
    with NewStore(path) as staged:
        staged.plan(samples, count, [])
        attributes = {"format": FORMAT, "emit": list(emit), "dimensions": asdict(size), **about}
        staged.publish(attributes, [Shard("0.tar", 0, count, None, None)], folded)
    writer = StoreWriter(path)
    (unit,) = writer.unfinished()
    # The norm changes nothing: mean 0, deviation 1, and an embedding of length 1.
    norm = np.tile(np.array([0, 1, 1], np.float32), (count, 1))
    moments = Moments.zeros(LAYERS, HEADS, HEAD_DIM, torch.device("cpu"))
    moments.add(torch.from_numpy(outputs), torch.from_numpy(norm))
    embedding = np.concatenate([outputs.reshape(count, -1), np.zeros((count, 1), np.float32)], axis=1)
    patches[:, *SHARED_HEAD, :, SHARED_NUMBER] = 1
    with writer.begin(unit) as rows:
        rows.put(
            np.arange(count),
            np.ones(count, bool),
            {
                "embedding": embedding,
                "norm": norm,
                "heads": outputs.astype(np.float16),
                "patches": patches.astype(np.float16),
            },
        )
        rows.commit(moments, [])
    writer.finish()


def hand_made_classes(store: hs.Store, *arguments: object) -> dict[str, Classes]:
    """Takes the place of `embed_classes`: the vector of a text is the sum of the axes of what it names."""
    (sets,) = (each for each in arguments if isinstance(each, dict))
    writes, noise = TEXTS[store.path]
    random = None if noise is None else np.random.default_rng(noise + 1)
    found = {}
    for kind, ways in sets.items():
        # Things are "a red ring" and so on.
        named = [
            dict(zip(("colour", "shape"), value.split()[1:], strict=True)) if kind == DESCRIPTIONS else {kind: value}
            for value in ways
        ]
        vectors = np.stack([_text_vector(each, writes) for each in named])
        if kind == DESCRIPTIONS:
            vectors += axis(SHARED_HEAD, SHARED_NUMBER)
        if random is not None:
            vectors = random.standard_normal(vectors.shape).astype(np.float32)
        found[kind] = Classes(tuple(ways), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return found


def _text_vector(named: Mapping[str, str], writes: Mapping[Head, str]) -> np.ndarray:
    axes = [
        axis(head, list(prompts(factor)).index(named[factor])) for head, factor in writes.items() if factor in named
    ]
    # The vector of a text about something that no head writes is the axis that no head writes to.
    return np.sum(axes, axis=0) if axes else np.eye(JOINT, dtype=np.float32)[-1]


def _add_labels(store: hs.Store, labels: Mapping[Head, str], consistent: int) -> None:
    """Text spans whose first `consistent` texts of five name the head's label; heads without a label have no texts."""
    pool = Pool(
        "world", tuple(f"{concept} {n}" for concept in FACTOR_OF for n in range(5)), tuple(np.repeat([*FACTOR_OF], 5))
    )
    indices = np.full((LAYERS, HEADS, 5), -1)
    for head, concept in labels.items():
        place = list(FACTOR_OF).index(concept)
        indices[head] = 5 * place + np.arange(5)
        # Each of the other texts names another concept.
        indices[head][consistent:] = 5 * ((place + 1 + np.arange(5 - consistent)) % len(FACTOR_OF))
    about = {"pool_sha256": pool.sha256, "texts": list(pool.texts), "concepts": list(map(str, pool.concepts or ()))}
    vectors = np.eye(len(pool.texts), JOINT, dtype=np.float32)
    analyses.save(store, "texts", "world", {"vectors": (vectors, ("text", "joint"))}, about)
    dims = ("layer", "head", "text")
    analyses.save(
        store,
        "textspan",
        "world",
        {"indices": (indices, dims), "explained": (np.zeros(indices.shape), dims)},
        {"pool": "world", "pool_sha256": pool.sha256, "layers": list(range(LAYERS)), "images": store.images},
    )
    label_heads(store, save=True)
    concept_consistency(store, save=True)
