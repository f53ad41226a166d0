"""The report's opening for a store of the image world: what its analyses say, beside what is true.

Every number stands beside what it must be held against: chance, all heads, the mask's area, random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from headspan.analyse.ground_truth import FACTOR_OF, GroundTruth

Row = Sequence[str]


def render_truth(truth: GroundTruth) -> str:
    """The section; all of its words are headspan's own, so nothing needs escaping."""
    images = max(each.images for each in truth.zero_shot.values())
    return (
        '<section class="truth"><h2>Held against the truth</h2><p class="note">The images are drawn scenes whose '
        f"every factor is known: {images:,} of them, with objects whose colour, shape and texture the model never saw "
        f"together in training.</p><div>{_zero_shot(truth)}{_high_heads(truth)}{_neighbours(truth)}{_maps(truth)}"
        f"</div>{_ablations(truth)}</section>"
    )


def _zero_shot(truth: GroundTruth) -> str:
    rows = (
        (
            _said(factor),
            f'<span class="against"><i style="width:{100 * each.share:.1f}%"></i>'
            f'<b style="left:{100 * each.chance:.1f}%"></b></span>',
            percent(each.share),
            percent(each.chance),
            f"{each.images:,}",
        )
        for factor, each in truth.zero_shot.items()
    )
    return _block(
        "What the model can name",
        "Zero-shot: the prompts nearest to the image’s embedding. Chance, the line, is naming the commonest value.",
        ("factor", "", "right", "chance", "images"),
        rows,
    )


def _high_heads(truth: GroundTruth) -> str:
    counts = (truth.high_heads, truth.high_heads_at_random)
    rows = [
        (concept, *("–" if heads is None else f"{heads.get(concept, 0)}" for heads in counts))
        for concept in FACTOR_OF
        if any(concept in heads for heads in counts if heads is not None)
    ]
    rows.append(("<b>in all</b>", *("–" if heads is None else f"{sum(heads.values())}" for heads in counts)))
    return _block(
        "Concepts with heads of their own",
        "Heads whose first five texts all tell one concept (CCS 5), and as many with random weights.",
        ("concept", "heads", "at random"),
        rows,
    )


def _neighbours(truth: GroundTruth) -> str:
    rows = (
        (
            each.concept,
            f"{len(each.heads)}",
            percent(each.through_heads),
            percent(each.through_all),
            percent(each.chance),
        )
        for each in truth.neighbours
    )
    return _block(
        "Neighbours through the heads of a concept",
        "Of an image’s nearest ten, the share with its value of the concept: through the heads labelled with it, "
        "through all heads, and at random.",
        ("concept", "heads", "through them", "all heads", "chance"),
        rows,
    )


def _maps(truth: GroundTruth) -> str:
    maps = truth.maps
    rows = (
        ("of its positive mass, inside the objects", percent(maps.mass_inside)),
        ("average precision of its pixels", percent(maps.average_precision)),
        ("the objects’ share of the image", percent(maps.area)),
    )
    return _block(
        "Where the evidence lies",
        f"Maps of “a red ring” over {maps.images:,} images of red rings, and so on for every colour and shape. "
        "Without knowledge, both would be the objects’ share.",
        ("map", "mean"),
        rows,
    )


def _ablations(truth: GroundTruth) -> str:
    factors = list(truth.zero_shot)
    rows = []
    for each in truth.ablations:
        lost = {factor: truth.zero_shot[factor].share - each.accuracies[factor] for factor in factors}
        cells = (
            f"<b>{_points(lost[factor])}</b>" if factor == FACTOR_OF[each.concept] else _points(lost[factor])
            for factor in factors
        )
        rows.append((f"{each.concept}, {len(each.heads)}", *cells))
    return _block(
        "What is lost without the heads of a concept",
        "Zero-shot accuracy lost, in points, when the direct contributions of these heads are replaced by their means; "
        "bold is the concept’s own factor.",
        ("heads at their means", *map(_said, factors)),
        rows,
    )


def _block(title: str, note: str, names: Row, rows: Iterable[Row]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div><h3>{title}</h3><p class="note">{note}</p><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def _said(factor: str) -> str:
    return factor.replace("_", " ")


def percent(share: float) -> str:
    """A share, to a tenth of a percent; a dash where it is not defined."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}\u202f%"


def _points(share: float) -> str:
    # Without the sign of a rounded zero.
    return f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")
