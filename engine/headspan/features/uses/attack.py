"""Attack the pixels of images whose class is named by some features of the embedding alone, through the live model.

Every classifier is attacked twice: by images made against the plain classifier, and by an adaptive attack that goes
through the filter of features. Only the second says whether a classifier is robust. Source of the claim that is tested:
Yan et al., arXiv 2502.14888, who attack the plain model only and give no control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from headspan.config import AUTO
from headspan.errors import SettingsError, SourceError, counted
from headspan.events import Listener, Progress, ignore
from headspan.features.pairs.image_vectors import embeddings
from headspan.features.pairs.units import units
from headspan.features.scores.result import FeatureScores
from headspan.features.training.dictionary import Dictionary
from headspan.features.uses.attack_filters import Filter, filters_of
from headspan.features.uses.attack_result import GOALS, TARGETED, UNTARGETED, AttackRow, AttackStudy, Kind
from headspan.features.uses.attacker import Attacker, Target
from headspan.features.uses.checked import check_classes, checked_learner
from headspan.features.uses.defence import GRADIENTS, STRAIGHT_THROUGH, Defence
from headspan.features.uses.filtered import DROPPED, mean_squares
from headspan.features.uses.live_model import LiveModel
from headspan.features.uses.matched import TOLERANCE
from headspan.features.uses.pgd import EPSILONS, REACH, Search
from headspan.features.uses.saved import check_name, keep_use, refuse_other
from headspan.features.uses.stored_pixels import stored_pixels
from headspan.features.uses.use import how_made
from headspan.prune.studies.statistics import SAMPLES, Interval, interval, resampling_counts
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images
from headspan.tasks.classification import task_classes
from headspan.tasks.task import Task
from headspan.tasks.truths import UNKNOWN, class_truths

# How many images are attacked, and how many random sets each classifier has.
IMAGES, DRAWS = 200, 3
# The classes of features that a classifier keeps alone, and those that one keeps all others of.
KEPT_ALONE = REMOVED = ("image-dominant", "cross-modal")
# Embeddings of other images are farther away than this from the stored ones, as a share of their length.
_SAME_IMAGE = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class _Shares:
    """What became of the images of one classifier at one epsilon: masks of those on which the attack succeeds."""

    clean: Bool[np.ndarray, " image"]
    noise: Bool[np.ndarray, " image"]
    transferred: Bool[np.ndarray, " image"]
    adaptive: Bool[np.ndarray, " image"]
    by_gradient: Mapping[str, Bool[np.ndarray, " image"]]


def attack(
    store: Store,
    dictionary: Dictionary,
    scores: FeatureScores,
    task: Task,
    on_progress: Listener = ignore,
    *,
    keep: Sequence[str] = KEPT_ALONE,
    remove: Sequence[str] = REMOVED,
    residual: str = DROPPED,
    images: Images | None = None,
    most: int = IMAGES,
    epsilons: Sequence[float] = EPSILONS,
    search: Search | None = None,
    goals: Sequence[str] = GOALS,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    samples: int = SAMPLES,
    seed: int = 0,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
    device: str = AUTO,
    run: str | None = None,
    overwrite: bool = False,
) -> AttackStudy:
    """Attack zero-shot classification by `task`, plain and with classes of features kept or removed.

    Args:
        store: The store to read. Its images are read from their shards.
        dictionary: The dictionary, trained on embeddings of the store's model.
        scores: The dictionary's scores, which give features their classes.
        task: A task of metric accuracy or worst_group.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        keep: Classes of features; for each, a classifier keeps it alone.
        remove: Classes of features; for each, a classifier keeps all other features.
        residual: What happens to what the dictionary does not explain: kept or dropped.
        images: The images that `most` are drawn from, by `seed`; those without a class are left out.
        most: The most images that are attacked.
        epsilons: How far a pixel may move, as shares of its full range, such as 4 / 255.
        search: Steps and restarts of an attack.
        goals: Some of GOALS: any wrong class, or one that is drawn for each image.
        draws: Number of random sets for each classifier; each has as many features and, within `tolerance`, its energy.
        tolerance: How far the energy of a random set may be from that of the class, as a share of it.
        samples: Number of bootstrap samples of the images.
        seed: Seed of the choice of images, of targets, of starts, of the draws and of the samples.
        weights: As in `text_vectors`.
        shards: Where all the shards are now, in the order of the run, if they have moved.
        device: `auto`, `cpu` or `cuda:0`.
        run: Save the result as `uses/<run>`; None writes nothing.
        overwrite: Replace a different result of that name.

    Raises SettingsError as `checked_learner` does, if no feature has one of the classes, or if a number is out of
    range; SourceError if an image cannot be read or has changed; ModelError if the model cannot be loaded or is not
    the store's; and the errors of `keep_use`.
    """
    check_name(run)
    search = search or Search()
    _check(epsilons, goals)
    learner = checked_learner(store, dictionary, scores, residual)
    check_classes(task, "an attack")
    chosen, truths = _images(store, task, images, most, seed, on_progress)
    model = LiveModel.of(store, on_progress, weights, device)
    learner = learner.to(model.device)
    stored = embeddings(store, store.rows[chosen])
    filters, remarks = filters_of(scores, mean_squares(learner, units(stored)), keep, remove, draws, seed, tolerance)
    made = how_made(scores, residual, tolerance, draws, seed) | {
        "task": task.name,
        "images": len(chosen),
        "steps": search.steps,
        "step_share": REACH / search.steps,
        "restarts": search.restarts,
        "samples": samples,
    }
    attacked = {"goal": goals, "epsilon": epsilons, "classifier": [each.name for each in filters]}
    refuse_other(store, AttackStudy, run, scores, made, attacked, overwrite)
    names = torch.from_numpy(task_classes(task, store, on_progress, weights=weights).vectors.copy()).to(model.device)
    pixels = torch.from_numpy(stored_pixels(store, chosen, shards)).to(model.device)
    pixels = pixels.permute(0, 3, 1, 2).float().div_(255)
    _refuse_others(store, model, pixels, stored)
    rows: list[AttackRow] = []
    for goal in goals:
        classes = truths if goal == UNTARGETED else _targets(truths, len(task.classes), seed)
        wanted = torch.from_numpy(classes).to(model.device)
        attacker = Attacker(pixels, wanted, goal == TARGETED, search, seed)
        defences = [
            Defence(model, names)
            if each.keep is None
            else Defence(model, names, learner, torch.from_numpy(each.keep).to(model.device), residual)
            for each in filters
        ]
        found = _attacked(attacker, filters, defences, epsilons, goal, on_progress)
        rows += _rows(goal, filters, found, epsilons, samples, seed)
    study = AttackStudy(rows=tuple(rows), **made)
    if not study.works:
        remarks.append("the attack does not beat noise of equal size on the plain classifier, so it shows nothing")
    return keep_use(store, replace(study, remarks=tuple(remarks)), scores, run, overwrite, on_progress)


def _check(epsilons: Sequence[float], goals: Sequence[str]) -> None:
    if wrong := [each for each in epsilons if not 0 < each <= 1]:
        raise SettingsError(f"epsilon {wrong[0]:g}: give shares of a pixel's full range, above 0 and at most 1")
    if not epsilons:
        raise SettingsError("epsilons: there are none; give at least one, such as 4 / 255")
    if not goals or any(each not in GOALS for each in goals):
        raise SettingsError(f"goals {', '.join(goals) or 'empty'}: give some of {', '.join(GOALS)}")


def _images(
    store: Store, task: Task, images: Images | None, most: int, seed: int, on_progress: Listener
) -> tuple[Int64[np.ndarray, " image"], Int64[np.ndarray, " image"]]:
    """The images that are attacked, and the number of the class of each."""
    if most < 1:
        raise SettingsError(f"images {most}: give a number from 1")
    every = chosen_images(store, images)
    truths = class_truths(store, task, on_progress, every)
    known = np.flatnonzero(truths != UNKNOWN)
    picked = np.sort(np.random.default_rng(seed).permutation(known)[:most])
    return every[picked], truths[picked]


def _targets(truths: Int64[np.ndarray, " image"], classes: int, seed: int) -> Int64[np.ndarray, " image"]:
    """A wrong class for each image."""
    away = np.random.default_rng([seed, 1]).integers(1, classes, size=len(truths))
    return np.asarray((truths + away) % classes, np.int64)


def _refuse_others(store: Store, model: LiveModel, pixels: Tensor, stored: np.ndarray) -> None:
    """Raise SourceError if the live model does not give the images' stored embeddings."""
    with torch.no_grad():
        live = torch.cat([model.embed(some) for some in torch.split(pixels, 128)]).cpu().numpy()
    away = np.linalg.norm(live - stored, axis=1) / np.linalg.norm(stored, axis=1)
    if not (away < _SAME_IMAGE).all():
        raise SourceError(
            f"{store.path}: {counted(int((~(away < _SAME_IMAGE)).sum()), 'image')} of {len(away):,} in the shards "
            "differ from those that the store was made from; restore the shards"
        )


def _attacked(
    attacker: Attacker,
    filters: Sequence[Filter],
    defences: Sequence[Defence],
    epsilons: Sequence[float],
    goal: str,
    on_progress: Listener,
) -> dict[float, list[_Shares]]:
    """What becomes of the images of each classifier at each epsilon, the smallest one first."""
    clean = [attacker.succeeds(defence, attacker.pixels) for defence in defences]
    targets = [Target(defence, own) for defence, own in zip(defences, clean, strict=True)]
    found: dict[float, list[_Shares]] = {}
    done = 0
    for epsilon in sorted(epsilons):
        noisy, strongest = attacker.noisy(epsilon), attacker.strongest(defences[0], epsilon)
        found[epsilon] = []
        for place, (each, target) in enumerate(zip(filters, targets, strict=True)):
            noise, transferred = (attacker.succeeds(target.defence, own) for own in (noisy, strongest))
            target.fallen = target.fallen | noise | transferred
            if each.kind != "plain":
                gradients = _gradients(target.defence)
                attacker.attack(target, epsilon, gradients, each.kind != "random", place)
            # Gradients of random sets attack only what is left by others, so they are not shown.
            alone = {} if each.kind == "random" else target.by_gradient
            by_gradient = {name: (own | clean[place]).cpu().numpy() for name, own in alone.items()}
            found[epsilon].append(
                _Shares(
                    clean=clean[place].cpu().numpy(),
                    noise=noise.cpu().numpy(),
                    transferred=transferred.cpu().numpy(),
                    adaptive=target.fallen.cpu().numpy(),
                    by_gradient=by_gradient,
                )
            )
            done += 1
            on_progress(Progress(f"{goal} attacks", done, len(filters) * len(epsilons)))
    return found


def _gradients(defence: Defence) -> tuple[str, ...]:
    """The gradients that there are: a learner without an encoder's matrix has no straight-through one."""
    names = dict(defence.learner.named_parameters()) if defence.learner is not None else {}
    return GRADIENTS if {"W_enc", "b_enc"} <= set(names) else tuple(n for n in GRADIENTS if n != STRAIGHT_THROUGH)


def _rows(
    goal: str,
    filters: Sequence[Filter],
    found: Mapping[float, Sequence[_Shares]],
    epsilons: Sequence[float],
    samples: int,
    seed: int,
) -> Iterator[AttackRow]:
    """The rows of a goal: for each epsilon the classifiers, and the mean over the random sets of each."""

    def share(succeeded: Bool[np.ndarray, " image"]) -> float:
        # Of images named rightly if the goal is to avoid that.
        return float(succeeded.mean() if goal == TARGETED else 1 - succeeded.mean())

    for epsilon in epsilons:
        groups: dict[tuple[Kind, str], list[tuple[Filter, _Shares]]] = {}
        for each, shares in zip(filters, found[epsilon], strict=True):
            groups.setdefault((each.kind, each.name), []).append((each, shares))
        for (kind, name), members in groups.items():
            own = [share(shares.adaptive) for _, shares in members]
            if kind == "random":
                adaptive = Interval(float(np.mean(own)), min(own), max(own))
            else:
                mask = members[0][1].adaptive.astype(np.float64)
                counts = np.concatenate(list(resampling_counts(len(mask), samples, seed)))
                drawn = counts @ (mask if goal == TARGETED else 1 - mask) / len(mask)
                adaptive = interval(own[0], drawn)
            means = {
                which: float(np.mean([share(getattr(shares, which)) for _, shares in members]))
                for which in ("clean", "noise", "transferred")
            }
            yield AttackRow(
                goal=goal,
                kind=kind,
                classifier=name,
                features=members[0][0].features,
                sets=len(members),
                energy=float(np.mean([each.energy for each, _ in members])),
                epsilon=epsilon,
                adaptive=adaptive,
                by_gradient={each: share(mask) for each, mask in members[0][1].by_gradient.items()},
                **means,
            )
