"""Retrieval of videos, or of images, by their captions.

A video's vector is the mean of the unit embeddings of its frames; its score for a caption is the dot product with the
caption's unit vector. An image is a video of one frame. The rank of a caption's own video among all videos gives recall
at 1, 5, 10 and 50, and the median and the mean rank.

Source: Madasu, Lal, Howard, arXiv 2503.11103, and its published code: the first caption of each video is a query, and
means of frames are not made unit again, so a video whose frames resemble each other scores higher. Its code skips
videos that it cannot read, and fails when it looks for them.

Ties: scores within 1e-6 count as equal, since float32 cannot tell them apart. The rank is then the mean of the ranks
that the equal videos share, and recall at k is the share of their orders in which the caption's own video is among the
first k. A model that gives all videos the same vector thus scores as chance does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from headspan.errors import SettingsError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.captioned import NONE, captioned_groups
from headspan.tasks.task import Task
from headspan.texts.vectors import text_vectors

_RECALLS = (1, 5, 10, 50)
_SAME_SCORE = 1e-6
# Numbers of one block: of scores, or of embeddings.
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Retrieval:
    """A retrieval task on a store. Its items are the captions, in the order of their videos.

    Settings of the task: `captions`, `first` (as published) or `all`, and `renormalised`, whether means of frames are
    made unit again (false, as published). `outcomes` hold for each caption how many videos score higher than its own,
    and how many others the same. Figures: `R@1`, `R@5`, `R@10`, `R@50`, `median_rank` and `mean_rank`, and each of them
    for a random order, with `chance_` before its name. Captions of one video are not independent, so intervals from
    `resampled` are too narrow with `all`, unless whole videos are drawn.
    """

    task: Task
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    # Unit vectors of the captions.
    vectors: Float32[np.ndarray, "query joint"]
    # The number of each caption's video, and of each image's; -1 for an image that is not used.
    truths: Int64[np.ndarray, " query"]
    video: Int64[np.ndarray, " images"]

    headline = "R@1"
    higher_is_better = True

    @classmethod
    def of(
        cls,
        task: Task,
        store: Store,
        on_progress: Listener = ignore,
        *,
        weights: str | Path | None = None,
        images: Images | None = None,
    ) -> Retrieval:
        """The task on the images of a store, or on some; `weights` is as in `text_vectors`.

        Images of one key in one shard are the frames of a video. Frames that could not be used are left out of the
        mean. Videos without a usable frame or a caption are left out, and `on_progress` is told. Raises SettingsError
        if fewer than two videos are left or a setting is unknown, and the errors of `text_vectors`.
        """
        every = _setting(task, "captions", ("first", "all")) == "all"
        _setting(task, "renormalised", (False, True))
        groups = captioned_groups(store, images)
        kept = [number for number, captions in enumerate(groups.captions) if captions]
        if without := len(groups.keys) - len(kept):
            note = f"task {task.name}: {counted(without, 'video')} without a caption left out"
            on_progress(Progress(NOTE, 1, 1, note))
        if len(kept) < 2:
            raise SettingsError(
                f"{store.path}: task {task.name} needs videos or images with captions, but {len(kept)} of "
                f"{len(groups.keys):,} have one; write .txt or .json members beside them (headspan frames does), and "
                "precompute again"
            )
        number = np.full(len(groups.keys) + 1, NONE, np.int64)
        number[kept] = np.arange(len(kept))
        chosen = [groups.captions[each][: None if every else 1] for each in kept]
        captions = tuple(caption for each in chosen for caption in each)
        truths = np.repeat(np.arange(len(kept)), [len(each) for each in chosen]).astype(np.int64)
        texts = list(dict.fromkeys(captions))
        places = {text: place for place, text in enumerate(texts)}
        vectors = text_vectors(store, texts, on_progress, weights=weights)
        if len(texts) < len(captions):
            vectors = vectors[[places[caption] for caption in captions]]
        # The last number is that of images which are not used.
        return cls(task, tuple(groups.keys[each] for each in kept), captions, vectors, truths, number[groups.group])

    def __repr__(self) -> str:
        return f"Retrieval({self.task.name}: {counted(self.items, 'caption')}, {counted(len(self.keys), 'video')})"

    @property
    def items(self) -> int:
        """The number of captions."""
        return len(self.captions)

    def video_vectors(self, embeddings: Float32[np.ndarray, "images joint"]) -> Float32[np.ndarray, "video joint"]:
        """The mean of the unit embeddings of each video's frames, made unit again if the task says so."""
        assert len(embeddings) == len(self.video), "the embeddings are those of the evaluation's images"
        sums = np.zeros((len(self.keys), embeddings.shape[1]), np.float64)
        step = max(1, _BLOCK_NUMBERS // embeddings.shape[1])
        for first in range(0, len(embeddings), step):
            numbers = self.video[first : first + step]
            used = numbers != NONE
            units = embeddings[first : first + step][used].astype(np.float64)
            units /= np.linalg.norm(units, axis=1, keepdims=True)
            # Frames of a video are usually neighbours, and are then added at once.
            runs = np.flatnonzero(np.diff(numbers[used], prepend=NONE))
            np.add.at(sums, numbers[used][runs], np.add.reduceat(units, runs))
        means = sums / np.bincount(self.video[self.video != NONE], minlength=len(self.keys))[:, None]
        if _setting(self.task, "renormalised", (False, True)):
            means /= np.linalg.norm(means, axis=1, keepdims=True)
        return means.astype(np.float32)

    def outcomes(self, embeddings: Float32[np.ndarray, "images joint"]) -> Int64[np.ndarray, "query 2"]:
        """How many videos score higher than each caption's own, and how many others the same."""
        videos = self.video_vectors(embeddings)
        found = np.empty((self.items, 2), np.int64)
        step = max(1, _BLOCK_NUMBERS // len(videos))
        for first in range(0, self.items, step):
            some = slice(first, first + step)
            scores = self.vectors[some] @ videos.T
            scores -= np.take_along_axis(scores, self.truths[some, None], axis=1)
            found[some, 0] = (scores > _SAME_SCORE).sum(axis=1)
            # The video's own score is among them.
            found[some, 1] = (np.abs(scores) <= _SAME_SCORE).sum(axis=1) - 1
        return found

    def correct(self, outcomes: Int64[np.ndarray, "query 2"]) -> Bool[np.ndarray, " query"]:
        """Whether a caption's own video scores higher than every other one."""
        return np.asarray(outcomes.sum(axis=1) == 0)

    def figures(self, outcomes: Int64[np.ndarray, "query 2"]) -> Mapping[str, float]:
        """Recall as a share from 0 to 1, and ranks from 1, each with its value for a random order."""
        ranks, videos = 1 + outcomes[:, 0] + outcomes[:, 1] / 2, len(self.keys)
        chance = (videos + 1) / 2
        return {
            **{f"R@{k}": float(_recalled(outcomes, k).mean()) for k in _RECALLS},
            "median_rank": float(np.median(ranks)),
            "mean_rank": float(ranks.mean()),
            **{f"chance_R@{k}": min(1.0, k / videos) for k in _RECALLS},
            "chance_median_rank": chance,
            "chance_mean_rank": chance,
        }

    def resampled(
        self, outcomes: Int64[np.ndarray, "query 2"], counts: Float32[np.ndarray, "draw query"]
    ) -> Float64[np.ndarray, " draw"]:
        """Recall at 1 if caption i occurs `counts[draw, i]` times, for each draw; the videos stay the same."""
        right = counts @ _recalled(outcomes, 1).astype(np.float32)
        return np.asarray(right / counts.sum(axis=1), np.float64)


def _recalled(outcomes: Int64[np.ndarray, "query 2"], k: int) -> Float64[np.ndarray, " query"]:
    """The share of the orders of equal videos in which a caption's own video is among the first k."""
    higher, same = outcomes.T
    return np.asarray(np.clip((k - higher) / (same + 1), 0, 1), np.float64)


def _setting(task: Task, name: str, values: tuple[str | bool, ...]) -> str | bool:
    """A setting of the task, by default the first of `values`. Raises SettingsError if it is none of them."""
    found = task.settings.get(name, values[0])
    for value in values:
        if type(found) is type(value) and found == value:
            return value
    shown = " or ".join(str(value).lower() for value in values)
    raise SettingsError(f"task {task.name}: {name} is {found!r}; set it to {shown}")
