"""What the report looks like: its content as one HTML page with style and script inside.

Everything that comes from shards, pools or models is escaped here, and the page's content policy lets
nothing load and no script run but the page's own. Without scripts it reads as well; only sorting,
filtering and the grid's tips are missing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from headspan.analyse.ground_truth import GroundTruth
from headspan.analyse.labels import LABELLED_TEXTS
from headspan.analyse.report_truth import percent, render_truth
from headspan.records import BadImage

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
    folder = files("headspan.analyse")
    page, style, script = (
        (folder / f"report.{kind}").read_text(encoding="utf-8").strip() for kind in ("html", "css", "js")
    )
    return Template(page).substitute(
        # Names this one script in the content policy, so that no other runs.
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style,
        script=script,
        notice=_notice(content.notices),
        model=_text(content.model),
        weights=_text(content.weights),
        lede=_lede(content),
        truth=render_truth(content.truth) if content.truth else "",
        facts="".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in content.facts),
        bars=_bars(content),
        groups=_groups(content),
        bad=_bad_images(content.bad),
        legend="".join(f'<li class="c{score}">{score}</li>' for score in range(LABELLED_TEXTS + 1)),
        grid=_grid(content),
        first=LABELLED_TEXTS,
        all=content.texts_per_head,
        rows="\n".join(map(_row, content.heads)),
        remarks=_remarks(content),
        examples="\n".join(map(_head_examples, content.examples)),
    )


def _notice(notices: Sequence[str]) -> str:
    return f'<p class="notice" role="note">{_text(" ".join(notices), _REMARK_LENGTH)}</p>' if notices else ""


def _lede(content: Content) -> str:
    count = len(content.heads)
    return (
        f"{count:,} attention heads, each described by the texts that explain most of what it adds to "
        f"{content.images:,} image embeddings, and scored by how well its first {LABELLED_TEXTS} texts agree."
    )


def _bars(content: Content) -> str:
    largest = max(content.at_k) or 1.0
    return "".join(
        f'<li><span class="chip c{score}">{score}</span>'
        f'<span class="bar"><i class="c{score}" style="width:{100 * share / largest:.1f}%"></i></span>'
        f"<b>{share * len(content.heads):.0f}</b><small>{percent(share)}</small></li>"
        for score, share in reversed(list(enumerate(content.at_k)))
    )


def _groups(content: Content) -> str:
    meaning = {"high": "CCS 5", "moderate": "CCS 3", "low": "CCS 0–1"}
    shown = [(name, f"{count}", meaning[name]) for name, count in content.groups.items()]
    ccr = "–" if math.isnan(content.ccr) else f"{content.ccr:.2f}"
    shown.append(("CCR", ccr, "no high heads" if math.isnan(content.ccr) else "concepts of several high heads"))
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></div>" for name, value, note in shown)


def _bad_images(bad: Sequence[BadImage]) -> str:
    if not bad:
        return ""
    rows = "".join(
        f"<tr><td>{_text(image.key)}</td><td>{_text(image.reason)}</td><td>{_text(image.url)}</td></tr>"
        for image in bad[:_BAD_SHOWN]
    )
    more = f"<p>{len(bad) - _BAD_SHOWN:,} more are in the store’s records.</p>" if len(bad) > _BAD_SHOWN else ""
    return (
        f"<details><summary>{len(bad):,} image{'s' * (len(bad) > 1)} set aside, and why</summary>"
        f'<div class="wide"><table class="bad"><thead><tr><th>Key</th><th>Reason</th><th>Shard</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}</details>"
    )


def _grid(content: Content) -> str:
    heads = len(content.heads) // len(content.layers)
    columns = "".join(f'<th scope="col">{head}</th>' for head in range(heads))
    rows = []
    for place, layer in enumerate(content.layers):
        cells = "".join(
            f'<td><a class="c{head.score}" href="#{head.name}"><b>{head.score}</b>'
            f"<span><span>{_text(head.label or '–')}</span></span></a></td>"
            for head in content.heads[place * heads : (place + 1) * heads]
        )
        rows.append(f'<tr><th scope="row">L{layer}</th>{cells}</tr>')
    return f'<thead><tr><th scope="col">head</th>{columns}</tr></thead><tbody>{"".join(rows)}</tbody>'


def _row(head: DescribedHead) -> str:
    texts = "".join(
        f'<li class="{"yes" if consistent else "no"}">{_text(text)}</li>' for text, consistent in head.texts
    )
    return (
        f'<tr id="{head.name}"><th scope="row" data-value="{head.layer * 1000 + head.head}">{head.name}</th>'
        f'<td class="label">{_text(head.label or "–")}</td>'
        f'<td class="score" data-value="{head.score}"><span class="chip c{head.score}">{head.score}</span></td>'
        f'<td class="group">{head.group or "–"}</td><td class="texts"><ol>{texts}</ol></td>'
        f"{_share_cell(head.explained_first, 'first')}{_share_cell(head.explained_all, 'all')}</tr>"
    )


def _share_cell(share: float, name: str) -> str:
    value = -1.0 if math.isnan(share) else share
    return f'<td class="share {name}" data-value="{value:.6f}">{percent(share)}</td>'


def _remarks(content: Content) -> str:
    remarks = []
    if content.missing:
        images = len(content.missing)
        reason = next(iter(content.missing.values()))
        remarks.append(f"{images} of the images could not be read and are shown by name alone: {reason}.")
    if not content.has_maps:
        remarks.append("Maps need each patch’s share: run precompute with --emit heads,patches.")
    return "".join(f'<p class="remark">{_text(remark, _REMARK_LENGTH)}</p>' for remark in remarks)


def _head_examples(shown: HeadExamples) -> str:
    head = shown.head
    scale = (
        f'<p class="scale"><span>−{shown.strongest:.2g}</span><i></i><span>+{shown.strongest:.2g} a patch</span></p>'
        if any(example.map for example in shown.examples)
        else ""
    )
    figures = "".join(map(_figure, shown.examples))
    return (
        f'<section class="head"><header><h3><a href="#{head.name}">{head.name}</a> {_text(head.label or "")}</h3>'
        f'<span class="chip c{head.score}" title="CCS">{head.score}</span>'
        f"<p><q>{_text(head.texts[0][0])}</q></p>{scale}</header>"
        f'<div class="{"pairs" if scale else "singles"}">{figures}</div></section>'
    )


def _figure(example: Example) -> str:
    name = example.caption or example.key
    pictures = [f'<img src="{example.picture}" alt="{_text(name)}">' if example.picture else ""]
    if example.map:
        pictures.append(f'<img src="{example.map}" alt="Map of the text over this image">')
    return (
        f"<figure><div>{''.join(pictures)}</div>"
        f"<figcaption><b>{_number(example.score)}</b> "
        f'<span title="{_text(example.key)}">{_text(name)}</span></figcaption></figure>'
    )


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def _text(text: str, length: int = _TEXT_LENGTH) -> str:
    """Escaped for text and attributes, on one line, and not longer than can be read at a glance."""
    words = " ".join(text.split())
    return html.escape(words if len(words) <= length else words[: length - 1].rstrip() + "…")
