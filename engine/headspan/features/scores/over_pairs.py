"""Score the features of a learner over the pairs of a store, in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.features.learners.learner import Learner
from headspan.features.pairs.block import Block
from headspan.features.pairs.pairs import Pairs
from headspan.features.scores.encoder import Encoder
from headspan.features.scores.judge import OWN, judge_of
from headspan.features.scores.result import FeatureScores
from headspan.features.scores.running import RunningScores
from headspan.store.reader import Store

# Pairs of a block. Of 1,024 to 16,384, larger ones add to fewer sums, and smaller ones need less memory.
_BLOCK = 4096


def score_pairs(
    pairs: Pairs,
    learner: Learner,
    *,
    run: str,
    dictionary: str = "",
    dictionary_sha256: str = "",
    judge: Float[np.ndarray, "image width"] | Store | str | Path | None = None,
    seed: int = 0,
    block: int = _BLOCK,
    on_progress: Listener = ignore,
) -> FeatureScores:
    """Score all features of `learner` over all pairs of one store.

    Pairs are read in the random order of `seed`, which also draws one caption of each image, and decides which image
    gets which caption in the shuffled null. `judge` is as in `judge_of`. Raises SettingsError for pairs of several
    stores, of another width, or of fewer than two images, and the errors of `judge_of`.
    """
    if len(pairs.stores) > 1:
        raise SettingsError(f"scores are of one store, but {len(pairs.stores)} were given; score them one by one")
    if len(pairs) < 2:
        raise SettingsError(f"scores need at least 2 pairs, but there {_is(len(pairs))}; choose more images")
    features, width = _shape(learner)
    if width != pairs.space.width:
        raise SettingsError(
            f"the dictionary is of vectors of {width} numbers, but {pairs.space} was given; choose the space that it "
            "was trained in"
        )
    judged = judge_of(pairs, judge, on_progress)
    running = RunningScores(features, width, judged.width, pairs.with_texts, judged.name == OWN)
    was_training = learner.training
    learner.eval()
    try:
        encoder = Encoder(learner, features)
        for some in pairs.blocks(block, seed):
            add_block(running, encoder, some, judged.images(some), judged.texts(some))
            on_progress(Progress("scoring", running.pairs, len(pairs)))
        with torch.inference_mode():
            directions = learner.directions()
    finally:
        learner.train(was_training)
    return running.finished(
        judged.of,
        judged.of_captions if pairs.with_texts and judged.has_captions else None,
        run=run,
        dictionary=dictionary,
        dictionary_sha256=dictionary_sha256,
        learner=learner.kind,
        directions=None if directions is None else directions.float().cpu().numpy(),
        space=pairs.space,
        judge=judged.name,
        seed=seed,
    )


def add_block(
    running: RunningScores,
    encoder: Encoder,
    block: Block,
    judged_images: Float32[np.ndarray, "pair width"],
    judged_texts: Float32[np.ndarray, "pair width"] | None,
) -> None:
    """Compute the codes of a block and what they decode to, and add them with the judge's vectors."""
    sides = [block.images] if block.texts is None else [block.images, block.texts]
    codes = [encoder.codes(vectors, side) for side, vectors in enumerate(sides)]
    decoded = [encoder.decoded(each, side) for side, each in enumerate(codes)]
    running.add(block, codes, decoded, [judged_images, judged_texts])


def _shape(learner: Learner) -> tuple[int, int]:
    """The numbers of features and of a vector's numbers."""
    settings = learner.settings
    return int(settings["features"]), int(settings["width"])


def _is(count: int) -> str:
    return f"{'is' if count == 1 else 'are'} {counted(count, 'pair')}"
