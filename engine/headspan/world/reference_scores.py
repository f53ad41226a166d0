"""Measured scores of the reference model and of its two controls, from `reference/scores.json`.

`python -m tools.score_reference` writes the file. The weights of the contrastive-only model are not in the package, so
the demo takes its scores from there.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from headspan.world.checks import GroundTruth
from headspan.world.checks_json import ground_truth_from_json

TRAINED, CONTRASTIVE_ONLY, RANDOM = "trained", "contrastive only", "random weights"


def reference_scores() -> dict[str, GroundTruth]:
    """The scores of `trained`, `contrastive only` and `random weights` over the demo's scenes."""
    stored: dict[str, Any] = json.loads((files("headspan.world") / "reference" / "scores.json").read_bytes())
    return {name: ground_truth_from_json(model["scores"]) for name, model in stored["models"].items()}
