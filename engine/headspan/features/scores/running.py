"""All scores of a dictionary as sums over blocks of pairs, in memory that does not depend on the number of pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.sparse import csr_array

from headspan.features.pairs.block import Block
from headspan.features.pairs.space import Space
from headspan.features.pairs.units import units
from headspan.features.scores.classes import by_interval, by_spread, spread
from headspan.features.scores.codes import Codes
from headspan.features.scores.dominance import Dominance, DominanceSums
from headspan.features.scores.groups import GROUPS, groups_of, image_hash
from headspan.features.scores.monosemanticity import SIZES, Reservoir, SideSums, top_similarity, win_rate
from headspan.features.scores.reconstruction import ReconstructionSums
from headspan.features.scores.result import FeatureScores
from headspan.features.scores.shuffled import ShuffledPairs
from headspan.features.scores.tops import RunningTop

# Features whose top samples are read at once.
_READ_AT_ONCE = 256
# Seeds of hashes that must not agree: groups of the bootstrap, and the reservoir.
_GROUP_SEED, _RESERVOIR_SEED = 0, 1

# From numbers of images, or of captions, to their unit vectors.
Vectors = Callable[[Int64[np.ndarray, " some"]], Float32[np.ndarray, "some width"]]


class RunningScores:
    """Sums over pairs. `width` is that of the space, and `judge_width` that of the vectors samples are judged by."""

    def __init__(self, features: int, width: int, judge_width: int, with_texts: bool, own_judge: bool) -> None:
        self.features, self.with_texts = features, with_texts
        self._own = own_judge
        self._dominance, self._null = DominanceSums(features, GROUPS), DominanceSums(features, 1)
        self._shuffled = ShuffledPairs()
        self._sides = [SideSums(features, judge_width) for _ in range(1 + with_texts)]
        # Vectors of the space weighted by codes; the judge's are the same where it judges itself.
        self._weighted = self._sides if own_judge else [SideSums(features, width) for _ in range(1 + with_texts)]
        self._quality = [ReconstructionSums(width) for _ in range(1 + with_texts)]
        self._tops = [RunningTop(features, SIZES[-1]) for _ in range(1 + with_texts)]
        self._reservoir = Reservoir()
        self._judges_texts = True
        self.pairs = 0

    def add(
        self,
        block: Block,
        codes: list[Codes],
        decoded: list[Float32[np.ndarray, "pair width"] | None],
        judged: list[Float32[np.ndarray, "pair width"] | None],
    ) -> None:
        """Add a block with its codes, what these decode to, and the judge's vectors, each of images and then texts."""
        self.pairs += len(block.image)
        group = groups_of(block.store, block.image, _GROUP_SEED)
        images, texts = codes[0], codes[1] if self.with_texts else csr_array(codes[0].shape, dtype=np.float32)
        self._dominance.add(images, texts, group)
        if self.with_texts:
            for shuffled in self._shuffled.add(images, texts):
                self._null.add(*shuffled)
        numbers = [block.image, block.caption]
        for side, vectors in enumerate([block.images, block.texts][: 1 + self.with_texts]):
            assert vectors is not None, "blocks of pairs with texts"
            self._quality[side].add(codes[side], vectors, decoded[side])
            own = judged[side]
            if own is not None:
                self._sides[side].add(codes[side], own)
            else:
                self._judges_texts = False
            if not self._own:
                self._weighted[side].add(codes[side], vectors)
            self._tops[side].add(codes[side], numbers[side], block.image)
        assert judged[0] is not None, "every judge has vectors of images"
        self._reservoir.add(image_hash(block.store, block.image, _RESERVOIR_SEED), judged[0])

    def directions(self) -> Float32[np.ndarray, "feature width"]:
        """The mean of the vectors of both sides weighted by a feature's codes, of unit length; 0 if never active."""
        total = np.sum([side.weighted for side in self._weighted], axis=0)
        return units(total)

    def finished(
        self,
        images: Vectors,
        captions: Vectors | None,
        *,
        run: str,
        dictionary: str,
        dictionary_sha256: str,
        learner: str,
        directions: Float32[np.ndarray, "feature width"] | None,
        space: Space | None,
        judge: str,
        seed: int,
    ) -> FeatureScores:
        """The scores. `images` and `captions` give the judge's vectors of the samples with the largest codes."""
        if self.with_texts:
            for shuffled in self._shuffled.rest():
                self._null.add(*shuffled)
        found, null = self._dominance.scores(), self._null.scores()
        if not self.with_texts:
            found, null = _images_alone(found), _images_alone(null)
        weighted, image_sums, count = self._weighted, self._weighted[0], max(1, self.pairs)
        text_sums = weighted[1] if self.with_texts else SideSums(self.features, 0)
        judged = [side.scaled() for side in self._sides]
        top_images, image_codes, _ = self._tops[0].tables()
        nothing = np.full((self.features, SIZES[-1]), -1, np.int64)
        top_numbers, caption_codes, top_captions = (
            self._tops[1].tables() if self.with_texts else (nothing, np.zeros_like(image_codes), nothing)
        )
        similarity = _similarity(top_images, images)
        return FeatureScores(
            run=run,
            dictionary=dictionary,
            dictionary_sha256=dictionary_sha256,
            learner=learner,
            pairs=self.pairs,
            image_active=found.image_active,
            text_active=found.text_active,
            active=found.active,
            image_mean=image_sums.total / count,
            text_mean=text_sums.total / count,
            image_square=image_sums.square / count,
            text_square=text_sums.square / count,
            mds=found.mds,
            mds_interval=found.mds_interval,
            energy=found.energy,
            energy_interval=found.energy_interval,
            shuffled_mds=null.mds,
            shuffled_energy=null.energy,
            shuffled_active=null.active,
            class_by_spread=by_spread(found.mds, found.active if self.with_texts else 0 * found.active),
            class_by_interval=by_interval(found.mds_interval, found.active),
            directions=self.directions() if directions is None else directions,
            top_images=top_images,
            top_image_codes=image_codes,
            top_captions=top_captions,
            top_caption_codes=caption_codes,
            top_caption_numbers=top_numbers,
            monosemanticity=judged[0].monosemanticity(),
            cross_monosemanticity=judged[0].across(judged[1])
            if self.with_texts and self._judges_texts
            else np.full(self.features, np.nan),
            similarity_sizes=SIZES,
            similarity=similarity,
            caption_similarity=None if captions is None else _similarity(top_numbers, captions),
            quality=self._figures(found, similarity),
            space=space,
            judge=judge,
            seed=seed,
        )

    def _figures(self, found: Dominance, similarity: Float64[np.ndarray, "feature size"]) -> dict[str, float]:
        """Scores of the dictionary as a whole."""
        figures: dict[str, float] = {}
        for name, sums in zip(("image", "text"), self._quality, strict=False):
            figures |= sums.figures(name)
        figures["dead"] = float((found.active == 0).mean())
        figures["image_dead"] = float((found.image_active == 0).mean())
        if self.with_texts:
            figures["text_dead"] = float((found.text_active == 0).mean())
            figures["mds_low"], figures["mds_high"] = spread(found.mds, found.active)
        for place, size in enumerate(SIZES):
            won = win_rate(similarity[:, place], self._reservoir.vectors, size)
            figures[f"win_rate_{size}"], figures[f"win_rate_{size}_p"] = won.share, won.p
        return figures


def _images_alone(found: Dominance) -> Dominance:
    """Scores in a space without texts, where no feature can be compared with them."""
    none, ends = np.full(len(found.mds), np.nan), np.full((len(found.mds), 2), np.nan)
    counts = found.image_active, found.text_active, found.active, found.both_active
    return Dominance(found.pairs, *counts, none, ends, none, ends)


def _similarity(numbers: Int64[np.ndarray, "feature top"], vectors: Vectors) -> Float64[np.ndarray, "feature size"]:
    """EmbSim of top samples, whose vectors are read for some features at a time."""
    found = np.full((len(numbers), len(SIZES)), np.nan)
    for first in range(0, len(numbers), _READ_AT_ONCE):
        some = numbers[first : first + _READ_AT_ONCE]
        needed = np.unique(some[some >= 0])
        if len(needed):
            places = np.where(some >= 0, np.searchsorted(needed, some), -1)
            found[first : first + _READ_AT_ONCE] = top_similarity(places, vectors(needed), SIZES)
    return found
