"""The contents of a plan: shards, samples, units of work, and images that could not be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of the input, as it was when the run was planned."""

    url: str
    first_row: int
    images: int
    # Size in bytes and modification time in nanoseconds; None if the source does not state them.
    size_bytes: int | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of the input and its row in every array of the store.

    `offset` and `size_bytes` are the place of the encoded image in the tar. `caption`, `metadata` (JSON text, as it
    is in the tar) and `label` (the `cls` member) are None if the shard has none.
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
class BadImage:
    """An image that could not be used, and the reason; or a note on a member, with row -1 if it concerns no image."""

    row: int
    key: str
    url: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A fixed range of rows that is computed and committed as a whole."""

    index: int
    first_row: int
    rows: int
