"""The result of a study: what tasks lose without groups of heads, as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headspan.errors import SettingsError, counted
from headspan.frames import Tabular
from headspan.plots.pruning import Change, draw_changes, draw_single_heads
from headspan.prune.choice.groups import HeadGroup
from headspan.prune.studies.effects import RandomEffect, TaskEffects, places
from headspan.prune.studies.statistics import Interval
from headspan.prune.studies.study_plan import HeadSet
from headspan.prune.studies.study_tables import DrawTable, GreedyTable, SingleHeadTable, study_columns
from headspan.store.lineage import Lineage
from headspan.store.result_values import as_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mode = Literal["direct", "total"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Study(Tabular):
    """What tasks lose without groups of heads, beside random heads. Rows of the table are tasks and sets of heads.

    Two studies are equal if all their numbers are.
    """

    # How heads were removed: `direct` puts their contributions at their means, `total` prunes the live model.
    mode: Mode
    # The model in words, such as `ViT-L-14 openai`.
    model: str
    # The run of scores that the groups were made from; None if there was none.
    scores: str | None
    # Groups without heads are here, but not among the sets.
    groups: tuple[HeadGroup, ...]
    sets: tuple[HeadSet, ...]
    tasks: tuple[TaskEffects, ...]
    # CCS and label of each head that was removed alone, in the order of the sets; None where not known.
    ccs: tuple[int | None, ...]
    labels: tuple[str | None, ...]
    # Bootstrap samples, wanted draws of random heads, and the seed of both.
    samples: int
    draws: int
    seed: int
    # What limits the study, in sentences without a full stop.
    remarks: tuple[str, ...] = ()
    # Identifies the result, and says what it was made from.
    lineage: Lineage | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        groups = ", ".join(each.name for each in self.groups if each.heads) or "single heads"
        tasks = ", ".join(each.name for each in self.tasks)
        return (
            f"Study({self.mode} effect of {groups} on {tasks}; {self.model}, {counted(len(self.sets), 'set')} of heads)"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Study) and self.as_settings() == other.as_settings()

    __hash__ = None  # type: ignore[assignment]

    @property
    def older(self) -> str | None:
        """The run that the groups were made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else None

    def single(self) -> SingleHeadTable:
        """The table of heads that were removed alone; empty if there are none."""
        return SingleHeadTable(self.sets, self.tasks, self.ccs, self.labels)

    def greedy(self) -> GreedyTable:
        """The table of heads that were removed one after the other; empty if that was not asked for."""
        return GreedyTable(self.tasks)

    def every_set(self) -> DrawTable:
        """The table of all sets of heads, every random draw included."""
        return DrawTable(self.sets, self.tasks)

    def task(self, name: str) -> TaskEffects:
        """The effects on one task. Raises SettingsError if the study does not have it."""
        for each in self.tasks:
            if each.name == name:
                return each
        raise SettingsError(
            f"task {name!r}: the study has {', '.join(each.name for each in self.tasks)}; name one of them"
        )

    def plot(self, by: str = "group", *, task: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the change of every task without each group (`by="group"`), or single heads by CCS (`by="head"`).

        Groups have their 95 % intervals, beside the 95 % range of matched random heads. Single heads are those of one
        task, by default the first, coloured by layer. `ax` are matplotlib's axes to draw on; without it, a new pyplot
        figure is made. Returns the axes. Needs matplotlib. Raises SettingsError if `by` is neither, if there is no such
        task, or if no heads were removed alone.
        """
        if by not in ("group", "head"):
            raise SettingsError(f"by {by!r}: plot draws by 'group' or by 'head'; name one of them")
        if by == "group":
            return draw_changes(
                self._changes(), measure=_measure(self.tasks), title=f"{self.model}, {self.mode} effect", ax=ax
            )
        chosen = self.tasks[0] if task is None else self.task(task)
        single = places(self.sets, "single")
        if not single:
            raise SettingsError("no heads were removed alone; add 'single' to the groups of the study")
        points = [
            (self.sets[place].heads[0][0], score, -chosen.sign * chosen.change(place) * _scale(chosen))
            for place, score in zip(single, self.ccs, strict=True)
            if score is not None
        ]
        if not points:
            raise SettingsError("no head has a Concept Consistency Score; run headspan ccs before the study")
        unit = ", percentage points" if chosen.is_share else ""
        return draw_single_heads(
            points, measure=f"loss of {chosen.headline}{unit}", title=f"{chosen.name}: one head removed", ax=ax
        )

    def _changes(self) -> dict[str, dict[str, Change]]:
        """The changes to draw, by task and group."""
        found: dict[str, dict[str, Change]] = {}
        for task in self.tasks:
            found[task.name] = {}
            for name, effect in task.groups.items():
                found[task.name][name] = _change(task, effect.change, task.random(self.sets, "random", name))
        return found

    def as_settings(self) -> dict[str, Any]:
        """Everything but the lineage as JSON values, as a run is saved; `study.read_study` reads them."""
        found: dict[str, Any] = as_json({name: getattr(self, name) for name in _SAVED})
        return found

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return study_columns(self.sets, self.tasks)


_SAVED = (
    *("mode", "model", "scores", "groups", "sets", "tasks", "ccs", "labels", "samples", "draws", "seed", "remarks"),
)


def _scale(task: TaskEffects) -> float:
    """Shares are drawn as percentage points."""
    return 100.0 if task.is_share else 1.0


def _measure(tasks: Sequence[TaskEffects]) -> str:
    units = {"percentage points" if each.is_share else "" for each in tasks} - {""}
    return f"change of {', '.join(dict.fromkeys(each.headline for each in tasks))}" + "".join(
        f", {each}" for each in units
    )


def _change(task: TaskEffects, change: Interval, random: RandomEffect | None) -> Change:
    """A change as it is drawn: of a share in percentage points."""
    scale, whole = _scale(task), task.whole[task.headline]
    drawn = (
        None
        if random is None
        else (scale * (random.mean - whole), scale * (random.low - whole), scale * (random.high - whole))
    )
    return Change(scale * change.value, scale * change.low, scale * change.high, drawn)
