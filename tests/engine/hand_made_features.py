"""Scores of features made by hand: numbers whose classes, names and top images a test knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from headspan.features.pairs.space import EMBEDDING, Space
from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED, FeatureScores


def hand_made_scores(directions: np.ndarray, images: int, top: int = 7, seed: int = 0, **changed: Any) -> FeatureScores:
    """Scores of features with these directions over `images` images.

    Feature number 4 i + class belongs to that class by spread and by intervals, the classes being TEXT_DOMINANT,
    CROSS_MODAL, IMAGE_DOMINANT and a dead feature, which is UNDECIDED and has NaN for its scores.
    """
    features, width = directions.shape
    rng = np.random.default_rng(seed)
    classes = np.array([TEXT_DOMINANT, CROSS_MODAL, IMAGE_DOMINANT, UNDECIDED], np.int8)[np.arange(features) % 4]
    dead = classes == UNDECIDED
    mds = np.where(dead, np.nan, np.array([0.5, 0.05, 0.5, 0.95])[classes + 1] + rng.uniform(-0.04, 0.04, features))
    interval = mds[:, None] + np.array([-0.01, 0.01])
    active = np.where(dead, 0, rng.integers(1, images, features))
    codes = np.sort(rng.uniform(0.1, 1, (features, top)).astype(np.float32))[:, ::-1] * ~dead[:, None]
    chosen = np.array([rng.permutation(images)[:top] for _ in range(features)])
    chosen[dead] = -1
    means = np.where(dead, 0, rng.uniform(0.001, 0.1, features))
    settings = {
        "run": "hand",
        "dictionary": "dictionaries/hand",
        "dictionary_sha256": "0" * 64,
        "learner": "topk",
        "pairs": images,
        "image_active": active,
        "text_active": active,
        "active": active,
        "image_mean": means,
        "text_mean": means,
        "image_square": means**2,
        "text_square": means**2,
        "mds": mds,
        "mds_interval": interval,
        "energy": mds,
        "energy_interval": interval,
        "shuffled_mds": np.where(dead, np.nan, 0.5 + rng.uniform(-0.1, 0.1, features)),
        "shuffled_energy": np.where(dead, np.nan, 0.5),
        "class_by_spread": classes,
        "class_by_interval": classes,
        "directions": directions.astype(np.float32),
        "top_images": chosen,
        "top_image_codes": codes,
        "top_captions": chosen[:, ::-1].copy(),
        "top_caption_codes": codes,
        "monosemanticity": np.where(dead, np.nan, 0.3),
        "cross_monosemanticity": np.where(dead, np.nan, 0.2),
        "similarity_sizes": (5, 10),
        "similarity": np.where(dead[:, None], np.nan, rng.uniform(0, 1, (features, 2))),
        "quality": {"r2": 0.75, "win_rate_p": float("nan")},
        "space": Space(EMBEDDING, width),
    }
    return FeatureScores(**{**settings, **changed})
