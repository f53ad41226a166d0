"""Results of uses of features made by hand: numbers that a test knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import headspan as hs
from headspan.features.uses.attack_result import AttackRow, AttackStudy
from headspan.features.uses.bias_result import BiasProbe, BiasRow
from headspan.features.uses.edit_result import EditedImage, EditRow, EditStudy, FactorShares
from headspan.prune.studies.statistics import Interval

SHARED: dict[str, Any] = {"scores_run": "hand", "residual": "kept", "tolerance": 0.02, "draws": 2, "seed": 3}
NAN = float("nan")


def hand_made_bias() -> BiasProbe:
    changes = Interval(-0.25, -0.5, 0.125), Interval(-0.1, -0.1, -0.1)
    rows = (
        BiasRow(
            "probe", "class", "cross-modal", 3, 1, 0.5, 0.25, {"accuracy": 0.5, "red, circle": NAN}, changes[0], 0.5
        ),
        BiasRow("probe", "random", "cross-modal", 3, 2, 0.5, 0.3, {"accuracy": 0.65, "red, circle": 1.0}, changes[1]),
    )
    return BiasProbe("colour", "accuracy", 10, 11, 100, rows, **SHARED, remarks=("a <b> remark",))


def hand_made_attack() -> AttackStudy:
    shares: dict[str, Any] = {"clean": 0.9, "noise": 0.8, "transferred": 0.5, "adaptive": Interval(0.1, 0.0, 0.2)}
    row = AttackRow("untargeted", "plain", "plain", 0, 1, 1.0, 8 / 255, **shares, by_gradient={"exact": 0.25})
    return AttackStudy("shape", 12, 5, 0.3, 1, 100, (row,), **SHARED)


def hand_made_edits() -> EditStudy:
    row = EditRow("random", "cross-modal", 3, 2, "colour", 9, 0.5, 0.25, 0.125, 0.375, 0.3, 0.2, 0.9, NAN)
    return EditStudy(9, 5, "captions", (row,), **SHARED)


def hand_made_edit(store: hs.Store) -> EditedImage:
    random = np.random.default_rng(4)

    def one(features: str, images: list[int]) -> EditedImage:
        return EditedImage(
            *("a", "a <b>text</b>", features, random.standard_normal(store.joint).astype(np.float32), 0.5, 0.75),
            np.array(images),
            random.random(3).astype(np.float32),
            tuple(store.samples(images, ["key"])["key"].to_pylist()),
            {"colour": FactorShares(0.5, None, 0.25, None)},
            **SHARED,
        )

    control = one("random, as cross-modal", [4, 0, 2])
    return replace(one("cross-modal", [3, 1, 0]), controls=(control,), remarks=("one remark",))
