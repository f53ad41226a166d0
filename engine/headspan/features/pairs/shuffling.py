"""Give the images of pairs each other's captions: pairs for a null, in which nothing is shared but chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headspan.features.pairs.pairs import Pairs


def shuffle_captions(pairs: Pairs, seed: int) -> Pairs:
    """The same images and captions, with the captions of each store in a random order; none is lost or repeated."""
    random = np.random.default_rng(seed)
    sources = [
        source
        if source.index is None
        else replace(source, index=replace(source.index, numbers=random.permutation(source.index.numbers)))
        for source in pairs._sources
    ]
    return replace(pairs, _sources=tuple(sources))
