"""Modality Dominance Score and energy score of features, as sums over blocks of codes.

MDS is the mean of z / (z + w) over pairs in which the image's code z or the text's code w is above 0 (Yan et al., arXiv
2502.14888). The energy score is E[z²] / (E[z²] + E[w²]). Both are 1 for features of images alone, and 0 for features of
texts alone. The energy score does not depend on which image is paired with which text, so shuffling changes MDS only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from headspan.features.scores.codes import Codes, at_same_places, rows_of
from headspan.features.scores.groups import DRAWS, GROUPS, ratio_intervals


@dataclass(frozen=True, slots=True, eq=False)
class Dominance:
    """Scores by feature, NaN for features that are never active; intervals are NaN without groups."""

    pairs: int
    # Pairs in which the image's code, the text's, one or both, and both are above 0.
    image_active: Int64[np.ndarray, " feature"]
    text_active: Int64[np.ndarray, " feature"]
    active: Int64[np.ndarray, " feature"]
    both_active: Int64[np.ndarray, " feature"]
    mds: Float64[np.ndarray, " feature"]
    mds_interval: Float64[np.ndarray, "feature 2"]
    energy: Float64[np.ndarray, " feature"]
    energy_interval: Float64[np.ndarray, "feature 2"]


class DominanceSums:
    """Sums over pairs, added block by block: 4 × `groups` numbers for each feature, for any number of pairs."""

    def __init__(self, features: int, groups: int = GROUPS) -> None:
        self.features, self.groups, self.pairs = features, groups, 0
        self.image_active, self.text_active, self.both_active = (np.zeros(features, np.int64) for _ in range(3))
        # Σ z / (z + w), the active pairs, Σ z² and Σ w², by group.
        self._ratio, self._active, self._image, self._text = (np.zeros((groups, features)) for _ in range(4))
        self._present = np.zeros(groups, np.bool_)

    def add(self, images: Codes, texts: Codes, group: Int64[np.ndarray, " pair"] | None = None) -> None:
        """Add pairs: row i of `images` and of `texts` are of one pair, in group `group[i]`, by default group 0."""
        assert images.shape == texts.shape == (images.shape[0], self.features), (images.shape, texts.shape)
        self.pairs += images.shape[0]
        group = np.zeros(images.shape[0], np.int64) if group is None else group
        self._present[group] = True
        z, w = images.data.astype(np.float64), texts.data.astype(np.float64)
        beside_z = at_same_places(images, texts).astype(np.float64)
        both = beside_z > 0
        alone = at_same_places(texts, images) == 0
        self.image_active += np.bincount(images.indices, minlength=self.features)
        self.text_active += np.bincount(texts.indices, minlength=self.features)
        self.both_active += np.bincount(images.indices[both], minlength=self.features)
        at_images = group[rows_of(images)] * self.features + images.indices
        at_texts = group[rows_of(texts)] * self.features + texts.indices
        # A text's code without an image's adds 0 to the ratio.
        np.add.at(self._ratio.reshape(-1), at_images, z / (z + beside_z))
        np.add.at(self._active.reshape(-1), at_images, 1.0)
        np.add.at(self._active.reshape(-1), at_texts[alone], 1.0)
        np.add.at(self._image.reshape(-1), at_images, z * z)
        np.add.at(self._text.reshape(-1), at_texts, w * w)

    def scores(self, seed: int = 0, draws: int = DRAWS) -> Dominance:
        """The scores of the pairs so far, with intervals if there are several groups."""
        ratio, active, image, text = (sums.sum(axis=0) for sums in (self._ratio, self._active, self._image, self._text))
        nowhere = np.full((self.features, 2), np.nan)
        mds_interval = energy_interval = nowhere
        if self.groups > 1:
            mds_interval = ratio_intervals(self._ratio, self._active, self._present, seed, draws)
            energy_interval = ratio_intervals(self._image, self._image + self._text, self._present, seed, draws)
        return Dominance(
            self.pairs,
            self.image_active.copy(),
            self.text_active.copy(),
            active.astype(np.int64),
            self.both_active.copy(),
            _ratio(ratio, active),
            mds_interval,
            _ratio(image, image + text),
            energy_interval,
        )

    @property
    def image_square(self) -> Float64[np.ndarray, " feature"]:
        """Σ z² of each feature."""
        return np.asarray(self._image.sum(axis=0))

    @property
    def text_square(self) -> Float64[np.ndarray, " feature"]:
        """Σ w² of each feature."""
        return np.asarray(self._text.sum(axis=0))


def _ratio(above: np.ndarray, below: np.ndarray) -> Float64[np.ndarray, " feature"]:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0))
