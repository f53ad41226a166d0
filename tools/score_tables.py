"""Markdown tables of ground-truth scores, one column per model, for the scripts that write pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean

from headspan.world.checks import FACTOR_OF, ContrastCheck, GroundTruth
from headspan.world.map_checks import DESCRIPTIONS

# An ablation mainly costs the concept's own factor if that loses ten points, and half as much again as any other.
_OWN_LOSS, _OWN_RATIO = 0.1, 1.5

Row = tuple[str, ...]


def card_table(scores: Mapping[str, GroundTruth]) -> str:
    """Every score of every model, as a Markdown table."""
    return _table(scores, [*_zero_shot_rows(scores), *_head_rows(scores), *_neighbour_rows(scores), *_map_rows(scores),
                           *_value_map_rows(scores), *_contrast_rows(scores), *_ablation_rows(scores),
                           *_ranking_rows(scores)])  # fmt: skip


def summary_table(scores: Mapping[str, GroundTruth]) -> str:
    """One row for each question, as a Markdown table."""
    models = list(scores.values())
    first = models[0]
    zero_shot = [mean(each.share for each in model.zero_shot.values()) for model in models]
    through_heads = [mean(each.through_heads for each in model.neighbours) for model in models]
    through_all = [mean(each.through_all for each in model.neighbours) for model in models]
    rows = [
        ("zero-shot accuracy, mean of nine factors", *map(_percent, zero_shot),
         _percent(mean(each.chance for each in first.zero_shot.values()))),
        *_head_rows(scores)[-2:],
        ("neighbours with the same value, through a concept’s heads", *map(_percent, through_heads),
         _percent(mean(each.chance for each in first.neighbours))),
        ("the same through all heads", *map(_percent, through_all),
         _percent(mean(each.chance for each in first.neighbours))),
        *_map_rows(scores),
        ("pixel AUC of maps of one value, through its concept’s heads",
         *(_mean_percent(each.auc.heads for each in model.text_maps) for model in models),
         _mean_percent(each.auc.chance for each in first.text_maps)),
        ("contrasts of two described objects with the right signs, all heads",
         *(_percent(_descriptions(model).right.every) for model in models),
         _percent(_descriptions(first).right.chance)),
        ("heads that hurt a factor, ranked above others by head pursuit",
         *(_mean_percent(each.auc["head pursuit"] for each in model.rankings) for model in models), _percent(0.5)),
        ("concepts whose ablation mainly costs their own factor", *(str(_own_losses(model)) for model in models), ""),
    ]  # fmt: skip
    return _table(scores, rows)


def _own_losses(model: GroundTruth) -> int:
    """Of how many concepts ablation costs the own factor ten points, and half as much again as any other factor."""
    losses = [each.own_and_other_loss(model.zero_shot) for each in model.ablations]
    return sum(own > _OWN_LOSS and own > _OWN_RATIO * other for own, other in losses)


def _table(scores: Mapping[str, GroundTruth], rows: Sequence[Row]) -> str:
    lines = [("", *scores, "chance"), ("---",) * (len(scores) + 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _zero_shot_rows(scores: Mapping[str, GroundTruth]) -> Iterator[Row]:
    models = list(scores.values())
    for factor, first in models[0].zero_shot.items():
        shares = (_percent(model.zero_shot[factor].share) for model in models)
        yield f"zero-shot, {factor.replace('_', ' ')}", *shares, _percent(first.chance)


def _head_rows(scores: Mapping[str, GroundTruth]) -> list[Row]:
    models = list(scores.values())
    rows: list[Row] = [
        (f"heads with CCS 5, {concept}", *(str(model.high_heads.get(concept, 0)) for model in models), "")
        for concept in FACTOR_OF
        if any(model.high_heads.get(concept) for model in models)
    ]
    rows.append(("heads with CCS 5, all concepts", *(str(sum(model.high_heads.values())) for model in models), ""))
    concepts = (str(sum(count > 0 for count in model.high_heads.values())) for model in models)
    rows.append(("concepts that have such heads", *concepts, ""))
    return rows


def _neighbour_rows(scores: Mapping[str, GroundTruth]) -> Iterator[Row]:
    found = [{each.concept: each for each in model.neighbours} for model in scores.values()]
    for concept in FACTOR_OF:
        if all(concept not in checks for checks in found):
            continue
        cells = (
            f"{_percent(checks[concept].through_heads)} ({_percent(checks[concept].through_all)})"
            if concept in checks
            else "–"
            for checks in found
        )
        chance = next(checks[concept].chance for checks in found if concept in checks)
        yield f"neighbours, {concept}", *cells, _percent(chance)


def _map_rows(scores: Mapping[str, GroundTruth]) -> list[Row]:
    models = list(scores.values())
    area = _percent(models[0].maps.area)
    return [
        ("maps, positive mass inside the objects", *(_percent(model.maps.mass_inside) for model in models), area),
        ("maps, average precision", *(_percent(model.maps.average_precision) for model in models), area),
    ]


def _value_map_rows(scores: Mapping[str, GroundTruth]) -> Iterator[Row]:
    found = [{each.concept: each for each in model.text_maps} for model in scores.values()]
    for concept in FACTOR_OF:
        checks = [each.get(concept) for each in found]
        chance = next((each.auc.chance for each in checks if each), None)
        if chance is not None:
            cells = (f"{_optional(each.auc.heads)} ({_percent(each.auc.every)})" if each else "–" for each in checks)
            yield f"pixel AUC of maps of one value, {concept}", *cells, _percent(chance)


def _contrast_rows(scores: Mapping[str, GroundTruth]) -> Iterator[Row]:
    found = [{each.concept: each for each in model.contrasts} for model in scores.values()]
    for concept in (*FACTOR_OF, DESCRIPTIONS):
        checks = [each.get(concept) for each in found]
        chance = next((each.right.chance for each in checks if each), None)
        if chance is not None:
            cells = (
                f"{_optional(each.right.heads)} ({_percent(each.right.every)})" if each else "–" for each in checks
            )
            yield f"contrasts with the right signs, {concept}", *cells, _percent(chance)


def _ranking_rows(scores: Mapping[str, GroundTruth]) -> Iterator[Row]:
    models = list(scores.values())
    hurting = (str(sum(len(each.hurting) for each in model.rankings)) for model in models)
    yield "heads that hurt a factor, sum over nine factors", *hurting, ""
    for name in models[0].rankings[0].auc:
        cells = (_mean_percent(each.auc[name] for each in model.rankings) for model in models)
        yield f"heads that hurt, ranked above others by {name}", *cells, _percent(0.5)


def _descriptions(model: GroundTruth) -> ContrastCheck:
    return next(each for each in model.contrasts if each.concept == DESCRIPTIONS)


def _ablation_rows(scores: Mapping[str, GroundTruth]) -> Iterator[Row]:
    found = [{each.concept: each for each in model.ablations} for model in scores.values()]
    for concept in FACTOR_OF:
        if all(concept not in ablations for ablations in found):
            continue
        cells = []
        for model, ablations in zip(scores.values(), found, strict=True):
            if concept in ablations:
                own, other = ablations[concept].own_and_other_loss(model.zero_shot)
                cells.append(f"{_points(own)} ({_points(other)})")
            else:
                cells.append("–")
        yield f"ablation, {concept}", *cells, ""


def _mean_percent(shares: Iterable[float | None]) -> str:
    """The mean of the shares that are defined."""
    known = [share for share in shares if share is not None]
    return _percent(mean(known)) if known else "–"


def _optional(share: float | None) -> str:
    return "–" if share is None else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    # Adding zero removes the sign of a rounded zero.
    return f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")
