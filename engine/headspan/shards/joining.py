"""Join the members of a tar to samples: which images are rows, and which companions each image gets.

The rule is WebDataset's: members with the same key are one sample. Each image of a sample is a row. For each kind of
companion (caption, metadata, class), an image gets the first of these that exists:

1. the companion with the image's own name, such as `k.left.txt` for `k.left.jpg`;
2. the one named with the longest prefix of that name, such as `k.txt` for `k.left.jpg`;
3. the only one whose name differs from the image's after their longest common prefix, such as `k.outputs.txt` for
   `k.input.jpg`.

No image gets a companion that is named after another image.

WebDataset begins a sample wherever the key changes. headspan accepts the companions of an image anywhere in the tar, as
long as no field of their key repeats. If a field repeats, concatenated archives are joined one by one, and within an
archive an image gets only the companions next to it. If consecutive samples have the same key and one of them lacks a
field, no image of these samples gets that field, because it may belong to the next image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from headspan.shards.bundles import Bundle, JoinedImage, bundles_of, has_repeated_field
from headspan.shards.companions import CompanionIndex, find_companions
from headspan.shards.masks import mask_stems
from headspan.shards.members import COMPANIONS, DEAD_LINK, IMAGE, OTHER_IMAGE, Entry, Group, prefixes
from headspan.shards.repeated_keys import withhold_ambiguous


@dataclass(slots=True)
class Unused:
    """Members that are neither rows nor companions of one, by the reason."""

    masks: list[str] = field(default_factory=list)
    other_images: list[str] = field(default_factory=list)
    # Their key has no image.
    without_image: list[Entry] = field(default_factory=list)
    # Their key repeats, and no image stands next to them.
    away_from_image: list[Entry] = field(default_factory=list)
    # Their sample has an image, but none that they are named after, and no image has a note on them.
    unmatched: list[Entry] = field(default_factory=list)


def join(groups: Sequence[Group], unused: Unused) -> Iterator[JoinedImage]:
    """Every image that is a row, in the order of the tar. All other members are added to `unused`."""
    first: dict[str, Group] = {}
    repeated: dict[str, list[Group]] = {}
    for group in groups:
        if (known := first.setdefault(group.key, group)) is not group:
            repeated.setdefault(group.key, [known]).append(group)
    joined: dict[int, list[JoinedImage]] = {}
    for group in groups:
        is_only = group.key not in repeated
        if is_only and (simple := _join_simple(group)) is not None:
            yield simple
            continue
        if id(group) not in joined:
            joined.update(_join_key([group] if is_only else repeated[group.key], unused))
        yield from joined.pop(id(group))


def _join_simple(group: Group) -> JoinedImage | None:
    """The usual sample: one image and at most one companion of a kind, all named by the key alone; else None."""
    image: Entry | None = None
    companions: dict[str, Entry] = {}
    for entry in group.entries:
        role = entry.field.role
        if role == IMAGE:
            if image is not None:
                return None
            image = entry
        elif role == OTHER_IMAGE:
            return None
        elif role in COMPANIONS:
            if role in companions:
                return None
            companions[role] = entry
        if entry.field.stem and (role == IMAGE or role in COMPANIONS):
            return None
    return None if image is None else JoinedImage(image, companions)


def _join_key(groups: Sequence[Group], unused: Unused) -> dict[int, list[JoinedImage]]:
    """The images of all groups with one key, by the group's identity, in the order of the tar."""
    by_group = {id(group): bundles_of(group) for group in groups}
    bundles = [bundle for each in by_group.values() for bundle in each]
    scopes = _scopes(bundles)
    for scope in scopes:
        _select_images(scope, unused)
    members = [entry for bundle in bundles for entry in bundle.entries]
    if any(bundle.images for bundle in bundles):
        stems = {image.field.stem for bundle in bundles for image in bundle.images}
        image_prefixes = {prefix for stem in stems for prefix in prefixes(stem)} - {""}
        everywhere = CompanionIndex(members, image_prefixes)
        for scope in scopes:
            _join_scope(scope, everywhere, image_prefixes)
            if not any(bundle.images for bundle in scope):
                companions = (entry for bundle in scope for entry in bundle.entries if entry.field.role in COMPANIONS)
                unused.away_from_image += companions
        for each in by_group.values():
            withhold_ambiguous(each)
        unused.unmatched += [entry for scope in scopes for entry in _unmatched(scope)]
    elif not any(entry.field.role == OTHER_IMAGE for entry in members):
        unused.without_image += [entry for entry in members if entry.field.role != DEAD_LINK]
    return {group: [joined for bundle in each for joined in bundle.joined] for group, each in by_group.items()}


def _scopes(bundles: list[Bundle]) -> list[list[Bundle]]:
    """The bundles of one key in sets, each of which is joined without the others."""
    if not has_repeated_field(bundles):
        return [bundles]
    scopes: list[list[Bundle]] = []
    for _, group in groupby(bundles, key=lambda bundle: bundle.group.archive):
        archive = list(group)
        scopes += [[bundle] for bundle in archive] if has_repeated_field(archive) else [archive]
    return scopes


def _select_images(scope: Sequence[Bundle], unused: Unused) -> None:
    """Set the images that are rows. Masks, and images that the user did not select, go to `unused`."""
    entries = [entry for bundle in scope for entry in bundle.entries]
    unused.other_images += [entry.path for entry in entries if entry.field.role == OTHER_IMAGE]
    masks = mask_stems(
        [entry.field.stem for entry in entries if entry.field.role == IMAGE],
        [entry.field.stem for entry in entries if entry.field.role in COMPANIONS],
    )
    for bundle in scope:
        for entry in bundle.entries:
            if entry.field.role != IMAGE:
                continue
            if entry.field.stem in masks:
                unused.masks.append(entry.path)
            else:
                bundle.images.append(entry)


def _join_scope(scope: Sequence[Bundle], everywhere: CompanionIndex, image_prefixes: set[str]) -> None:
    """Give each image the companions of its own bundle, or those of bundles without an image."""
    free = CompanionIndex((entry for bundle in scope if not bundle.images for entry in bundle.entries), image_prefixes)
    for bundle in scope:
        indexes = (CompanionIndex(bundle.entries, image_prefixes), free) if bundle.images else ()
        for image in bundle.images:
            joined = JoinedImage(image, {})
            for role in COMPANIONS:
                found = find_companions(role, image.field.stem, indexes)
                if len(found) == 1:
                    joined.companions[role] = found[0]
                elif found:
                    joined.ambiguous = (*joined.ambiguous, (role, [entry.path for entry in found]))
                elif find_companions(role, image.field.stem, (everywhere,)):
                    joined.withheld = (*joined.withheld, role)
            bundle.joined.append(joined)


def _unmatched(scope: Sequence[Bundle]) -> list[Entry]:
    """Companions that no image of the scope got, unless an image has a note on companions of that role."""
    every = [joined for bundle in scope for joined in bundle.joined]
    used = {id(entry) for joined in every for entry in joined.companions.values()}
    noted = {role for joined in every for role in (*joined.withheld, *(role for role, _ in joined.ambiguous))}
    return [
        entry
        for bundle in scope
        for entry in (bundle.entries if every else ())
        if entry.field.role in COMPANIONS and entry.field.role not in noted and id(entry) not in used
    ]
