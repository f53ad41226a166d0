"""The small frozen records that pass between stages, and the events that listeners turn into progress.

Nothing here computes, reads or prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of the input, as the plan found it."""

    url: str
    first_row: int
    images: int
    # Size in bytes and modification time in nanoseconds; None where the source does not say.
    size_bytes: int | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of the input and its row in every array of the store.

    `offset` and `size_bytes` say where the encoded image lies in the tar; `caption`, `metadata` (JSON
    text, as it came) and `label` (the `cls` member) are None where the shard has none.
    """

    row: int
    key: str
    url: str
    member: str
    offset: int
    size_bytes: int
    caption: str | None = None
    label: int | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class MemberNames:
    """Which members of a sample are its image and its caption, where the usual extensions do not say it.

    `image` and `caption` are fields (what a name has behind the first dot), such as `input.jpg`, or patterns of them
    such as `*.outputs.txt`, several with commas. `caption_json` is a key of the sample's JSON that holds the caption.
    """

    image: str | None = None
    caption: str | None = None
    caption_json: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image, resized and cropped as the model wants it, not yet normalised."""

    row: int
    pixels: UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that kept its row but could not be used, and why."""

    row: int
    key: str
    url: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A fixed span of rows, written and committed as a whole."""

    index: int
    first_row: int
    rows: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call of `precompute` did."""

    path: str
    # Stored in this call, set aside in this call, and finished by earlier calls or other processes.
    images: int
    bad: list[BadImage]
    skipped: int
    # Units that were set aside, since they ended the process again and again.
    aside: list[Unit] = field(default_factory=list)
    # Of the streaming, in this call, as `StageTimes.seconds` gives them.
    seconds: dict[str, float] = field(default_factory=dict)


# The stage of an event that is a remark, its `note`, and no progress.
NOTE = "note"


@dataclass(frozen=True, slots=True)
class Progress:
    """An event: `done` of `total` things of one `stage`; `total` is None while it is unknown."""

    stage: str
    done: int
    total: int | None
    note: str = ""


Listener = Callable[[Progress], None]


def ignore(event: Progress) -> None:
    """The listener that listens to nothing."""
