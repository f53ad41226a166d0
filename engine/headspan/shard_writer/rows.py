"""Samples as rows of named columns, from data sets of `datasets`, pandas frames, and iterables.

Which column is the image, the caption and the class is guessed by name, unless the caller names it.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headspan.errors import SettingsError

# The first of these names that a table has, in any case, is used.
_GUESSES = {
    "image": ("image", "img", "jpg", "png", "webp", "image_path", "path", "file", "file_name", "filename", "filepath"),
    "caption": ("caption", "text", "txt", "captions", "sentence", "description"),
    "label": ("label", "cls", "class", "class_label"),
    "key": ("key", "__key__"),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of the columns for image, caption, class and key; None if there is none."""

    image: str | None
    caption: str | None
    label: str | None
    key: str | None

    @classmethod
    def of(cls, names: Iterable[str], chosen: Mapping[str, str | None]) -> Roles:
        """Those that are `chosen`, and guesses for the others. Raises SettingsError if a chosen one is missing."""
        by_lower = {name.lower(): name for name in reversed(list(names))}
        found: dict[str, str | None] = {}
        for role, guesses in _GUESSES.items():
            wanted = chosen.get(role)
            if wanted is not None and wanted not in by_lower.values():
                raise SettingsError(
                    f"{role}={wanted!r}: there is no such column; choose from {', '.join(by_lower.values())}"
                )
            found[role] = wanted or next((by_lower[guess] for guess in guesses if guess in by_lower), None)
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, the names of their columns for caption and class, and the names of the classes if labels are numbers."""

    # A key or None, the image, and the other columns.
    rows: Iterator[tuple[str | None, object, dict[str, Any]]]
    chosen: Mapping[str, str | None]
    classes: tuple[str, ...] = ()


def rows_of(samples: Any, chosen: Mapping[str, str | None]) -> Source:
    """The rows of a `datasets.Dataset`, a pandas frame, or an iterable of (key, image, metadata)."""
    package = type(samples).__module__.partition(".")[0]
    if package == "datasets" and isinstance(samples, Mapping):
        raise SettingsError(
            f"a {type(samples).__name__} holds several splits ({', '.join(samples)}); give one, as in data['train']"
        )
    if package == "datasets":
        return _of_datasets(samples, chosen)
    if package == "pandas":
        return _of_frame(samples, chosen)
    if not isinstance(samples, Iterable) or isinstance(samples, (str, bytes, Mapping)):
        raise SettingsError(
            f"samples are of type {type(samples).__name__}; give a datasets.Dataset, a pandas frame, or an iterable of "
            "(key, image, metadata)"
        )
    return Source(_of_iterable(samples), chosen)


def split_metadata(columns: Mapping[str, Any], chosen: Mapping[str, str | None]) -> tuple[Any, Any, dict[str, Any]]:
    """The caption, the class and the other columns of a row; None and NaN count as missing."""
    there = {name: value for name, value in columns.items() if not _is_missing(value)}
    known = {role: chosen.get(role) for role in ("caption", "label")}
    # A sample of an iterable may lack what others have.
    roles = Roles.of(columns, {role: name for role, name in known.items() if name in columns})
    caption = there.pop(roles.caption, None) if roles.caption else None
    label = there.pop(roles.label, None) if roles.label else None
    return caption, label, there


def json_text(metadata: Mapping[str, Any], key: str) -> str:
    """`metadata` as JSON; raises SettingsError, naming `key`, for a value that JSON cannot hold."""
    try:
        return json.dumps(metadata, ensure_ascii=False, default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"the metadata of {key} cannot be written as JSON ({error}); leave that column out"
        ) from error


def _of_datasets(data: Any, chosen: Mapping[str, str | None]) -> Source:
    """Rows of a Dataset or IterableDataset. Images stay encoded as they are stored."""
    # The package is there, since `data` is one of its objects.
    from datasets import ClassLabel, Image

    features = data.features
    if features is None:
        raise SettingsError("this data set does not know its columns; call its cast or map with features first")
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    for name in images:
        data = data.cast_column(name, Image(decode=False))
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    # A feature's type says more than its name.
    guessed = {"image": images[0] if images else None, "label": classes[0] if classes else None}
    roles = _with_image(Roles.of(features, {**guessed, **{r: n for r, n in chosen.items() if n is not None}}))
    names = tuple(features[roles.label].names) if roles.label in classes else ()
    return Source(_rows(data, roles), _companions(roles), names)


def _of_frame(frame: Any, chosen: Mapping[str, str | None]) -> Source:
    roles = _with_image(Roles.of(map(str, frame.columns), chosen))
    names: tuple[str, ...] = ()
    if roles.label is not None:
        present = frame[roles.label].dropna()
        if len(present) and all(isinstance(value, str) for value in present):
            names = tuple(sorted(set(present)))
            numbers = {name: number for number, name in enumerate(names)}
            frame = frame.assign(**{roles.label: frame[roles.label].map(numbers)})
    columns = list(frame.columns)
    rows = (dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False, name=None))
    return Source(_rows(rows, roles), _companions(roles), names)


def _rows(rows: Iterable[Mapping[str, Any]], roles: Roles) -> Iterator[tuple[str | None, object, dict[str, Any]]]:
    for row in rows:
        columns = {str(name): value for name, value in row.items()}
        image = columns.pop(str(roles.image))
        key = columns.pop(roles.key) if roles.key is not None else None
        if isinstance(image, str):
            columns[str(roles.image)] = image
        yield None if key is None else str(key), image, columns


def _of_iterable(samples: Iterable[Any]) -> Iterator[tuple[str | None, object, dict[str, Any]]]:
    for number, sample in enumerate(samples):
        if not isinstance(sample, (tuple, list)) or len(sample) not in (2, 3):
            raise SettingsError(
                f"sample {number} is of type {type(sample).__name__}; give (key, image, metadata), or (key, image)"
            )
        key, image, *rest = sample
        metadata = rest[0] if rest else None
        if isinstance(metadata, str):
            metadata = {"caption": metadata}
        if metadata is not None and not isinstance(metadata, Mapping):
            raise SettingsError(
                f"the metadata of {key} are of type {type(metadata).__name__}; give a dictionary, a caption, or None"
            )
        yield str(key), image, dict(metadata or {})


def _companions(roles: Roles) -> dict[str, str | None]:
    return {"caption": roles.caption, "label": roles.label}


def _with_image(roles: Roles) -> Roles:
    if roles.image is None:
        raise SettingsError(f"no column is named like an image ({', '.join(_GUESSES['image'])}); name it with image=")
    return roles


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _plain(value: object) -> object:
    """A value that JSON holds, for one that it does not."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")
