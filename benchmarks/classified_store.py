"""Write stores of random numbers whose embeddings can be classified, with heads, margins and accuracy like a model's.

* Every image has a class and 96 normal factors around those of its class; classes lie in groups of ten, whose factors
  are alike. The spread around the class is chosen by bisection, so that the stated accuracy is reached.
* A head's output is its own random map of the factors, plus a mean and noise with a tenth of the variance. The size of
  its matrix to joint space falls by a quarter from layer to layer towards the first one, and differs between heads of a
  layer. So the last four layers of 24 carry some nine tenths of the embeddings' variance.
* An embedding is the sum of all contributions, plus a mean that is as long as the standard deviation.
* A class's vector is a common vector, which is as far from the images' mean as texts are from images, plus half as much
  of what the class's factors write.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.random_store import BATCH, add_moments, planned_store, zero_moments
from headspan.decompose.formula import Folded
from headspan.store.schema import Dimensions
from headspan.tasks.zero_shot import Classes

_FACTORS, _GROUP, _NOISE, _FALL = 96, 10, 0.1, 0.75


class ClassifiedImages:
    """Images of random classes: their arrays, the model's matrices, and the classes' vectors."""

    def __init__(self, size: Dimensions, classes: int, accuracy: float, random: np.random.Generator) -> None:
        self._size, self._random = size, random
        heads = len(size.layers) * size.heads
        groups = self._normal(-(-classes // _GROUP), _FACTORS)
        self._prototypes = (groups.repeat(_GROUP, axis=0)[:classes] + self._normal(classes, _FACTORS)) / math.sqrt(2)
        self._to_heads = self._normal(_FACTORS, heads * size.head_dim) / math.sqrt(_FACTORS)
        self._means = self._normal(heads * size.head_dim)
        falls = _FALL ** np.arange(len(size.layers))[::-1].repeat(size.heads)
        sizes = falls * random.lognormal(0, 0.5, heads)
        matrices = self._normal(heads, size.head_dim, size.joint) * (sizes / np.linalg.norm(sizes))[:, None, None]
        matrices /= math.sqrt(size.head_dim * size.joint)
        self._matrices = matrices.reshape(-1, size.joint).astype(np.float32)
        self._offset = self._normal(size.joint) / math.sqrt(size.joint)
        written = (self._prototypes @ self._to_heads) @ self._matrices
        written /= np.linalg.norm(written, axis=1, keepdims=True)
        common = self._normal(size.joint) / math.sqrt(size.joint)
        vectors = common + 0.5 * written
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.classes = Classes(tuple(map(str, range(classes))), vectors.astype(np.float32))
        self._spread = self._spread_of(accuracy)

    def arrays(self, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays of `count` images, and the number of each one's class."""
        size = self._size
        truths = self._random.integers(0, len(self._prototypes), count)
        outputs, embedding = self._images(truths, self._spread)
        norm = np.stack([0.1 * self._normal(count), np.ones(count), np.linalg.norm(embedding, axis=1)], axis=1)
        heads = outputs.reshape(count, len(size.layers), size.heads, size.head_dim)
        return {"embedding": embedding, "norm": norm.astype(np.float32), "heads": heads}, truths

    @property
    def folded(self) -> Folded:
        """The model's matrices; its biases are zero, so that embeddings are sums of the heads."""
        size = self._size
        kept = (len(size.layers), size.heads, size.head_dim)
        matrices = self._matrices.reshape(*kept, size.joint)
        return Folded(
            head_to_joint=matrices,
            head_mean=matrices.mean(axis=-1),
            bias_to_joint=np.zeros((size.direct_layers, size.joint), np.float32),
            bias_mean=np.zeros(size.direct_layers, np.float32),
            gain=self._normal(size.joint) / math.sqrt(size.joint),
            shift=np.zeros(size.joint, np.float32),
            share_count=np.full(1, size.terms + size.direct_layers, np.float32),
        )

    def _images(self, truths: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
        """Head outputs in float16 and embeddings of images of these classes."""
        factors = self._prototypes[truths] + np.float32(spread) * self._normal(len(truths), _FACTORS)
        factors = factors / np.float32(math.sqrt(1 + spread**2))
        outputs = factors @ self._to_heads + self._means
        outputs += math.sqrt(_NOISE) * self._normal(*outputs.shape)
        stored = outputs.astype(np.float16)
        centred = stored.astype(np.float32) - self._means
        return stored, math.sqrt(1 + _NOISE) * self._offset + centred @ self._matrices

    def _spread_of(self, accuracy: float) -> float:
        """The spread of factors around their class at which this share of images is named correctly."""
        truths = self._random.integers(0, len(self._prototypes), 1000)
        low, high = 0.0, 20.0
        for _ in range(10):
            middle = (low + high) / 2
            _, embedding = self._images(truths, middle)
            right = ((embedding @ self.classes.vectors.T).argmax(axis=1) == truths).mean()
            low, high = (middle, high) if right > accuracy else (low, middle)
        return (low + high) / 2

    def _normal(self, *shape: int) -> np.ndarray:
        return self._random.standard_normal(shape, dtype=np.float32)


def write_classified_store(
    path: Path, size: Dimensions, classes: int, accuracy: float, random: np.random.Generator
) -> tuple[Classes, np.ndarray]:
    """Write a finished store of `heads`; return the classes' vectors, and the number of each image's class."""
    images = ClassifiedImages(size, classes, accuracy, random)
    store = planned_store(path, size, ("heads",), random, folded=images.folded)
    truths = []
    for unit in store.unfinished():
        moments = zero_moments(size)
        end = unit.first_row + unit.rows
        with store.begin(unit) as writer:
            for first in range(unit.first_row, end, BATCH):
                rows = np.arange(first, min(first + BATCH, end))
                arrays, of_images = images.arrays(len(rows))
                truths.append(of_images)
                add_moments(moments, arrays)
                writer.put(rows, np.ones(len(rows), bool), arrays)
            writer.commit(moments, [])
    store.finish()
    return images.classes, np.concatenate(truths)
