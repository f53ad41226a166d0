"""The pictures of each head's section: images at both ends of its first text, and images drawn at random.

Within a section no image is shown twice. An image of several sections is embedded once, and each section names the
others. Random images come from a sample of the store, which also gives the mean and the scale of the maps; heads take
them in turn, so that neighbouring heads show different ones. Maps need a store with `patches`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.events import NOTE, Listener, Progress
from headspan.explore.maps.centred_maps import Baseline, baseline, full_colour, layer_maps, sampled
from headspan.explore.nearest.similarities import similarities
from headspan.originals.find_shards import find_shards, missing_note
from headspan.originals.pictures import read_images
from headspan.report.content import MapScale, Section, Shot
from headspan.report.described_head import DescribedHead
from headspan.report.images import fitted
from headspan.report.maps import overlay
from headspan.spans.result import HeadSpans
from headspan.store import results
from headspan.store.reader import Store

# Images at each end and at random.
SHOWN = 4
# The heads that are marked as the strongest.
_BEST = 6


@dataclass(slots=True)
class _Chosen:
    """A head, its images by row of pictures, and every image's score."""

    head: DescribedHead
    along: Float32[np.ndarray, " coordinate"]
    scores: Float32[np.ndarray, " images"]
    strips: dict[str, list[int]]
    maps: dict[int, Float32[np.ndarray, "rows columns"]] = field(default_factory=dict)
    scale: MapScale | None = None


@dataclass(frozen=True, slots=True)
class Pictured:
    """The sections, the encoded pictures that they refer to, and the reason for each image without one, by row."""

    sections: list[Section]
    pictures: list[bytes]
    missing: dict[int, str]
    # The place of each image's picture, by image index.
    places: dict[int, int]


def picture_heads(
    store: Store,
    spans: HeadSpans | None,
    heads: Sequence[DescribedHead],
    on_progress: Listener,
    shards: Sequence[str] = (),
    also: Sequence[int] = (),
) -> Pictured:
    """The sections of `heads`, in their order, and pictures of the images `also` too.

    `spans` are the texts of the heads, None without heads. `shards` says where all the tars are now, if they have
    moved.
    """
    chosen = [] if spans is None else _chosen(store, spans, heads, on_progress)
    images = sorted({*also, *(image for each in chosen for strip in each.strips.values() for image in strip)})
    samples = dict(zip(images, store.samples(images).to_pylist(), strict=True)) if images else {}
    encoded, missing = _read(store, list(samples.values()), shards, on_progress)
    rows = sorted(encoded)
    pictures = dict(zip(rows, range(len(rows)), strict=True))
    shown_by = _heads_of_images(chosen)
    best = {head.name for head in sorted(heads, key=lambda head: head.rank)[:_BEST]}
    by_name = {each.head.name: each for each in chosen}
    sections = []
    for head in heads:
        each = by_name.get(head.name)
        section = Section(head, best=head.name in best)
        if each is not None:
            shots = {
                name: tuple(_shot(each, image, samples[image], pictures, shown_by[image]) for image in strip)
                for name, strip in each.strips.items()
            }
            section = replace(
                section,
                scale=each.scale,
                most=shots["most"],
                least=shots["least"],
                random=shots["random"],
                decimals=_decimals(float(np.nanstd(each.scores))),
            )
        sections.append(section)
    places = {image: pictures[sample["row"]] for image, sample in samples.items() if sample["row"] in pictures}
    return Pictured(sections, fitted([encoded[row] for row in rows]), missing, places)


def ends(scores: Float32[np.ndarray, " images"], count: int) -> tuple[list[int], list[int]]:
    """The images with the `count` highest scores, highest first, and of the others the lowest, lowest first.

    Of equal scores the first images are taken. Images without a score are left out.
    """
    most = _first(-scores, count)
    others = scores.copy()
    others[most] = np.nan
    return most, _first(others, count)


def _first(scores: Float32[np.ndarray, " images"], count: int) -> list[int]:
    finite = np.flatnonzero(np.isfinite(scores))
    if len(finite) > count:
        bound = np.partition(scores[finite], count - 1)[count - 1]
        finite = finite[scores[finite] <= bound]
    return finite[np.argsort(scores[finite], kind="stable")][:count].tolist()


def _chosen(store: Store, spans: HeadSpans, heads: Sequence[DescribedHead], on_progress: Listener) -> list[_Chosen]:
    """Images, scores and maps of all heads that have texts, layer by layer."""
    vectors = results.load(store, "texts", spans.pool.name)[0]["vectors"]
    sample = sampled(store)
    return [
        each
        for layer in sorted({head.layer for head in heads})
        for each in _choose(store, [head for head in heads if head.layer == layer], spans, vectors, sample, on_progress)
    ]


def _choose(
    store: Store,
    heads: Sequence[DescribedHead],
    spans: HeadSpans,
    vectors: Float32[np.ndarray, "text joint"],
    sample: Sequence[int],
    on_progress: Listener,
) -> Iterator[_Chosen]:
    """Images, scores and maps of the heads of one layer that have texts."""
    found: list[_Chosen] = []
    for head in heads:
        places = spans.places(head.layer, head.head, 1)
        if not places:
            continue
        vector = vectors[places[0]]
        scores = similarities(store, vector[None], [(head.layer, head.head)])[0]
        most, least = ends(scores, SHOWN)
        # Neighbouring heads begin at different places of the sample.
        turn = SHOWN * (head.layer * store.heads_per_layer + head.head) % max(1, len(sample))
        others = [image for image in (*sample[turn:], *sample[:turn]) if image not in {*most, *least}][:SHOWN]
        strips = {"most": most, "least": least, "random": others}
        found.append(_Chosen(head, store.head_directions(head.layer, head.head) @ vector, scores, strips))
    if found and "patches" in store.attributes["emit"] and len(sample) > 1:
        _map(store, found, sample)
    yield from found
    if heads:
        on_progress(Progress("report", store.layers.index(heads[0].layer) + 1, len(store.layers)))


def _map(store: Store, chosen: Sequence[_Chosen], sample: Sequence[int]) -> None:
    """Add the maps of the heads of one layer, reading each image's patches once."""
    layer = chosen[0].head.layer
    base: Baseline = baseline(
        store, layer, [each.head.head for each in chosen], np.stack([each.along for each in chosen]), sample
    )
    wanted: dict[int, list[int]] = {}
    for place, each in enumerate(chosen):
        if np.isfinite(base.deviation[place]):
            for image in (image for strip in each.strips.values() for image in strip):
                wanted.setdefault(image, []).append(place)
    for image, places in sorted(wanted.items()):
        heads = [chosen[place].head.head for place in places]
        maps = layer_maps(store, image, layer, heads, np.stack([chosen[place].along for place in places]))
        for place, each in zip(places, maps, strict=True):
            chosen[place].maps[image] = (each - base.mean[place]) / base.deviation[place]
    for place, each in enumerate(chosen):
        if each.maps:
            threshold = float(base.threshold[place])
            full = full_colour(list(each.maps.values()), threshold)
            each.scale = MapScale(float(base.deviation[place]), threshold, full, base.images)


def _read(
    store: Store, samples: list[Mapping[str, Any]], shards: Sequence[str], on_progress: Listener
) -> tuple[dict[int, bytes], dict[int, str]]:
    urls, lost = find_shards(store, shards)
    needed = {sample["url"] for sample in samples}
    if lost := [name for name in lost if name in needed]:
        todo = "--shards (in Python shards=) says where all of them are now"
        on_progress(Progress(NOTE, 0, None, f"{missing_note(lost, len(urls))}; {todo}"))
    given = urls.values() if shards else ()
    return read_images(store, samples, urls, given)


def _heads_of_images(chosen: Sequence[_Chosen]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for each in chosen:
        for strip in each.strips.values():
            for image in strip:
                found.setdefault(image, []).append(each.head.name)
    return found


def _decimals(spread: float) -> int:
    """Decimal places that give `spread` two digits."""
    return max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 3


def _shot(
    chosen: _Chosen, image: int, sample: Mapping[str, Any], pictures: Mapping[int, int], shown_by: Sequence[str]
) -> Shot:
    scores = chosen.scores
    score, spread = float(scores[image]), float(np.nanstd(scores))
    deviations = (score - float(np.nanmean(scores))) / spread if spread > 0 else 0.0
    shot = Shot(
        key=sample["key"],
        caption=sample["caption"],
        score=score,
        deviations=deviations,
        picture=pictures.get(sample["row"]),
        also=tuple(name for name in shown_by if name != chosen.head.name),
    )
    if chosen.scale is None or shot.picture is None:
        return shot
    found, scale = chosen.maps[image], chosen.scale
    coloured = float((np.abs(found) > scale.threshold).mean())
    return replace(shot, map=overlay(found, scale.threshold, scale.full), coloured=coloured)
