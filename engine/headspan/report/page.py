"""The HTML page that the templates make of the report's content.

The page is one file: style, script and pictures are inside. The template engine escapes every value, and the page's
content policy forbids loading anything and running any other script. Each picture is a rule of a style at the end of
the page, which any number of elements can show, and which the first view does not wait for. Without scripts everything
can be read; only sorting, filtering, the tips of the grid and the large pictures need them.
"""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from headspan.concepts.labels import LABELLED_TEXTS
from headspan.concepts.nulls import LEVEL, UNLABELLED
from headspan.errors import counted
from headspan.escapes import escaped
from headspan.plots.colours import AGAINST, DARK, FOR, LIGHT, Theme
from headspan.report.content import Content
from headspan.report.described_head import LOW_MAGNITUDE
from headspan.report.describing import COMPARED
from headspan.report.features import CLASS_BOUNDS
from headspan.report.grid import measures
from headspan.report.truth import images_of, truth_tables
from headspan.report.truth_cells import percent

# These words on a page show that it is a report.
KIND = "Attention heads, read with headspan"
# Bad images that the page lists, characters of one text, and characters of a remark, which may name long paths.
_BAD_SHOWN = 20
_TEXT_LENGTH = 200
_REMARK_LENGTH = 2000
# Sections are closed at first if a page has more of them.
_OPEN_SECTIONS = 48
# Names of other heads with the same image that a caption lists.
_ALSO_SHOWN = 2


def render(content: Content) -> str:
    """The page as HTML."""
    style = _source("report.css").strip()
    # The table and the grid of heads have a script of their own.
    script = "\n".join(_source(name).strip() for name in ("report.js", *(["heads.js"] if content.heads else [])))
    return (
        _templates()
        .get_template("report.html")
        .render(
            # The content policy names this script by its hash, so that no other script runs.
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            # These two are files of headspan and hold nothing from a store.
            style=Markup(f"{_colour_rules()}\n{style}"),
            script=Markup(script),
            pictures=Markup(_picture_rules(content)),
            kind=KIND,
            content=content,
            measures=measures(content),
            sections={section.head.name: section for section in content.sections},
            closed=len(content.sections) > _OPEN_SECTIONS,
            also_shown=_ALSO_SHOWN,
            first=content.heads[0].first.texts if content.heads else 0,
            voted=LABELLED_TEXTS,
            level=LEVEL,
            unlabelled=UNLABELLED,
            low=LOW_MAGNITUDE,
            bad_shown=_BAD_SHOWN,
            remark_length=_REMARK_LENGTH,
            class_bounds=CLASS_BOUNDS,
            compared_figures=COMPARED,
            groups=_groups(content),
            remarks=_remarks(content),
            truth_images=images_of(content.truth) if content.truth else 0,
            truth_tables=truth_tables(content.truth) if content.truth else (),
        )
    )


def _colour_rules() -> str:
    """The colours that the page shares with plots, as variables, on light and on dark screens."""
    maps = ";".join(f"--{name}:{' '.join(map(str, colour))}" for name, colour in (("for", FOR), ("against", AGAINST)))
    return (
        f":root{{{_variables(LIGHT)};{maps}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    )


def _variables(theme: Theme) -> str:
    named = {name: getattr(theme, name) for name in ("page", "ink", "soft", "faint", "accent")}
    named |= {f"c{level}": colour for level, colour in enumerate(theme.levels)}
    named |= {f"t{level}": colour for level, colour in enumerate(theme.on_levels)}
    return ";".join(f"--{name}:{colour}" for name, colour in named.items())


def _picture_rules(content: Content) -> str:
    """A style rule for each picture, so that it is in the page once; and the pictures' shape."""
    height, width = content.input_size
    rules = (f".p{place}{{background-image:url({data_uri(each)})}}" for place, each in enumerate(content.pictures))
    return "\n".join((f":root{{--ratio:{int(width)}/{int(height)}}}", *rules))


def data_uri(picture: bytes) -> str:
    """A WebP picture as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode()


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
        # Magnitudes of early layers are far below a percent.
        "small_percent": _small_percent,
        "points": lambda share: "–" if math.isnan(share) else _signed(100 * share),
        "width": lambda share: f"{100 * share:.1f}",
        "whole": lambda count: f"{count:.0f}",
        "one_digit": lambda value: "–" if math.isnan(value) else f"{value:.1f}".replace("-", "−"),
        "signed": _signed,
        "fixed": _fixed,
        "two_digits": lambda value: f"{value:.2g}".replace("-", "−"),
        "probability": lambda p: "< 0.001" if p < 0.001 else f"{p:.2g}",
        "equals": lambda p: "< 0.001" if p < 0.001 else f"= {p:.2g}",
        "sortable": lambda share: f"{-1.0 if share is None or math.isnan(share) else share:.6f}",
        "data_uri": data_uri,
    }
    return templates


def _small_percent(share: float) -> str:
    """A share, below a percent to two digits, down to a thousandth of a percent."""
    if not 0 < share < 0.01:
        return percent(share)
    return f"{100 * share:.2g}\u202f%" if share >= 1e-5 else "<\u202f0.001\u202f%"


def _shown(value: object) -> object:
    """A value as it is shown: invisible and control characters are escaped, except in style and script."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _groups(content: Content) -> list[tuple[str, str, str]]:
    """Name, number and meaning of each group of heads, and of the ratio."""
    scores = content.scores
    if scores is None:
        return []
    meaning = {"high": "CCS 5", "moderate": "CCS 3", "low": "CCS 0–1"}
    expected = scores.expected_groups or {}
    found = [
        (name, f"{count}", meaning[name] + (f"; {expected[name]:.1f} by chance" if name in expected else ""))
        for name, count in scores.groups.items()
    ]
    ccr = "–" if math.isnan(scores.ccr) else f"{scores.ccr:.2f}"
    ratio = "no high heads" if math.isnan(scores.ccr) else "concepts shared by high heads, per high head"
    if scores.expected_ccr is not None and not math.isnan(scores.expected_ccr):
        ratio += f"; {scores.expected_ccr:.2f} if so many heads were high by chance"
    return [*found, ("CCR", ccr, ratio)]


def _remarks(content: Content) -> list[str]:
    remarks = []
    if content.missing:
        images, reason = len(content.missing), next(iter(content.missing.values()))
        verb = "is" if images == 1 else "are"
        remarks.append(f"{counted(images, 'image')} could not be read and {verb} shown by name only: {reason}.")
    if content.heads and not content.has_maps:
        remarks.append("Maps need the contribution of each patch: run precompute with --emit heads,patches.")
    return remarks


def _signed(value: float) -> str:
    """A number with one decimal place and its sign; zero has none."""
    rounded = round(value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def _fixed(value: float, decimals: int) -> str:
    # Adding zero removes the sign of a rounded zero.
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _brief(text: object, length: int = _TEXT_LENGTH) -> str:
    """`text` on one line, cut to `length` characters."""
    words = " ".join(str(text).split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"
