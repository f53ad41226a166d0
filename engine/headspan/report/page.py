"""What the report looks like: its content as one HTML page with style and script inside, from `templates`.

The template engine escapes every value, whatever it comes from, and the page's content policy lets nothing load and no
script run but the page's own. Without scripts it reads as well; only sorting, filtering and the grid's tips are
missing.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from headspan.concepts.labels import LABELLED_TEXTS
from headspan.escapes import escaped
from headspan.report.truth import images_of, percent, truth_tables
from headspan.shards.samples import BadImage
from headspan.world.checks import GroundTruth

# By these words, on every page, a report is known.
KIND = "Attention heads, read with headspan"
# Of images that were set aside, and of characters of one text: beyond, the page would be long, not better.
_BAD_SHOWN = 20
_TEXT_LENGTH = 200
# What headspan itself says may name long paths.
_REMARK_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class DescribedHead:
    """One head's label, score and first texts, each with whether it is consistent with the label."""

    layer: int
    head: int
    label: str | None
    score: int
    group: str | None
    texts: tuple[tuple[str, bool], ...]
    # Shares of the variance of the head's contributions, after the first texts and after all.
    explained_first: float
    explained_all: float

    @property
    def name(self) -> str:
        """As in `L22.H13`."""
        return f"L{self.layer}.H{self.head}"


@dataclass(frozen=True, slots=True)
class Example:
    """An image that speaks for a head's first text; picture and map are data URIs, where they are to be had."""

    key: str
    caption: str | None
    score: float
    picture: str | None = None
    map: str | None = None


@dataclass(frozen=True, slots=True)
class HeadExamples:
    """A head's best images, and the contribution of a patch from which on its maps are fully coloured."""

    head: DescribedHead
    examples: list[Example]
    strongest: float


@dataclass(frozen=True, slots=True)
class Content:
    """All that the page shows."""

    # The first line.
    notices: list[str]
    model: str
    weights: str
    facts: list[tuple[str, str]]
    images: int
    # The described layers.
    layers: tuple[int, ...]
    heads: list[DescribedHead]
    texts_per_head: int
    at_k: list[float]
    groups: dict[str, int]
    ccr: float
    # Only of a store of the image world.
    truth: GroundTruth | None
    bad: list[BadImage]
    examples: list[HeadExamples]
    # The reason for every image that could not be read, by row.
    missing: dict[int, str]
    has_maps: bool


def render(content: Content) -> str:
    """The page."""
    style, script = (_source(f"report.{kind}").strip() for kind in ("css", "js"))
    return (
        _templates()
        .get_template("report.html")
        .render(
            # Names this one script in the content policy, so that no other runs.
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            # Headspan's own, without anything from a store.
            style=Markup(style),
            script=Markup(script),
            kind=KIND,
            content=content,
            first=LABELLED_TEXTS,
            bad_shown=_BAD_SHOWN,
            remark_length=_REMARK_LENGTH,
            groups=_groups(content),
            remarks=_remarks(content),
            truth_images=images_of(content.truth) if content.truth else 0,
            truth_tables=truth_tables(content.truth) if content.truth else (),
        )
    )


def _source(name: str) -> str:
    return (files("headspan.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    """The templates. Every value that they show is escaped; one that is not there is an error."""
    templates = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "brief": _brief,
        "commas": lambda count: f"{count:,}",
        "percent": percent,
        "width": lambda share: f"{100 * share:.1f}",
        "whole": lambda count: f"{count:.0f}",
        "two_digits": lambda value: f"{value:.2g}".replace("-", "−"),
        "sortable": lambda share: f"{-1.0 if math.isnan(share) else share:.6f}",
    }
    return templates


def _shown(value: object) -> object:
    """Text without letters that steer a terminal, or turn the direction of writing; style and script stay."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _groups(content: Content) -> list[tuple[str, str, str]]:
    """Name, number and meaning of each group of heads, and of the ratio."""
    meaning = {"high": "CCS 5", "moderate": "CCS 3", "low": "CCS 0–1"}
    ccr = "–" if math.isnan(content.ccr) else f"{content.ccr:.2f}"
    ratio = ("CCR", ccr, "no high heads" if math.isnan(content.ccr) else "concepts of several high heads")
    return [*((name, f"{count}", meaning[name]) for name, count in content.groups.items()), ratio]


def _remarks(content: Content) -> list[str]:
    remarks = []
    if content.missing:
        images = len(content.missing)
        reason = next(iter(content.missing.values()))
        remarks.append(f"{images} of the images could not be read and are shown by name alone: {reason}.")
    if not content.has_maps:
        remarks.append("Maps need each patch’s share: run precompute with --emit heads,patches.")
    return remarks


def _brief(text: object, length: int = _TEXT_LENGTH) -> str:
    """On one line, and not longer than can be read at a glance."""
    words = " ".join(str(text).split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"
