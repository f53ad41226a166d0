"""The report's content, and the HTML page that the templates make of it.

The page is one file: style and script are inside. The template engine escapes every value, and the page's content
policy forbids loading anything and running any other script. Without scripts everything can be read; only sorting,
filtering and the tips of the grid need them.
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
from headspan.errors import counted
from headspan.escapes import escaped
from headspan.report.truth import images_of, percent, truth_tables
from headspan.shards.samples import BadImage
from headspan.world.checks import GroundTruth

# These words on a page show that it is a report.
KIND = "Attention heads, read with headspan"
# Bad images that the page lists, characters of one text, and characters of a remark, which may name long paths.
_BAD_SHOWN = 20
_TEXT_LENGTH = 200
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
    # The share of the variance of the head's contributions that the first texts explain, and that all texts explain.
    explained_first: float
    explained_all: float

    @property
    def name(self) -> str:
        """The name in the field's notation, such as `L22.H13`."""
        return f"L{self.layer}.H{self.head}"


@dataclass(frozen=True, slots=True)
class Example:
    """An image that responds to a head's first text; picture and map are data URIs, or None if there are none."""

    key: str
    caption: str | None
    score: float
    picture: str | None = None
    map: str | None = None


@dataclass(frozen=True, slots=True)
class HeadExamples:
    """A head's best images, and the contribution of a patch at which its maps reach full colour."""

    head: DescribedHead
    examples: list[Example]
    strongest: float


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that the page shows."""

    # Shown above everything else.
    notices: list[str]
    model: str
    weights: str
    facts: list[tuple[str, str]]
    images: int
    # The layers whose heads are described.
    layers: tuple[int, ...]
    heads: list[DescribedHead]
    texts_per_head: int
    at_k: list[float]
    groups: dict[str, int]
    ccr: float
    # None unless the images are of the image world.
    truth: GroundTruth | None
    bad: list[BadImage]
    examples: list[HeadExamples]
    # The reason for every image that could not be read, by row.
    missing: dict[int, str]
    has_maps: bool


def render(content: Content) -> str:
    """The page as HTML."""
    style, script = (_source(f"report.{kind}").strip() for kind in ("css", "js"))
    return (
        _templates()
        .get_template("report.html")
        .render(
            # The content policy names this script by its hash, so that no other script runs.
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            # These two are files of headspan and hold nothing from a store.
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
    """The templates; they escape every value, and an undefined value is an error."""
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
    """A value as it is shown: invisible and control characters are escaped, except in style and script."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _groups(content: Content) -> list[tuple[str, str, str]]:
    """Name, number and meaning of each group of heads, and of the ratio."""
    meaning = {"high": "CCS 5", "moderate": "CCS 3", "low": "CCS 0–1"}
    ccr = "–" if math.isnan(content.ccr) else f"{content.ccr:.2f}"
    ratio = ("CCR", ccr, "no high heads" if math.isnan(content.ccr) else "concepts shared by high heads, per high head")
    return [*((name, f"{count}", meaning[name]) for name, count in content.groups.items()), ratio]


def _remarks(content: Content) -> list[str]:
    remarks = []
    if content.missing:
        images, reason = len(content.missing), next(iter(content.missing.values()))
        verb = "is" if images == 1 else "are"
        remarks.append(f"{counted(images, 'image')} could not be read and {verb} shown by name only: {reason}.")
    if not content.has_maps:
        remarks.append("Maps need the contribution of each patch: run precompute with --emit heads,patches.")
    return remarks


def _brief(text: object, length: int = _TEXT_LENGTH) -> str:
    """`text` on one line, cut to `length` characters."""
    words = " ".join(str(text).split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"
