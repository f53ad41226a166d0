"""Read an attribute from image vectors with one class of features removed, beside equally many random features.

Vectors are read in three ways: by the nearest class's text (zero-shot), by a linear probe that is trained on vectors
changed alike, and by the probe of untouched vectors. The second says whether the attribute can still be read, and the
other two whether it is read as before. Source of the use: Yan et al., arXiv 2502.14888, who give no control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.features.pairs.image_vectors import embeddings
from headspan.features.pairs.units import units
from headspan.features.scores.result import FeatureScores
from headspan.features.training.dictionary import Dictionary
from headspan.features.uses.bias_result import FIXED_PROBE, PROBE, READERS, ZERO_SHOT, BiasProbe, BiasRow, Kind
from headspan.features.uses.checked import check_classes, checked_learner
from headspan.features.uses.chosen import DECIDED, chosen_classes
from headspan.features.uses.filtered import KEPT, each_filtered, mean_squares
from headspan.features.uses.matched import DRAWS, TOLERANCE, MatchedDraws, controls_of
from headspan.features.uses.probe import Probe, fit_probe
from headspan.features.uses.saved import check_name, keep_use, refuse_other
from headspan.features.uses.use import how_made
from headspan.prune.studies.statistics import SAMPLES, Interval, bootstrapped, interval
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images
from headspan.tasks.classification import Classification
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.task import Task
from headspan.tasks.truths import UNKNOWN, class_truths
from headspan.tasks.worst_group import WorstGroup

# What each reader names for the test images, by its name.
_Named = Mapping[str, Int64[np.ndarray, " test"]]


def probe_bias(
    store: Store,
    dictionary: Dictionary,
    scores: FeatureScores,
    task: Task,
    on_progress: Listener = ignore,
    *,
    classes: Sequence[str] = DECIDED,
    residual: str = KEPT,
    images: Images | None = None,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    samples: int = SAMPLES,
    seed: int = 0,
    weights: str | Path | None = None,
    run: str | None = None,
    overwrite: bool = False,
) -> BiasProbe:
    """Measure how well the classes of `task` are read from image vectors without each class of features.

    Args:
        store: The store to read.
        dictionary: The dictionary, trained on embeddings of the store's model.
        scores: The dictionary's scores, which give features their classes.
        task: A task of metric accuracy or worst_group; the latter gives figures by group too.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        classes: The classes of features that are removed, one at a time; some of `CLASSES`.
        residual: What happens to what the dictionary does not explain: kept or dropped.
        images: Some images only. Half of them, drawn by `seed`, train the probes; the others are tested.
        draws: Number of random sets for each class; each has as many features and, within `tolerance`, its energy.
        tolerance: How far the energy of a random set may be from that of the class, as a share of it.
        samples: Number of bootstrap samples of the test images.
        seed: Seed of the halves, of the draws and of the samples.
        weights: As in `text_vectors`.
        run: Save the result as `uses/<run>`; None writes nothing.
        overwrite: Replace a different result of that name.

    Raises SettingsError as `checked_learner` does, if no feature has one of the classes, or if the task has another
    metric; the errors of `evaluation_of`; and those of `keep_use`.
    """
    check_name(run)
    learner = checked_learner(store, dictionary, scores, residual)
    check_classes(task, "a probe")
    removed = chosen_classes(scores, classes)
    train, test = _halves(store, task, images, seed, on_progress)
    made = how_made(scores, residual, tolerance, draws, seed) | {
        "task": task.name,
        "train_images": len(train),
        "test_images": len(test),
        "samples": samples,
    }
    refuse_other(store, BiasProbe, run, scores, made, {"removed": ["", *removed]}, overwrite)
    evaluation = evaluation_of(task, store, on_progress, weights=weights, images=test)
    assert isinstance(evaluation, Classification | WorstGroup), "these are the evaluations of the two metrics"
    vectors = units(embeddings(store, store.rows[np.concatenate([train, test])]))
    readers = _Readers(evaluation, vectors, class_truths(store, task, images=train))
    energies = mean_squares(learner, vectors)
    controls, remarks = controls_of(removed, energies, scores, draws, seed, tolerance)
    sets = _sets(removed, controls)
    rows, lost = [readers.named(vectors)], [0.0]
    for each in each_filtered(learner, vectors, np.stack(sets), residual):
        rows.append(readers.named(each))
        lost.append(float(np.linalg.norm(vectors - each, axis=1).mean()))
        on_progress(Progress("removing features", len(rows) - 1, len(sets)))
    shares = [0.0, *(float(energies[~keep].sum() / max(energies.sum(), 1e-30)) for keep in sets)]
    found: list[BiasRow] = []
    for reader in READERS:
        outcomes = [each[reader] for each in rows]
        drawn = bootstrapped(evaluation, outcomes, samples, seed)
        table = _Rows(evaluation, reader, outcomes, drawn - drawn[0], shares, lost)
        found += [table.one(0, "untouched", "", 0), table.one(1, "reconstruction", "", 0)]
        place = 2
        for name, members in removed.items():
            count, control = int(members.sum()), controls[name]
            own, randoms = place, range(place + 1, place + 1 + len(control.members))
            found += table.beside(own, randoms, name, count)
            place = randoms.stop
    probed = BiasProbe(headline=evaluation.headline, rows=tuple(found), remarks=tuple(remarks), **made)
    return keep_use(store, probed, scores, run, overwrite, on_progress)


def _sets(
    removed: Mapping[str, Bool[np.ndarray, " feature"]], controls: Mapping[str, MatchedDraws]
) -> list[Bool[np.ndarray, " feature"]]:
    """The features that are kept: all, then those outside each class and outside each of its random sets."""
    every = np.ones(len(next(iter(removed.values()))), bool)
    found = [every]
    for name, members in removed.items():
        found += [~members, *(~each for each in controls[name].members)]
    return found


def _halves(
    store: Store, task: Task, images: Images | None, seed: int, on_progress: Listener
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " test"]]:
    """The images that train probes, and those that are tested; all have a class."""
    chosen = chosen_images(store, images)
    known = chosen[class_truths(store, task, on_progress, chosen) != UNKNOWN]
    order = np.random.default_rng(seed).permutation(len(known))
    half = len(known) // 2
    if not half:
        raise SettingsError(
            f"{store.path}: {counted(len(known), 'image')} of task {task.name} has a class, but training and testing a "
            "probe needs at least two; choose more images"
        )
    return np.sort(known[order[:half]]), np.sort(known[order[half:]])


class _Readers:
    """Reads the classes of test images from vectors, of which the first ones train the probes."""

    def __init__(
        self,
        evaluation: Classification | WorstGroup,
        untouched: Float32[np.ndarray, "vector width"],
        truths: Int64[np.ndarray, " train"],
    ) -> None:
        self._evaluation, self._truths = evaluation, truths
        self._fixed = self._fitted(untouched)

    def _fitted(self, vectors: Float32[np.ndarray, "vector width"]) -> Probe:
        return fit_probe(vectors[: len(self._truths)], self._truths, len(self._evaluation.task.classes))

    def named(self, vectors: Float32[np.ndarray, "vector width"]) -> _Named:
        """What each reader names for the test images, from vectors that were changed alike."""
        test = vectors[len(self._truths) :]
        return {
            ZERO_SHOT: np.asarray(self._evaluation.outcomes(test), np.int64),
            PROBE: self._fitted(vectors).named(test),
            FIXED_PROBE: self._fixed.named(test),
        }


class _Rows:
    """The rows of one reader."""

    def __init__(
        self,
        evaluation: Classification | WorstGroup,
        reader: str,
        outcomes: Sequence[Int64[np.ndarray, " test"]],
        changes: np.ndarray,
        energy: Sequence[float],
        lost: Sequence[float],
    ) -> None:
        self._figures = [dict(evaluation.figures(each)) for each in outcomes]
        self._headline, self._reader = evaluation.headline, reader
        self._changes, self._energy, self._lost = changes, energy, lost

    def change(self, place: int) -> float:
        """The change of the headline from untouched vectors."""
        return self._figures[place][self._headline] - self._figures[0][self._headline]

    def one(self, place: int, kind: Kind, removed: str, features: int, p_random: float | None = None) -> BiasRow:
        """The row of one way of changing vectors."""
        change = interval(self.change(place), self._changes[place])
        return BiasRow(
            self._reader,
            kind,
            removed,
            features,
            1,
            self._energy[place],
            self._lost[place],
            self._figures[place],
            change,
            p_random,
        )

    def beside(self, place: int, randoms: range, name: str, features: int) -> Iterator[BiasRow]:
        """The rows of a class and of its random sets, if it has some."""
        own, changes = self.change(place), [self.change(each) for each in randoms]
        cost = float(np.mean([each <= own for each in changes])) if changes else None
        yield self.one(place, "class", name, features, cost)
        if changes:
            figures = {
                key: float(np.mean([self._figures[each][key] for each in randoms])) for key in self._figures[place]
            }
            energy, lost = (float(np.mean([of[each] for each in randoms])) for of in (self._energy, self._lost))
            change = Interval(float(np.mean(changes)), min(changes), max(changes))
            yield BiasRow(self._reader, "random", name, features, len(changes), energy, lost, figures, change)
