"""Score the tasks of a study without each set of heads, one set after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float32, Float64

from headspan.errors import SettingsError
from headspan.events import Listener, Progress
from headspan.prune.direct.ablation import direct_effect
from headspan.prune.direct.greedy import greedy
from headspan.prune.direct.single_heads import single_heads
from headspan.prune.studies.effects import GroupEffect, TaskEffects, places
from headspan.prune.studies.statistics import bootstrapped, interval
from headspan.prune.studies.study_plan import HeadSet
from headspan.prune.studies.study_tasks import TaskOn
from headspan.store.head_space import Head
from headspan.store.identity import model_name
from headspan.store.reader import Store
from headspan.tasks.classification import Classification

# Bytes of the embeddings of all sets that are held in memory.
_IN_MEMORY = 1 << 30


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
    removed: int,
    on_progress: Listener,
) -> list[TaskEffects]:
    """What each task loses without each of `sets`, by the direct effect, or by the total one if `total` is given.

    Classifications are also scored while `removed` heads are removed one after the other, by the direct effect. The
    variants of a store are computed once for all of its tasks. Outcomes are kept for the whole model alone.
    """
    stores = list({id(each.store): each.store for each in tasks}.values())
    if total is not None and total.shards and len(stores) > 1:
        raise SettingsError(
            "shards are those of one store, but the tasks are on several; study the tasks of each store by themselves"
        )
    running = [_Running(each, sets, total is None, samples, seed) for each in tasks]
    for number, store in enumerate(stores):
        own = [each for each in running if each.on.store is store]
        keep = None if total is None or total.keep is None else Path(total.keep) / (f"{number}" if number else "")
        settings = None if total is None else replace(total, keep=keep)
        _score(store, [each for each in own if not each.on.from_maps], sets, settings, on_progress)
        for each in own:
            if each.on.from_maps:
                _score_maps(each, sets, on_progress)
            elif each.sweeps:
                each.sweep(on_progress)
                each.remove(removed, on_progress)
    return [each.effects() for each in running]


def _score(
    store: Store, tasks: Sequence[_Running], sets: Sequence[HeadSet], total: TotalSettings | None, on_progress: Listener
) -> None:
    """Score tasks on the embeddings of the store's images without each set of heads."""
    if not tasks:
        return
    wanted = _wanted(sets, single=not all(each.sweeps for each in tasks))
    variants = _total(store, list(wanted), total, on_progress) if total else direct_effect(store, list(wanted))
    for done, (at, embeddings) in enumerate(zip(wanted.values(), variants, strict=True), 1):
        for each in tasks:
            each.add(at, each.on.evaluation.outcomes(embeddings))
        on_progress(Progress(f"scoring {store.path.name}", done, len(wanted)))


def _score_maps(task: _Running, sets: Sequence[HeadSet], on_progress: Listener) -> None:
    wanted = _wanted(sets, single=True)
    # All sets are scored with one reading of the patches.
    outcomes = task.on.evaluation.outcomes_of(list(wanted), on_progress)
    for at, each in zip(wanted.values(), outcomes, strict=True):
        task.add(at, each)


def _wanted(sets: Sequence[HeadSet], single: bool) -> dict[tuple[Head, ...], list[int]]:
    """The places of each different set of heads; first the empty set, which is the whole model."""
    found: dict[tuple[Head, ...], list[int]] = {(): []}
    for place, each in enumerate(sets):
        if single or each.kind != "single":
            found.setdefault(each.heads, []).append(place)
    return found


def _total(
    store: Store, sets: Sequence[Sequence[Head]], total: TotalSettings, on_progress: Listener
) -> Iterator[Float32[np.ndarray, "images joint"]]:
    """The embeddings of the total effect, set by set; large ones are in a temporary file unless `keep` is given."""
    # Imported here, because it needs torch.
    from headspan.prune.total.total_effect import total_effect

    with ExitStack() as stack:
        keep = total.keep
        if keep is None and 4 * len(sets) * store.images * store.joint > _IN_MEMORY:
            keep = stack.enter_context(TemporaryDirectory(prefix="headspan-"))
        yield from total_effect(
            store,
            sets,
            on_progress,
            weights=total.weights,
            shards=total.shards,
            device=total.device,
            batch_size=total.batch_size,
            keep=keep,
        )


@dataclass(slots=True)
class _Running:
    """A task's effects while sets are scored; the whole model comes first."""

    on: TaskOn
    sets: Sequence[HeadSet]
    direct: bool
    samples: int
    seed: int
    # Outcomes and figures of the whole model, and its headline in each bootstrap sample.
    before: np.ndarray | None = None
    whole: dict[str, float] = field(default_factory=dict)
    drawn: Float64[np.ndarray, " draw"] | None = None
    values: dict[int, float] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    gained: dict[int, int] = field(default_factory=dict)
    groups: dict[str, GroupEffect] = field(default_factory=dict)
    margin_losses: tuple[float, ...] | None = None
    greedy: tuple[tuple[int, int, float], ...] | None = None

    @property
    def sweeps(self) -> bool:
        """Whether all single heads are scored at once, which the direct effect on a classification allows."""
        return self.direct and isinstance(self.on.evaluation, Classification)

    def add(self, at: Sequence[int], outcomes: np.ndarray) -> None:
        """Take the outcomes without the heads of the equal sets at some places; the whole model comes first."""
        evaluation = self.on.evaluation
        figures = {name: float(value) for name, value in evaluation.figures(outcomes).items()}
        if self.before is None:
            self.before, self.whole = outcomes, figures
            if any(each.kind == "group" for each in self.sets):
                self.drawn = bootstrapped(evaluation, [outcomes], self.samples, self.seed)[0]
            return
        right, before = evaluation.correct(outcomes), evaluation.correct(self.before)
        for place in at:
            if right is not None and before is not None:
                self.lost[place] = int((before & ~right).sum())
                self.gained[place] = int((~before & right).sum())
            self.values[place] = figures[evaluation.headline]
            if self.sets[place].kind == "group":
                # The same samples as those of the whole model, since they depend on seed and number of items alone.
                drawn = bootstrapped(evaluation, [outcomes], self.samples, self.seed)[0]
                change = interval(self.values[place] - self.whole[evaluation.headline], drawn - self.drawn)
                self.groups[self.sets[place].of] = GroupEffect(figures, change)

    def sweep(self, on_progress: Listener) -> None:
        """Score all single heads."""
        single = places(self.sets, "single")
        if not single:
            return
        evaluation = self.on.evaluation
        heads = [self.sets[place].heads[0] for place in single]
        found = single_heads(self.on.store, evaluation.classes, evaluation.truths, on_progress, heads)
        self.margin_losses = tuple(found.margin_loss.tolist())
        for place, head in zip(single, heads, strict=True):
            lost, gained = found.flipped(*head)
            self.lost[place], self.gained[place] = len(lost), len(gained)
            self.values[place] = self.whole[evaluation.headline] + (len(gained) - len(lost)) / len(found.images)

    def remove(self, count: int, on_progress: Listener) -> None:
        """Remove heads one after the other, each time the one that costs least."""
        if count:
            evaluation = self.on.evaluation
            found = greedy(self.on.store, evaluation.classes, evaluation.truths, count, on_progress=on_progress)
            shares = (found.correct / found.images).tolist()
            self.greedy = tuple((*head, share) for head, share in zip(found.heads, shares, strict=True))

    def effects(self) -> TaskEffects:
        """The effects, once all sets are scored."""
        assert self.before is not None
        assert len(self.values) == len(self.sets)
        task, evaluation, store = self.on.task, self.on.evaluation, self.on.store
        model = model_name(store.attributes)
        every = range(len(self.sets))
        judged = len(self.lost) == len(self.sets)
        return TaskEffects(
            name=self.on.name,
            title=task.title,
            metric=task.metric,
            headline=evaluation.headline,
            higher_is_better=evaluation.higher_is_better,
            store=str(store.path),
            images=store.images,
            items=len(self.before),
            whole=self.whole,
            values=tuple(self.values[place] for place in every),
            lost=tuple(self.lost[place] for place in every) if judged else None,
            gained=tuple(self.gained[place] for place in every) if judged else None,
            groups=self.groups,
            published=dict(task.published.get(model, {})),
            published_note=task.published_note if model in task.published else "",
            margin_losses=self.margin_losses,
            greedy=self.greedy,
        )
