"""What every metric offers: outcomes of image embeddings, figures of outcomes, and figures of resampled outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from headspan.tasks.task import Task


@runtime_checkable
class Evaluation(Protocol):
    """A task on the images of one store.

    An item is what is resampled to get an interval: an image, or a query of retrieval. Items of two variants are
    paired: item i is the same image or query in both.
    """

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def headline(self) -> str:
        """The name of the figure whose changes are reported, such as `accuracy`."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger headline is better; False for skews."""

    def outcomes(self, embeddings: Float32[np.ndarray, "images joint"]) -> np.ndarray:
        """One row for each item, such as the number of the class that the model names. Embeddings of any length."""

    def figures(self, outcomes: np.ndarray) -> Mapping[str, float]:
        """All figures by name, with the headline first."""

    def resampled(self, outcomes: np.ndarray, counts: Float32[np.ndarray, "draw item"]) -> Float64[np.ndarray, " draw"]:
        """The headline if item i occurs `counts[draw, i]` times, for each draw of a bootstrap."""

    def correct(self, outcomes: np.ndarray) -> np.ndarray | None:
        """Whether each item is right, `[item]`, for McNemar's test; None if items are not right or wrong."""
