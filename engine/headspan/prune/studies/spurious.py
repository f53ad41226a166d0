"""Spurious cues: the accuracy of the worst group without the heads that carry a cue, as on Waterbirds.

Heads are ablated to their means (the direct effect), alone or together with all attention before the last four layers,
the MLPs, or both, as in the published procedure. They are chosen by hand, by a label, or automatically: ranked by
`spurious_heads`, as many of the first ones as give the worst group its best accuracy on held-out images. Figures are
those of the other images, so nothing is chosen on the images that it is scored on. Means are over all images of the
store and take no class or group.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024, and its public code, in which heads are chosen by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.frames import Tabular
from headspan.prune.choice.draws import DRAWS, matched_draws
from headspan.prune.choice.spurious_heads import SpuriousHeads, spurious_heads
from headspan.prune.direct.ablation import direct_effect
from headspan.prune.studies.statistics import SAMPLES, Interval, bootstrapped, interval
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images
from headspan.tasks.task import Task
from headspan.tasks.truths import metadata_values
from headspan.tasks.worst_group import WorstGroup

# What is ablated together with heads: nothing, attention before the last layers, the MLPs, or both as published.
RESTS = NOTHING, EARLIER, MLPS, PUBLISHED_REST = "nothing", "earlier", "mlps", "earlier and mlps"
# The last layers, whose attention is kept but for the heads, and the most heads that are chosen automatically.
LAST_LAYERS, MOST = 4, 16
WHOLE, AUTOMATIC, RANDOM = "whole", "automatic", "random"


@dataclass(frozen=True, slots=True)
class SpuriousVariant:
    """One model without some heads, scored on the test images."""

    name: str
    heads: tuple[Head, ...]
    rest: str
    # Accuracy of the worst group and of all images, the mean over groups, and every group's.
    figures: Mapping[str, float]
    # The change of the worst group's accuracy from the whole model.
    change: Interval


@dataclass(frozen=True, slots=True, repr=False)
class SpuriousStudy(Tabular):
    """The worst group's accuracy of the whole model and without heads that were chosen in several ways."""

    task: str
    test_images: int
    held_out_images: int
    variants: tuple[SpuriousVariant, ...]
    ranking: SpuriousHeads
    # By what else is ablated: the held-out accuracy of the worst group without the first 0, 1, 2, … heads.
    held_out: Mapping[str, tuple[float, ...]]
    # What limits the study, in sentences without a full stop.
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        best = max(self.variants, key=lambda each: each.figures["worst_group"])
        whole = self.variants[0].figures["worst_group"]
        return (
            f"SpuriousStudy({self.task}: worst group {100 * whole:.1f} % whole, "
            f"{100 * best.figures['worst_group']:.1f} % {best.name}; {counted(self.test_images, 'image')})"
        )

    def variant(self, name: str, rest: str = NOTHING) -> SpuriousVariant:
        """The variant of that name. Raises SettingsError if there is none."""
        for each in self.variants:
            if (each.name, each.rest) == (name, rest):
                return each
        known = ", ".join(dict.fromkeys(each.name for each in self.variants))
        raise SettingsError(f"task {self.task}: no variant {name!r} with {rest!r} ablated too; names: {known}")

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        names = list(dict.fromkeys(name for each in self.variants for name in each.figures))
        return {
            "heads": [each.name for each in self.variants],
            "count": [len(each.heads) for each in self.variants],
            "also_ablated": [each.rest for each in self.variants],
            **{name: [each.figures[name] for each in self.variants] for name in names},
            "change": [each.change.value for each in self.variants],
            "change_low": [each.change.low for each in self.variants],
            "change_high": [each.change.high for each in self.variants],
        }


def spurious_study(
    store: Store,
    task: Task,
    spurious: Sequence[str],
    core: Sequence[str],
    on_progress: Listener = ignore,
    *,
    chosen: Mapping[str, Sequence[Head]] | None = None,
    held_out: Images | str | None = None,
    rests: Sequence[str] = (NOTHING, PUBLISHED_REST),
    most: int = MOST,
    draws: int = DRAWS,
    samples: int = SAMPLES,
    seed: int = 0,
    weights: str | Path | None = None,
) -> SpuriousStudy:
    """Score the worst group of `task` without heads that carry a cue, on images that chose none of them.

    Args:
        store: The store to read; nothing is written.
        task: A task of metric `worst_group`.
        spurious: Words for the cue, such as `water` and `land`.
        core: Words for what the classes mean, such as `waterbird` and `landbird`.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        chosen: Further sets of heads by name, such as those chosen by hand or by a label.
        held_out: The images that choose the number of heads: a selection, indices or a mask, or `KEY=VALUE` of the
            metadata, such as `split=val`. None takes half of all images at random, by `seed`.
        rests: What is ablated together with the heads; some of RESTS.
        most: The most heads that are chosen automatically.
        draws: Number of sets of random heads, as many as the automatic ones in each layer.
        samples: Number of bootstrap samples of the test images.
        seed: Seed of the split, of the draws and of the samples.
        weights: As in `text_vectors`.

    Raises SettingsError if all images are held out or none is, or if a name in `chosen` is that of another variant, and
    the errors of `WorstGroup.of`, `spurious_heads` and `direct_effect`.
    """
    if taken := [name for name in chosen or {} if name in (WHOLE, AUTOMATIC, RANDOM)]:
        raise SettingsError(f"heads named {taken[0]!r}: the study has variants of that name; choose another one")
    chooses, tests = _split(store, held_out, seed)
    choosing, testing = (
        WorstGroup.of(task, store, on_progress, weights=weights, images=each) for each in (chooses, tests)
    )
    ranking = spurious_heads(store, spurious, core, on_progress, weights=weights, images=chooses)
    candidates = ranking.candidates(most)
    whole = testing.outcomes(next(direct_effect(store, [[]], tests)))
    variants, curves = [], {}
    firsts = [candidates[:count] for count in range(len(candidates) + 1)]
    for rest in rests:
        curve = [
            choosing.figures(choosing.outcomes(each))[choosing.headline]
            for each in _without(store, firsts, rest, chooses)
        ]
        curves[rest] = tuple(curve)
        # Of equal accuracies, the one of the fewest heads.
        automatic = firsts[int(np.argmax(curve))]
        random = matched_draws(automatic, stored_heads(store), draws, seed).sets if automatic else ()
        named = {WHOLE: (), **{name: tuple(heads) for name, heads in (chosen or {}).items()}, AUTOMATIC: automatic}
        sets = [*named.values(), *random]
        outcomes = []
        for embeddings in _without(store, sets, rest, tests):
            outcomes.append(testing.outcomes(embeddings))
            on_progress(
                Progress("ablating heads" if rest == NOTHING else f"ablating heads, {rest}", len(outcomes), len(sets))
            )
        drawn = bootstrapped(testing, [whole, *outcomes], samples, seed)
        figures = [testing.figures(each) for each in (whole, *outcomes)]
        before = figures.pop(0)[testing.headline]
        changes = drawn[1:] - drawn[0]
        for place, (name, heads) in enumerate(named.items()):
            change = interval(figures[place][testing.headline] - before, changes[place])
            variants.append(SpuriousVariant(name, heads, rest, figures[place], change))
        if random:
            means = {name: float(np.mean([each[name] for each in figures[len(named) :]])) for name in figures[0]}
            change = interval(means[testing.headline] - before, changes[len(named) :].mean(axis=0))
            # The heads of the first draw stand for all: as many, in the same layers.
            variants.append(SpuriousVariant(RANDOM, random[0], rest, means, change))
    return SpuriousStudy(
        task.name, len(tests), len(chooses), tuple(variants), ranking, curves, tuple(_remarks(choosing, testing))
    )


def _split(
    store: Store, held_out: Images | str | None, seed: int
) -> tuple[Int[np.ndarray, " held_out"], Int[np.ndarray, " other"]]:
    """The images that choose, and all others."""
    if held_out is None:
        mask = np.zeros(store.images, bool)
        mask[np.random.default_rng(seed).permutation(store.images)[: store.images // 2]] = True
        found = np.flatnonzero(mask)
    elif isinstance(held_out, str):
        found = _with_value(store, held_out)
    else:
        found = chosen_images(store, held_out)
    others = np.setdiff1d(np.arange(store.images), found)
    if not (len(found) and len(others)):
        which = "none is" if not len(found) else "all are"
        raise SettingsError(
            f"{store.path}: of {counted(store.images, 'image')}, {which} held out to choose heads, but choosing and "
            "testing both need some; hold out a part of them"
        )
    return found, others


def _with_value(store: Store, held_out: str) -> Int[np.ndarray, " image"]:
    key, equals, value = held_out.partition("=")
    if not (equals and key and value):
        raise SettingsError(f"held-out images {held_out!r}: write a key of the metadata and its value, as in split=val")
    values = [None if each is None else str(each) for (each,) in metadata_values(store, [key])]
    if value not in values:
        known = ", ".join(sorted({each for each in values if each is not None})[:10]) or "no image has this key"
        raise SettingsError(f"{store.path}: no image has {held_out} in its metadata; values of {key}: {known}")
    return np.flatnonzero([each == value for each in values])


def _without(
    store: Store, sets: Sequence[Sequence[Head]], rest: str, images: Int[np.ndarray, " image"]
) -> Iterator[Float32[np.ndarray, "images joint"]]:
    """The embeddings without each set of heads, and without the rest."""
    if rest not in RESTS:
        raise SettingsError(f"{rest!r} cannot be ablated; choose one of {', '.join(RESTS)}")
    earlier, mlps = rest in (EARLIER, PUBLISHED_REST), rest in (MLPS, PUBLISHED_REST)
    more = [head for head in stored_heads(store) if earlier and head[0] < store.all_layers - LAST_LAYERS]
    return direct_effect(store, [[*heads, *more] for heads in sets], images, mlps=mlps, earlier=earlier)


def _remarks(choosing: WorstGroup, testing: WorstGroup) -> Iterator[str]:
    for name in sorted({*choosing.names} ^ {*testing.names}):
        where = "test" if name in choosing.names else "held-out"
        yield f"group {name} has no {where} image, so it is left out there"
