"""Score the tasks of a study without each set of heads, one set after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.errors import SettingsError
from headspan.events import Listener, Progress
from headspan.prune.ablation import direct_effect
from headspan.prune.effects import GroupEffect, TaskEffects
from headspan.prune.statistics import bootstrapped, interval, rank_correlation_of_heads
from headspan.prune.study_plan import HeadSet
from headspan.prune.study_tasks import TaskOn
from headspan.store.head_space import Head
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class TotalSettings:
    """How the total effect is computed; see `total_effect`."""

    weights: str | Path | None = None
    shards: Sequence[str] = ()
    device: str = "auto"
    batch_size: int | None = None
    keep: str | Path | None = None


def score_tasks(
    tasks: Sequence[TaskOn],
    sets: Sequence[HeadSet],
    total: TotalSettings | None,
    samples: int,
    seed: int,
    on_progress: Listener,
) -> list[TaskEffects]:
    """What each task loses without each of `sets`, by the direct effect, or by the total one if `total` is given.

    Each store is read once for all of its tasks, and one set's embeddings are held at a time by the direct effect.
    """
    stores = list({id(each.store): each.store for each in tasks}.values())
    if total is not None and total.shards and len(stores) > 1:
        raise SettingsError(
            "--shards names the shards of one store, and the tasks are on several; study the tasks of each store alone"
        )
    found = {id(each): _Running(each, sets, samples, seed) for each in tasks}
    for number, store in enumerate(stores):
        own = [found[id(each)] for each in tasks if each.store is store]
        # The first set is empty: the whole model. A set that occurs twice is computed once.
        places: dict[tuple[Head, ...], list[int]] = {(): []}
        for place, each in enumerate(sets):
            places.setdefault(each.heads, []).append(place)
        keep = None if total is None or total.keep is None else Path(total.keep) / (f"{number}" if number else "")
        of_embeddings = [each for each in own if not each.on.from_maps]
        if of_embeddings:
            variants = (
                direct_effect(store, list(places))
                if total is None
                else _total(store, list(places), replace(total, keep=keep), on_progress)
            )
            for done, (at, embeddings) in enumerate(zip(places.values(), variants, strict=True)):
                for each in of_embeddings:
                    each.add(at, each.on.evaluation.outcomes(embeddings))
                on_progress(Progress(f"scoring {store.path.name}", done + 1, len(places)))
        for each in own:
            if each.on.from_maps:
                for done, (heads, at) in enumerate(places.items()):
                    each.add(at, each.on.evaluation.outcomes_without(list(heads)))
                    on_progress(Progress(f"scoring maps of {store.path.name}", done + 1, len(places)))
    return [each.effects() for each in found.values()]


def _total(
    store: Store, sets: Sequence[Sequence[Head]], total: TotalSettings, on_progress: Listener
) -> Iterable[Float32[np.ndarray, "images joint"]]:
    # Imported here, because it needs torch.
    from headspan.prune.total_effect import total_effect

    return total_effect(
        store,
        sets,
        on_progress,
        weights=total.weights,
        shards=total.shards,
        device=total.device,
        batch_size=total.batch_size,
        keep=total.keep,
    )


@dataclass(slots=True)
class _Running:
    """A task's effects while its sets are scored; the whole model comes first."""

    on: TaskOn
    sets: Sequence[HeadSet]
    samples: int
    seed: int
    before: np.ndarray | None = None
    drawn: np.ndarray | None = None
    values: dict[int, float] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    gained: dict[int, int] = field(default_factory=dict)
    groups: dict[str, GroupEffect] = field(default_factory=dict)

    def add(self, places: Sequence[int], outcomes: np.ndarray) -> None:
        """Take the outcomes without the heads of the sets at `places`, which are equal; first of all, the whole's."""
        evaluation = self.on.evaluation
        figures = {name: float(value) for name, value in evaluation.figures(outcomes).items()}
        if self.before is None:
            self.before = outcomes
            self.whole = figures
            if any(each.kind == "group" for each in self.sets):
                self.drawn = bootstrapped(evaluation, [outcomes], self.samples, self.seed)[0]
            return
        value = figures[evaluation.headline]
        right, before = evaluation.correct(outcomes), evaluation.correct(self.before)
        for place in places:
            self.values[place] = value
            if right is not None:
                self.lost[place] = int((before & ~right).sum())
                self.gained[place] = int((~before & right).sum())
            if self.sets[place].kind == "group":
                drawn = bootstrapped(evaluation, [outcomes], self.samples, self.seed)[0]
                change = interval(value - self.whole[evaluation.headline], drawn - self.drawn)
                self.groups[self.sets[place].of] = GroupEffect(figures, change)
