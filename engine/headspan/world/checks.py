"""The results of a ground-truth check, and how they are read back from JSON.

Shares are fractions from 0 to 1. `ground_truth_as_json` gives the JSON form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from headspan.prune.zero_shot import Accuracy
from headspan.store.head_space import Head
from headspan.store.lineage import Lineage

# The concepts of the world's text pool, and the factor that each is scored by.
FACTOR_OF = {
    "colours": "colour",
    "shapes": "shape",
    "textures": "texture",
    "sizes": "size",
    "counting": "count",
    "positions": "position",
    "styles": "style",
    "backgrounds": "background_colour",
}


@dataclass(frozen=True, slots=True)
class NeighbourCheck:
    """Precision@10: of an image's ten nearest images, the share with its value of a concept's factor."""

    concept: str
    # The heads labelled with the concept.
    heads: tuple[Head, ...]
    through_heads: float
    # The same score through all heads of the model.
    through_all: float
    # The probability that another image, drawn at random, has the query's value.
    chance: float
    # Number of images that have a value of the factor; all are queries and candidates.
    queries: int


@dataclass(frozen=True, slots=True)
class MapCheck:
    """Maps of a text such as "a red ring" over images of red rings; means over images."""

    images: int
    # Share of the map's positive mass inside the objects' mask.
    mass_inside: float
    # Share of the image that the mask covers, which is chance for both scores.
    area: float
    average_precision: float


@dataclass(frozen=True, slots=True)
class Ablation:
    """Zero-shot accuracy of every factor with the heads of one concept replaced by their means."""

    concept: str
    heads: tuple[Head, ...]
    accuracies: dict[str, float]

    def losses(self, zero_shot: Mapping[str, Accuracy]) -> dict[str, float]:
        """Accuracy lost of every factor: that of the whole model minus that without the heads."""
        return {factor: zero_shot[factor].share - share for factor, share in self.accuracies.items()}

    def own_and_other_loss(self, zero_shot: Mapping[str, Accuracy]) -> tuple[float, float]:
        """The loss of the concept's own factor, and the largest loss among the factors of other concepts (NaN if none).

        Texts about backgrounds name their kind or their colour. The kind is therefore left out of the other factors of
        `backgrounds`, which is scored by the colour.
        """
        losses = self.losses(zero_shot)
        own = losses.pop(FACTOR_OF[self.concept])
        if self.concept == "backgrounds":
            losses.pop("background", None)
        return own, max(losses.values(), default=math.nan)


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What the analyses of one CCS run found, scored against the known scenes."""

    run: str
    # Every factor's zero-shot accuracy.
    zero_shot: dict[str, Accuracy]
    # Number of heads with a CCS of 5, by the concept that they are labelled with.
    high_heads: dict[str, int]
    neighbours: tuple[NeighbourCheck, ...]
    maps: MapCheck
    ablations: tuple[Ablation, ...]
    # The model and its weights, in words.
    about: str = ""
    # The same scores of other models over the same scenes, by name.
    controls: dict[str, GroundTruth] = field(default_factory=dict)
    # The expected number of heads with a CCS of 5 by chance, by concept; empty if it is not known. It is computed on
    # reading and not stored.
    high_by_chance: dict[str, float] = field(default_factory=dict, compare=False)
    # Identifies the result, and says what it was made from.
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def older(self) -> str | None:
        """The run that the result was made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else None


def ground_truth_as_json(truth: GroundTruth) -> dict[str, Any]:
    """The result as JSON values, without its lineage and what is computed on reading."""
    found = asdict(truth)
    del found["lineage"], found["high_by_chance"]
    controls = {name: ground_truth_as_json(each) for name, each in truth.controls.items()}
    return {**found, "controls": controls}


def ground_truth_from_json(stored: Mapping[str, Any]) -> GroundTruth:
    """The result that `ground_truth_as_json` turned into `stored`; results of earlier versions have no controls.

    Raises TypeError, ValueError, LookupError or AttributeError if `stored` is anything else.
    """
    maps = stored["maps"]
    found = GroundTruth(
        run=str(stored["run"]),
        zero_shot={
            factor: Accuracy(float(each["share"]), float(each["chance"]), int(each["images"]))
            for factor, each in stored["zero_shot"].items()
        },
        high_heads={concept: int(count) for concept, count in stored["high_heads"].items()},
        neighbours=tuple(
            NeighbourCheck(
                str(each["concept"]),
                _heads(each["heads"]),
                float(each["through_heads"]),
                float(each["through_all"]),
                float(each["chance"]),
                int(each["queries"]),
            )
            for each in stored["neighbours"]
        ),
        maps=MapCheck(
            int(maps["images"]), float(maps["mass_inside"]), float(maps["area"]), float(maps["average_precision"])
        ),
        ablations=tuple(
            Ablation(
                str(each["concept"]),
                _heads(each["heads"]),
                {factor: float(each["accuracies"][factor]) for factor in stored["zero_shot"]},
            )
            for each in stored["ablations"]
        ),
        about=str(stored.get("about", "")),
        controls={str(name): ground_truth_from_json(each) for name, each in stored.get("controls", {}).items()},
    )
    if any(control.zero_shot.keys() != found.zero_shot.keys() for control in found.controls.values()):
        raise ValueError("a control has other factors")
    scored = {FACTOR_OF[each.concept] for each in found.ablations if each.concept in FACTOR_OF}
    if not scored <= found.zero_shot.keys():
        raise ValueError("the factor of an ablated concept has no accuracy")
    return found


def _heads(stored: Iterable[Iterable[Any]]) -> tuple[Head, ...]:
    return tuple((int(layer), int(head)) for layer, head in stored)
