"""What several answers share: a base model, heads, images found by a query, and errors."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Answer(BaseModel):
    """A part of an answer: immutable, and without other fields than those named."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def finite(value: float | None) -> float | None:
    """A number of NumPy as a float; None for NaN and infinities, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else float(value)


# A number, or null where it is not known.
Number = Annotated[float | None, BeforeValidator(finite)]


class Failure(Answer):
    """Why a request was not answered: one sentence that says what came, what was expected, and what to do."""

    error: str
    # What the page may do about it: "model_loading" and "model_failed" for requests that need the model's process.
    kind: str = "refused"


class Hit(Answer):
    """An image that a query found, with its score."""

    # The image's row, which never changes while a store grows. Every address names images by their rows.
    row: int
    key: str
    caption: str | None
    label: int | None
    class_name: str | None
    score: Number


class HeadName(Answer):
    """A head by its layer and number, and by its name in the field's notation, such as `L22.H13`."""

    layer: int
    head: int
    name: str


class NearText(Answer):
    """A text, and its cosine with what it is near: an image, or a feature's direction."""

    text: str
    cosine: Number
