"""Train one adapter for each penalty and seed, and compare what each gains with how far it moves.

The folder holds a folder for each training, such as `beta-0.05-seed-0`, and `frontier.json`. An interrupted sweep
continues with the same call, and a sweep with more penalties or seeds trains only those that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headspan.config import AUTO
from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.policy.diversity import LENGTHS
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.settings import BETAS, TrainingSettings
from headspan.describe.training.train import SAMPLES, require_trl, train
from headspan.describe.training.trained import Trained, open_trained
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.frames import Tabular
from headspan.io.files import make_folder, refusals
from headspan.io.json_files import read_json, write_json
from headspan.plots.frontier import Point, draw_frontier
from headspan.store.reader import Store
from headspan.user_paths import expand_user

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONTIER = "frontier.json"
_MEASURES = ("reward", "kl", *(f"distinct_{length}" for length in LENGTHS), "length", "cut")


@dataclass(frozen=True, slots=True, repr=False)
class Frontier(Tabular):
    """The untrained model and the trained ones, by penalty: means over seeds."""

    folder: Path
    runs: tuple[Trained, ...]

    def __repr__(self) -> str:
        return f"Frontier({counted(len(self.runs), 'training')} in {self.folder})"

    @property
    def rows(self) -> list[dict[str, float | None]]:
        """A row for the untrained model, whose beta is None, and one for each penalty, from the largest.

        Each has `beta`, `seeds`, and the mean of each measure. `_spread` is the standard deviation between seeds, and
        `_error` the standard error of the samples of one seed.
        """
        of_untrained = self.runs[0].untrained
        found: list[dict[str, float | None]] = [
            {
                "beta": None,
                "seeds": 1,
                **{name: of_untrained.get(name, 0.0) for name in _MEASURES},
                "reward_spread": 0.0,
                "kl_spread": 0.0,
                "reward_error": of_untrained["reward_error"],
                "kl_error": 0.0,
            }
        ]
        for beta in sorted({run.settings.beta for run in self.runs}, reverse=True):
            figures = [run.figures for run in self.runs if run.settings.beta == beta]
            found.append(
                {
                    "beta": beta,
                    "seeds": len(figures),
                    **{name: float(np.mean([each[name] for each in figures])) for name in _MEASURES},
                    **{f"{name}_spread": _spread([each[name] for each in figures]) for name in ("reward", "kl")},
                    **{
                        f"{name}_error": float(np.mean([each[f"{name}_error"] for each in figures]))
                        for name in ("reward", "kl")
                    },
                }
            )
        return found

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = self.rows
        return {name: [row[name] for row in rows] for name in rows[0]}

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw mean reward against divergence, with the spread between seeds, or the error of the only seed."""
        points = []
        for row in self.rows:
            kind = "spread" if (row["seeds"] or 0) > 1 else "error"
            name = "untrained" if row["beta"] is None else f"beta {row['beta']:g}"
            errors = (row[f"kl_{kind}"] or 0.0, row[f"reward_{kind}"] or 0.0)
            points.append(Point(name, row["kl"] or 0.0, row["reward"] or 0.0, *errors))
        return draw_frontier(points, title=f"Reward through {self.runs[0].target}", ax=ax)


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def train_frontier(
    store: Store | str | Path | Reward,
    out: str | Path,
    language_model: str | Path,
    *,
    betas: Sequence[float] = BETAS,
    seeds: Sequence[int] = (0,),
    classes: DescribedClasses | None = None,
    target: Target | None = None,
    questions: Sequence[str] = QUESTIONS,
    settings: TrainingSettings | None = None,
    samples: int = SAMPLES,
    device: str = AUTO,
    weights: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_progress: Listener = ignore,
) -> Frontier:
    """Train an adapter for each penalty and seed, in a folder of its own inside `out`.

    Args are those of `train`; `betas` and `seeds` replace those of `settings`. Raises SettingsError if a penalty or a
    seed is named twice, none is named, or there are no samples to compare models by; and the errors of `train`.
    """
    chosen = settings or TrainingSettings()
    for name, values in (("beta", betas), ("seed", seeds)):
        if not values or len({*values}) < len(values):
            raise SettingsError(
                f"{name} {', '.join(f'{value:g}' for value in values) or 'has no value'}: name each once"
            )
    if samples < 2:
        raise SettingsError(f"samples is {samples}, but penalties are compared by at least 2 descriptions")
    # Contradictions are refused before the first training.
    wanted = [replace(chosen, beta=beta, seed=seed) for beta in betas for seed in seeds]
    folder = expand_user(out, StoreError)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / FRONTIER).is_file())):
        raise StoreError(f"{folder}: exists and is not a folder of several trainings; choose another --out")
    require_trl()
    if not isinstance(store, Reward):
        opened = store if isinstance(store, Store) else Store(store)
        found = classes if classes is not None else described_classes(opened, on_progress=on_progress)
        store, classes, target = Reward(opened, found, target, weights=weights, on_progress=on_progress), None, None
    with refusals(folder):
        make_folder(folder)
    names = {_name(each): each for each in wanted}
    known = [] if not (folder / FRONTIER).is_file() else _names(folder)
    _write(folder, [*known, *(name for name in names if name not in known)], ())
    runs: list[Trained] = []
    for number, (name, each) in enumerate(names.items(), start=1):
        on_progress(Progress(NOTE, number, len(names), f"training {number} of {len(names)}: {name}"))
        runs.append(
            train(
                store,
                folder / name,
                language_model,
                classes=classes,
                target=target,
                questions=questions,
                settings=each,
                samples=samples,
                untrained=runs[0].untrained if runs else None,
                device=device,
                checkpoint_seconds=checkpoint_seconds,
                on_progress=_numbered(on_progress, number),
            )
        )
    frontier = Frontier(folder, tuple(runs))
    _write(folder, _names(folder), frontier.rows)
    return frontier


def open_frontier(folder: str | Path) -> Frontier:
    """Open a folder that `train_frontier` wrote; trainings that are not finished are left out.

    Raises StoreError if the folder is not there or damaged, or none is finished.
    """
    path = expand_user(folder, StoreError)
    if not (path / FRONTIER).is_file():
        raise StoreError(f"{path}: is not a folder of several trainings; name one that headspan describe train wrote")
    runs = [open_trained(path / name) for name in _names(path) if (path / name / "trained.json").is_file()]
    if not runs:
        raise StoreError(f"{path}: no training is finished; run the same headspan describe train again")
    return Frontier(path, tuple(runs))


def _numbered(on_progress: Listener, number: int) -> Listener:
    """A listener that hears of each training's steps as a stage of its own."""
    return lambda event: on_progress(event if event.stage == NOTE else replace(event, stage=f"{event.stage} {number}"))


def _name(settings: TrainingSettings) -> str:
    return f"beta-{settings.beta:g}-seed-{settings.seed}"


def _names(folder: Path) -> list[str]:
    return list(read_json(folder / FRONTIER, "delete the folder to train from the start")["runs"])


def _write(folder: Path, names: Sequence[str], rows: Sequence[Mapping[str, float | None]]) -> None:
    write_json(folder / FRONTIER, {"runs": list(names), "rows": [dict(row) for row in rows]})
