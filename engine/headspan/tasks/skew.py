"""Bias of rankings: how far the groups in a prompt's top k images differ from the groups of all images.

For each prompt, such as an occupation, images are ranked by their cosine with the prompt's vector, which is the mean of
its phrases' unit vectors, normalised again. With `p` a group's share in the top k and `q` its share in the data,

* skew of the group `ln(p ÷ q)`; MaxSkew@k and MinSkew@k are the largest and the smallest skew of any group;
* NDKL@k `Σ_i KL(p_i ‖ q) ÷ log2(i + 1)` over the first i = 1 to k images, divided by `Σ_i 1 ÷ log2(i + 1)`.

Source: Geyik, Ambler, Kenthapadi, "Fairness-Aware Ranking in Search & Recommendation Systems", KDD 2019. As in the
published code of Madasu, Lal, Howard, arXiv 2503.11103, only groups that are present in the top k have a skew, and the
published figure is the sum of MaxSkew over all prompts. Its code counts groups in order of first appearance but numbers
them by a fixed list, so shares of groups may be exchanged in the published values; here they are not.

The setting `smoothing = a` makes `p = (count + a) ÷ (k + a · groups)`, so that absent groups have a skew too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.frames import Tabular
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.merged_groups import merged_groups
from headspan.tasks.ranked_groups import first_counts, group_shares, ndkl_of, skews_of
from headspan.tasks.task import Task
from headspan.tasks.truths import UNKNOWN, Groups
from headspan.tasks.zero_shot import embed_classes

# The published length of a ranking.
TOP = 10
_FIGURES = ("max_skew_sum", "max_skew_mean", "min_skew_sum", "min_skew_mean", "ndkl_mean")


def occupations() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 104 occupations of the published study, and its four phrases with `{p}` for an occupation."""
    text = (files("headspan.tasks") / "occupations.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    return tuple(found["occupations"]), tuple(found["phrases"])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PromptSkews(Tabular):
    """The skew of every prompt's top k for the groups of one key; `evaluation.per_prompt` makes it."""

    key: str
    k: int
    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    # How many of a prompt's top k images belong to each group; images of no group are not ranked.
    counts: Int[np.ndarray, "prompt group"]
    # Shares of the groups among all ranked images.
    shares: Float64[np.ndarray, " group"]
    # `ln(p ÷ q)`; NaN for a group that is absent from the top k, without smoothing.
    skews: Float64[np.ndarray, "prompt group"]
    ndkl: Float64[np.ndarray, " prompt"]

    def __repr__(self) -> str:
        return f"PromptSkews({self.key!r}: {counted(len(self.prompts), 'prompt')}, k {self.k})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        most, least = np.nanargmax(self.skews, axis=1), np.nanargmin(self.skews, axis=1)
        rows = np.arange(len(self.prompts))
        return {
            "prompt": list(self.prompts),
            "max_skew": self.skews[rows, most].tolist(),
            "max_group": [self.groups[group] for group in most],
            "min_skew": self.skews[rows, least].tolist(),
            "min_group": [self.groups[group] for group in least],
            "ndkl": self.ndkl.tolist(),
            **{f"top_{name}": self.counts[:, place].tolist() for place, name in enumerate(self.groups)},
        }


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Skew:
    """The evaluation of a task of metric `skew`. Items are images; outcomes are their cosines with every prompt.

    Settings of the task: `k`, the length of a ranking (10), and `smoothing` (0), as in the module's docstring. Figures
    are given for each key of the task's `groups`; the headline is the sum of MaxSkew@k over prompts for the first key.
    """

    task: Task
    prompts: tuple[str, ...]
    vectors: Float32[np.ndarray, "prompt joint"]
    # By each key of the task's `groups`.
    groups: Mapping[str, Groups]

    higher_is_better = False

    @classmethod
    def of(
        cls,
        task: Task,
        store: Store,
        on_progress: Listener = ignore,
        *,
        weights: str | Path | None = None,
        images: Images | None = None,
    ) -> Skew:
        """The task on the images of a store, or on some; `weights` is as in `text_vectors`.

        The subjects of the prompts are the task's `classes`, or the 104 occupations; the phrases its `templates`, with
        `{p}` for the subject, or the four published ones. Raises SettingsError if the task names no groups, if a
        setting is out of range, if fewer than k images have a group, or if a phrase has no `{p}`, and the errors of
        `merged_groups` and `text_vectors`.
        """
        known, phrases = occupations()
        subjects, templates = task.classes or known, task.templates or phrases
        if without := [phrase for phrase in templates if "{p}" not in phrase]:
            raise SettingsError(
                f"task {task.name}: template {without[0]!r} has no {{p}}, the prompt's subject; write it"
            )
        if not task.groups:
            raise SettingsError(f"task {task.name}: names no key of the metadata in groups; name one, such as race")
        k = _top(task)
        _smoothing(task)
        groups = {key: merged_groups(task, store, key, images) for key in task.groups}
        for key, each in groups.items():
            if (ranked := int((each.numbers != UNKNOWN).sum())) < k:
                raise SettingsError(
                    f"{store.path}: {counted(ranked, 'image')} with {key!r} cannot fill a ranking of k = {k}, as task "
                    f"{task.name} asks; set a smaller k, or use a store with more images"
                )
        prompts = {subject: [phrase.replace("{p}", subject) for phrase in templates] for subject in subjects}
        classes = embed_classes(store, {task.name: prompts}, on_progress, weights=weights)[task.name]
        return cls(task, classes.names, classes.vectors, groups)

    def __repr__(self) -> str:
        return f"Skew({self.task.name}: {counted(len(self.prompts), 'prompt')}, groups by {', '.join(self.groups)})"

    @property
    def k(self) -> int:
        """The length of a ranking."""
        return _top(self.task)

    @property
    def headline(self) -> str:
        """The sum of MaxSkew@k over prompts, for the first key."""
        return f"{_FIGURES[0]}_{next(iter(self.groups))}"

    def outcomes(self, embeddings: Float32[np.ndarray, "images joint"]) -> Float32[np.ndarray, "images prompt"]:
        """The cosine of every image with every prompt."""
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines: Float32[np.ndarray, "images prompt"] = (embeddings @ self.vectors.T) / lengths
        return cosines

    def figures(self, outcomes: Float32[np.ndarray, "images prompt"]) -> dict[str, float]:
        """Sum and mean of MaxSkew@k and MinSkew@k over prompts and the mean of NDKL@k, for each key."""
        found: dict[str, float] = {}
        for key in self.groups:
            each = self.per_prompt(outcomes, key)
            most, least = np.nanmax(each.skews, axis=1), np.nanmin(each.skews, axis=1)
            values = most.sum(), most.mean(), least.sum(), least.mean(), each.ndkl.mean()
            found |= {f"{name}_{key}": float(value) for name, value in zip(_FIGURES, values, strict=True)}
        return found

    def resampled(
        self, outcomes: Float32[np.ndarray, "images prompt"], counts: Float32[np.ndarray, "draw images"]
    ) -> Float64[np.ndarray, " draw"]:
        """The headline if image i occurs `counts[draw, i]` times; shares of groups are those of the draw."""
        groups = next(iter(self.groups.values()))
        shares, found = group_shares(groups, counts), np.zeros(len(counts))
        for cosines in outcomes.T:
            firsts = first_counts(cosines, groups, counts, [self.k])
            found += np.nanmax(skews_of(firsts, shares, _smoothing(self.task))[0], axis=1)
        return found

    def correct(self, outcomes: np.ndarray) -> None:
        """None: images are not right or wrong."""
        return

    def per_prompt(self, outcomes: Float32[np.ndarray, "images prompt"], key: str | None = None) -> PromptSkews:
        """Counts, skews and NDKL of every prompt, by the groups of `key`, by default the task's first.

        Raises SettingsError if the task does not have the key.
        """
        key = next(iter(self.groups)) if key is None else key
        if key not in self.groups:
            raise SettingsError(f"task {self.task.name} has no groups by {key!r}, only by {', '.join(self.groups)}")
        groups = self.groups[key]
        once = np.ones((1, len(outcomes)), np.float32)
        shares, smoothing, lengths = group_shares(groups, once), _smoothing(self.task), range(1, self.k + 1)
        firsts = [first_counts(cosines, groups, once, lengths) for cosines in outcomes.T]
        return PromptSkews(
            key,
            self.k,
            self.prompts,
            groups.names,
            np.array([each[-1, 0] for each in firsts]).astype(int),
            shares[0],
            np.array([skews_of(each[-1:], shares, smoothing)[0, 0] for each in firsts]),
            np.array([ndkl_of(each, shares, smoothing)[0] for each in firsts]),
        )


def _top(task: Task) -> int:
    k = task.settings.get("k", TOP)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise SettingsError(f"task {task.name}: k = {k!r} is not a length of a ranking; give a whole number from 1")
    return k


def _smoothing(task: Task) -> float:
    smoothing = task.settings.get("smoothing", 0)
    if isinstance(smoothing, bool | str) or not 0 <= smoothing < np.inf:
        raise SettingsError(f"task {task.name}: smoothing = {smoothing!r} is not a number of images; give 0 or more")
    return float(smoothing)
