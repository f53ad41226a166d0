"""The tables of a study: tasks by groups of heads, and tasks by single heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.errors import counted
from headspan.frames import Tabular
from headspan.head_names import head_name
from headspan.prune.studies.effects import TaskEffects, places
from headspan.prune.studies.study_plan import HeadSet, Kind

# The kinds of rows that are means over draws, after those of groups.
DRAWN: tuple[Kind, ...] = ("random", "unmatched", "equal", "equal in layer")
_FIRST = (
    *("task", "kind", "of", "heads", "sets", "figure", "value", "change", "change_low", "change_high"),
    *("lost", "gained", "p", "p_random", "published", "published_whole", "items", "store"),
)


def study_rows(sets: Sequence[HeadSet], tasks: Sequence[TaskEffects]) -> Iterator[dict[str, Any]]:
    """The rows of a study's table, task by task: the whole model, each group with its random heads, equal numbers.

    `value` is the headline. `change_low` to `change_high` is a group's paired 95 % interval over items, and a random
    row's 95 % range over its `sets`. `p` is McNemar's; `p_random` the share of random sets that cost at least as much.
    """
    for task in tasks:
        yield _row(task, "whole", "", 0, 1, task.whole[task.headline]) | {
            "change": None,
            "published": task.published.get("whole"),
            **_figures(task, task.whole),
        }
        for place in places(sets, "group"):
            yield _group_row(sets, task, place)
            for kind in DRAWN[:2]:
                yield from _drawn_row(sets, task, kind, sets[place].of)
        for kind in DRAWN[2:]:
            for of in dict.fromkeys(sets[place].of for place in places(sets, kind)):
                yield from _drawn_row(sets, task, kind, of)


def study_columns(sets: Sequence[HeadSet], tasks: Sequence[TaskEffects]) -> Mapping[str, Sequence[Any]]:
    """The columns of `study_rows`, with every other figure of any task in a column of its own."""
    rows = list(study_rows(sets, tasks))
    names = [*_FIRST, *dict.fromkeys(name for row in rows for name in row if name not in _FIRST)]
    return {name: [row.get(name) for row in rows] for name in names}


def _row(task: TaskEffects, kind: str, of: str, heads: int, count: int, value: float) -> dict[str, Any]:
    return {
        "task": task.name,
        "kind": kind,
        "of": of,
        "heads": heads,
        "sets": count,
        "figure": task.headline,
        "value": value,
        "change": value - task.whole[task.headline],
        "published_whole": task.published.get("whole"),
        "items": task.items,
        "store": task.store,
    }


def _figures(task: TaskEffects, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures beside the headline."""
    return {name: value for name, value in figures.items() if name != task.headline}


def _group_row(sets: Sequence[HeadSet], task: TaskEffects, place: int) -> dict[str, Any]:
    name = sets[place].of
    effect, test, random = task.groups[name], task.mcnemar(place), task.random(sets, "random", name)
    return _row(task, "group", name, len(sets[place].heads), 1, task.values[place]) | {
        "change": effect.change.value,
        "change_low": effect.change.low,
        "change_high": effect.change.high,
        "lost": None if test is None else test.lost,
        "gained": None if test is None else test.gained,
        "p": None if test is None else test.p,
        "p_random": None if random is None else random.p,
        "published": task.published.get(name),
        **_figures(task, effect.figures),
    }


def _drawn_row(sets: Sequence[HeadSet], task: TaskEffects, kind: Kind, of: str) -> Iterator[dict[str, Any]]:
    found, whole = task.random(sets, kind, of), task.whole[task.headline]
    if found is not None:
        heads = len(sets[places(sets, kind, of)[0]].heads)
        yield _row(task, kind, of, heads, found.draws, found.mean) | {
            "change_low": found.low - whole,
            "change_high": found.high - whole,
            # The published random heads are as many as the high ones, and drawn without regard to layers.
            "published": task.published.get("random") if (kind, of) == ("unmatched", "high") else None,
        }


@dataclass(frozen=True, slots=True, repr=False)
class SingleHeadTable(Tabular):
    """What each task loses without one head: a row for each task and head."""

    sets: tuple[HeadSet, ...]
    tasks: tuple[TaskEffects, ...]
    # CCS and label of each single head, in the order of the sets; None where not known.
    ccs: tuple[int | None, ...]
    labels: tuple[str | None, ...]

    def __repr__(self) -> str:
        heads = counted(len(places(self.sets, "single")), "head")
        return f"SingleHeadTable({counted(len(self.tasks), 'task')}, {heads})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [row for task in self.tasks for row in self._rows(task)]
        names = ("task", "layer", "head", "label", "ccs", "figure", "value", "change", "lost", "gained", "p")
        return {name: [row[name] for row in rows] for name in (*names, "margin_loss")}

    def _rows(self, task: TaskEffects) -> Iterator[dict[str, Any]]:
        for number, place in enumerate(places(self.sets, "single")):
            ((layer, head),) = self.sets[place].heads
            test = task.mcnemar(place)
            yield {
                "task": task.name,
                "layer": layer,
                "head": head,
                "label": self.labels[number],
                "ccs": self.ccs[number],
                "figure": task.headline,
                "value": task.values[place],
                "change": task.change(place),
                "lost": None if test is None else test.lost,
                "gained": None if test is None else test.gained,
                "p": None if test is None else test.p,
                "margin_loss": None if task.margin_losses is None else task.margin_losses[number],
            }


@dataclass(frozen=True, slots=True, repr=False)
class DrawTable(Tabular):
    """Every set of random heads, and every group: a row for each task and set, with the heads."""

    sets: tuple[HeadSet, ...]
    tasks: tuple[TaskEffects, ...]

    def __repr__(self) -> str:
        return f"DrawTable({counted(len(self.tasks), 'task')}, {counted(len(self.sets), 'set')} of heads)"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        of_sets = [(task, place, each) for task in self.tasks for place, each in enumerate(self.sets)]
        return {
            "task": [task.name for task, _, _ in of_sets],
            "kind": [each.kind for _, _, each in of_sets],
            "of": [each.of for _, _, each in of_sets],
            "heads": [",".join(head_name(*head) for head in each.heads) for _, _, each in of_sets],
            "figure": [task.headline for task, _, _ in of_sets],
            "value": [task.values[place] for task, place, _ in of_sets],
            "change": [task.change(place) for task, place, _ in of_sets],
        }


@dataclass(frozen=True, slots=True, repr=False)
class GreedyTable(Tabular):
    """The headline of tasks while heads are removed one after the other: a row for each task and step."""

    tasks: tuple[TaskEffects, ...]

    def __repr__(self) -> str:
        return f"GreedyTable({counted(len(self), 'step')})"

    def __len__(self) -> int:
        return sum(len(task.greedy or ()) for task in self.tasks)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [(task, *row) for task in self.tasks for row in enumerate(task.greedy or (), 1)]
        return {
            "task": [task.name for task, _, _ in rows],
            "step": [step for _, step, _ in rows],
            "layer": [layer for _, _, (layer, _, _) in rows],
            "head": [head for _, _, (_, head, _) in rows],
            "figure": [task.headline for task, _, _ in rows],
            "value": [value for _, _, (_, _, value) in rows],
        }
