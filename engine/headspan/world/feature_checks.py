"""The true modality of a dictionary's features on the image world, and how well scores of modality find it.

The captions of `write_world_shards(…, without=…, words=…)` make it known which side of a pair a factor is on: images
only (left out of captions), texts only (words that no image shows), or both. What a feature encodes is decided by each
side on its own: the share of the variance of its codes that the factor's values explain (η², less what chance
explains). For images the values are the scene's, and for texts those that the caption names. The feature's factor is
the one with the largest share on either side, if that share is at least `LEAST_SHARE`; its true modality is the
factor's. A share does not depend on the size of codes, on how often the other side is active, or on which image is
paired with which text, which are what scores of modality measure. So a feature of images alone that encodes a factor of
both sides is cross-modal by this truth, and a score that calls it a feature of images is wrong. Features that encode
combinations of factors, or nothing that scenes record, have no truth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int8, Int64
from scipy.sparse import csr_array

from headspan.errors import SettingsError
from headspan.events import Listener, Progress, ignore
from headspan.features.pairs.opening import open_pairs
from headspan.features.scores.codes import Codes, sparse_codes
from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED
from headspan.store.reader import Store
from headspan.world.captions import FACTORS, value_of
from headspan.world.ground_truth import scenes_of
from headspan.world.scores import ranking_auc

if TYPE_CHECKING:
    from headspan.features.training.dictionary import Dictionary

# The least share of the variance of a feature's codes that its factor explains.
LEAST_SHARE = 0.1
# The fewest pairs in which a feature with a truth is active.
LEAST_PAIRS = 20
_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A factor, its modality, and its value in each image and each caption of a store: -1 for none."""

    name: str
    modality: int
    images: Int64[np.ndarray, " image"]
    texts: Int64[np.ndarray, " image"]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTruth:
    """What each feature encodes."""

    factors: tuple[str, ...]
    # The place of the feature's factor in `factors`, or -1.
    factor: Int64[np.ndarray, " feature"]
    # TEXT_DOMINANT, CROSS_MODAL or IMAGE_DOMINANT, or UNDECIDED for features without a truth.
    modality: Int8[np.ndarray, " feature"]
    # Shares of the variance of codes that factors explain; 0 where a factor is not on a side.
    image_shares: Float64[np.ndarray, "feature factor"]
    text_shares: Float64[np.ndarray, "feature factor"]
    # Pairs in which the feature is active on either side.
    active: Int64[np.ndarray, " feature"]

    def of(self, modality: int) -> int:
        """The number of features of a modality."""
        return int((self.modality == modality).sum())


@dataclass(frozen=True, slots=True)
class ModalityAUC:
    """How well a score from 0 (texts) to 1 (images) ranks features by their true modality; None without such features.

    Each is an area under the ROC curve; chance is 0.5.
    """

    # Features of images only against all others, by the score; and features of texts only, by minus the score.
    image_only: float | None
    text_only: float | None
    # Features of both sides against all others, by the score's nearness to one half.
    cross_modal: float | None

    @property
    def mean(self) -> float | None:
        """The mean of the three, or None if one is."""
        parts = [self.image_only, self.text_only, self.cross_modal]
        found = [part for part in parts if part is not None]
        return sum(found) / 3 if len(found) == 3 else None


def feature_truth(
    store: Store,
    dictionary: Dictionary,
    *,
    least_share: float = LEAST_SHARE,
    least_pairs: int = LEAST_PAIRS,
    keep: str | Path | None = None,
    on_progress: Listener = ignore,
) -> FeatureTruth:
    """What each feature of a dictionary encodes, by the scenes and captions of a store of the image world.

    `keep` is the folder that keeps the vectors of captions, as in `open_pairs`.

    Raises SettingsError if the images are not scenes of the world, or if their captions name factors at random, as in
    shards that were written with neither `without` nor `words`.
    """
    factors = factors_of(store)
    pairs = open_pairs(store, dictionary.space, keep=keep, on_progress=on_progress)
    if not pairs.with_texts:
        raise SettingsError(
            f"{dictionary.folder}: is of {dictionary.space}, which texts are not in; give one of embeddings"
        )
    sums = ShareSums(factors, dictionary.features)
    for block in pairs.blocks(_BLOCK):
        assert block.texts is not None
        sums.add(
            sparse_codes(dictionary.encode(block.images, 0)),
            sparse_codes(dictionary.encode(block.texts, 1)),
            block.image,
        )
        on_progress(Progress("truth", sums.pairs, len(pairs)))
    return sums.truth(least_share, least_pairs)


def modality_auc(truth: FeatureTruth, scores: Float64[np.ndarray, " feature"]) -> ModalityAUC:
    """How well a score, such as MDS or the energy score, ranks the features that have a truth and a score."""
    known = (truth.modality != UNDECIDED) & np.isfinite(scores)
    modality, score = truth.modality[known], np.asarray(scores[known], np.float64)
    return ModalityAUC(
        ranking_auc(score, modality == IMAGE_DOMINANT),
        ranking_auc(-score, modality == TEXT_DOMINANT),
        ranking_auc(-np.abs(score - 0.5), modality == CROSS_MODAL),
    )


def factors_of(store: Store) -> tuple[Factor, ...]:
    """The factors and kinds of words of a store's scenes and captions. Raises SettingsError as `feature_truth` does."""
    scenes = scenes_of(store)
    known = [json.loads(each) for each in store.samples(columns=["metadata"])["metadata"].to_pylist()]
    if any("left_out" not in each for each in known):
        raise SettingsError(
            f"{store.path}: its captions name factors at random; write its shards with "
            "hs.world.write_world_shards(…, without=…, words=…)"
        )
    if len({json.dumps([each["left_out"], sorted(each["words"])]) for each in known}) > 1:
        raise SettingsError(
            f"{store.path}: its captions leave out different factors; make a store of shards of one kind"
        )
    left_out, kinds = known[0]["left_out"], sorted(known[0]["words"])
    found = []
    for name in FACTORS:
        if name not in kinds:
            values = [value_of(scene, name) for scene in scenes]
            modality = IMAGE_DOMINANT if name in left_out else CROSS_MODAL
            found.append(_factor(name, modality, values, [None] * len(known) if name in left_out else values))
    for kind in kinds:
        # That a caption holds none is a value too.
        said = [each["words"][kind] or "" for each in known]
        found.append(_factor(f"words: {kind}", TEXT_DOMINANT, [None] * len(known), said))
    return tuple(found)


def _factor(name: str, modality: int, images: list[str | None], texts: list[str | None]) -> Factor:
    places = {value: place for place, value in enumerate(sorted({*images, *texts} - {None}, key=str))}
    return Factor(name, modality, *(np.array([places.get(value, -1) for value in side]) for side in (images, texts)))


class ShareSums:
    """Sums of codes by the values of factors, added block by block: no memory grows with the number of pairs."""

    def __init__(self, factors: tuple[Factor, ...], features: int) -> None:
        self.factors, self.pairs = factors, 0
        self._sides = [[_Sums(side, features) for side in (each.images, each.texts)] for each in factors]
        self._active = np.zeros(features, np.int64)

    def add(self, images: Codes, texts: Codes, image: Int64[np.ndarray, " pair"]) -> None:
        """Add pairs: the codes of each side, and the image index of each pair."""
        self.pairs += images.shape[0]
        for sides in self._sides:
            for sums, codes in zip(sides, (images, texts), strict=True):
                sums.add(codes, image)
        self._active += np.bincount((images + texts).indices, minlength=len(self._active))

    def truth(self, least_share: float = LEAST_SHARE, least_pairs: int = LEAST_PAIRS) -> FeatureTruth:
        """What the pairs so far say of each feature."""
        image_shares, text_shares = (
            np.stack([sides[side].shares() for sides in self._sides], axis=1) for side in (0, 1)
        )
        largest = np.maximum(image_shares, text_shares)
        known = (largest.max(axis=1) >= least_share) & (self._active >= least_pairs)
        factor = np.where(known, largest.argmax(axis=1), -1)
        modalities = np.array([each.modality for each in self.factors], np.int8)
        return FeatureTruth(
            tuple(each.name for each in self.factors),
            factor,
            np.where(known, modalities[factor], np.int8(UNDECIDED)).astype(np.int8),
            image_shares,
            text_shares,
            self._active.copy(),
        )


class _Sums:
    """The sums of one side for one factor, over vectors for which the factor has a value."""

    def __init__(self, values: Int64[np.ndarray, " image"], features: int) -> None:
        self._values, self._squares = values, np.zeros(features)
        self._sums, self._counts = np.zeros((values.max() + 1, features)), np.zeros(values.max() + 1)

    def add(self, codes: Codes, image: Int64[np.ndarray, " pair"]) -> None:
        values = self._values[image]
        rows = np.flatnonzero(values >= 0)
        if not len(rows):
            return
        codes, values = codes[rows].astype(np.float64), values[rows]
        one_hot = csr_array((np.ones(len(rows)), values, np.arange(len(rows) + 1)), (len(rows), len(self._counts)))
        self._sums += (one_hot.T @ codes).toarray()
        self._counts += np.bincount(values, minlength=len(self._counts))
        self._squares += np.bincount(codes.indices, codes.data**2, minlength=len(self._squares))

    def shares(self) -> Float64[np.ndarray, " feature"]:
        """η² corrected for chance, as the adjusted R² of a regression on the values is; 0 at least."""
        present = self._counts > 0
        count, values = self._counts.sum(), int(present.sum())
        if values < 2 or count <= values:
            return np.zeros(len(self._squares))
        offset = self._sums.sum(axis=0) ** 2 / count
        between = (self._sums[present] ** 2 / self._counts[present, None]).sum(axis=0) - offset
        total = self._squares - offset
        # Codes that are equal everywhere have no variance but rounding.
        varies = total > 1e-9 * self._squares
        share = np.divide(between, total, out=np.zeros_like(total), where=varies)
        return np.asarray(np.where(varies, 1 - (1 - share) * (count - 1) / (count - values), 0).clip(0))
