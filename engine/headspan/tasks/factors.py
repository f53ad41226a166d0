"""Factors of images, from their metadata: what images show, as far as it is known.

A factor is a key of the metadata, or a path of keys with dots, such as `objects.colour` (see `truths.value_at`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.store.selection import chosen_images
from headspan.tasks.truths import metadata_of_images, value_at

# How many names a message lists.
_SHOWN = 12


class Factors:
    """The values of factors of all images of a store."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        """Raises SettingsError if no image has a value of a factor."""
        metadata = metadata_of_images(store, chosen_images(store, None))
        self.values: dict[str, list[str | None]] = {
            name: [_text(value_at(each, name)) for each in metadata] for name in names
        }
        for name, values in self.values.items():
            if not any(value is not None for value in values):
                known = ", ".join(list(dict.fromkeys(path for each in metadata[:20] for path in _paths(each)))[:_SHOWN])
                raise SettingsError(
                    f"{store.path}: no image's metadata has a value of {name!r}; its factors are {known or 'none'}"
                )
        self.counts = {
            name: Counter(each for each in values if each is not None) for name, values in self.values.items()
        }

    def of(self, image: int) -> dict[str, str | None]:
        """The values of an image."""
        return {name: values[image] for name, values in self.values.items()}

    def share(self, factor: str, value: str | None, images: Sequence[int]) -> float | None:
        """Of those images that have a value of the factor, the share with this one; None if there are none."""
        known = [own for image in images if (own := self.values[factor][image]) is not None]
        return sum(own == value for own in known) / len(known) if known and value is not None else None

    def base(self, factor: str, value: str | None) -> float | None:
        """The same of all images."""
        return None if value is None else self.counts[factor][value] / self.counts[factor].total()


def _text(found: Any) -> str | None:
    return str(found) if isinstance(found, str | int | float) and found != "" else None


def _paths(found: Any, before: str = "") -> list[str]:
    """The paths that have a text or a number at their end."""
    if isinstance(found, list):
        return _paths(found[0], before) if found else []
    if isinstance(found, Mapping):
        return [path for name, each in found.items() for path in _paths(each, f"{before}.{name}" if before else name)]
    return [before] if isinstance(found, str | int | float) else []
