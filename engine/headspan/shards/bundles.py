"""Group members of one key into bundles, in which no field repeats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from headspan.shards.members import Entry, Group


@dataclass(slots=True)
class JoinedImage:
    """An image and its companions, by the fields of the Sample that they fill."""

    image: Entry
    companions: dict[str, Entry]
    # The fields for which several companions are possible, each with the paths of some of them.
    ambiguous: Sequence[tuple[str, list[str]]] = ()
    # The fields that stay empty, because the companion may belong to another sample with the same key.
    withheld: Sequence[str] = ()


@dataclass(slots=True)
class Bundle:
    """Members with one key in which no field repeats."""

    group: Group
    entries: list[Entry]
    # The images that become rows. `joined` has them with their companions.
    images: list[Entry] = field(default_factory=list)
    joined: list[JoinedImage] = field(default_factory=list)


def bundles_of(group: Group) -> list[Bundle]:
    """The group, cut wherever a field repeats."""
    bundles, seen = [Bundle(group, [])], set[str]()
    for entry in group.entries:
        if entry.field.text in seen:
            bundles.append(Bundle(group, []))
            seen.clear()
        seen.add(entry.field.text)
        bundles[-1].entries.append(entry)
    return bundles


def has_repeated_field(bundles: Iterable[Bundle]) -> bool:
    """Whether any field occurs more than once in `bundles`."""
    seen: set[str] = set()
    for bundle in bundles:
        for entry in bundle.entries:
            if entry.field.text in seen:
                return True
            seen.add(entry.field.text)
    return False
