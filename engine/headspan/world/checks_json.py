"""Write the results of a ground-truth check as JSON values, and read those of this and of earlier versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from headspan.store.head_space import Head
from headspan.tasks.zero_shot import Accuracy
from headspan.world.checks import (
    FACTOR_OF,
    Ablation,
    ContrastCheck,
    GroundTruth,
    MapCheck,
    NeighbourCheck,
    RankingCheck,
    TextMapCheck,
)
from headspan.world.compared import compared_from_json, draws_from_json


def ground_truth_as_json(truth: GroundTruth) -> dict[str, Any]:
    """The result as JSON values, without its lineage and what is computed on reading."""
    found = asdict(truth)
    del found["lineage"], found["high_by_chance"]
    controls = {name: ground_truth_as_json(each) for name, each in truth.controls.items()}
    return {**found, "controls": controls}


def ground_truth_from_json(stored: Mapping[str, Any]) -> GroundTruth:
    """The result that `ground_truth_as_json` turned into `stored`; results of earlier versions lack some fields.

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
                _number(each.get("through_embedding")),
                draws_from_json(each.get("through_others")),
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
        text_maps=tuple(
            TextMapCheck(
                str(each["concept"]),
                _heads(each["heads"]),
                int(each["images"]),
                float(each["area"]),
                compared_from_json(each["auc"]),
                compared_from_json(each["overlap"]),
                float(each["exact_auc"]),
                float(each["exact_overlap"]),
            )
            for each in stored.get("text_maps", ())
        ),
        contrasts=tuple(
            ContrastCheck(
                str(each["concept"]),
                _heads(each["heads"]),
                int(each["scenes"]),
                compared_from_json(each["right"]),
                compared_from_json(each["ordered"]),
            )
            for each in stored.get("contrasts", ())
        ),
        rankings=tuple(
            RankingCheck(
                str(each["factor"]),
                int(each["heads"]),
                _heads(each["hurting"]),
                {str(name): _number(score) for name, score in each["auc"].items()},
                {str(name): _number(score) for name, score in each["correlation"].items()},
            )
            for each in stored.get("rankings", ())
        ),
        about=str(stored.get("about", "")),
        controls={str(name): ground_truth_from_json(each) for name, each in stored.get("controls", {}).items()},
    )
    if any(control.zero_shot.keys() != found.zero_shot.keys() for control in found.controls.values()):
        raise ValueError("a control has other factors")
    names = [names for each in found.rankings for names in (each.auc.keys(), each.correlation.keys())]
    if any(each != names[0] for each in names):
        raise ValueError("rankings of two factors have other names")
    scored = {FACTOR_OF[each.concept] for each in found.ablations if each.concept in FACTOR_OF}
    if not scored <= found.zero_shot.keys():
        raise ValueError("the factor of an ablated concept has no accuracy")
    return found


def _heads(stored: Iterable[Iterable[Any]]) -> tuple[Head, ...]:
    return tuple((int(layer), int(head)) for layer, head in stored)


def _number(stored: Any) -> float | None:
    return None if stored is None else float(stored)
