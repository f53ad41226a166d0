"""Withhold companions that may belong to either of two consecutive samples with the same key."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from headspan.shards.bundles import Bundle
from headspan.shards.members import COMPANIONS, IMAGE, OTHER, Entry


def withhold_ambiguous(bundles: Sequence[Bundle]) -> None:
    """Remove companions that may belong to another sample from the images of one group, whose bundles are `bundles`.

    If every bundle with images has the companion, the samples are complete and each image keeps its own. If one bundle
    lacks it, the companion may be the next sample's: in `a.jpg a.cls a.jpg`, the class may belong to either image.
    """
    if len(bundles) == 1:
        return
    incomplete = {
        entry.field.text
        for bundle in bundles
        for joined in bundle.joined
        for entry in joined.companions.values()
        if not _is_complete(entry.field.text, bundles)
    }
    unused = {entry.field.text for bundle in bundles for entry in _unused(bundle)}
    members = [entry for bundle in bundles for entry in bundle.entries]
    certain = {text for text in incomplete - unused if _stands_with_its_image(text, members)}
    for bundle in bundles:
        for joined in bundle.joined:
            for role, entry in list(joined.companions.items()):
                is_own = entry.field.text in certain and entry.field.stem == joined.image.field.stem
                if entry.field.text in incomplete | unused and not is_own:
                    del joined.companions[role]
                    joined.withheld = (*joined.withheld, role)


def _is_complete(text: str, bundles: Sequence[Bundle]) -> bool:
    """Whether each bundle with images has a companion with the field `text`, so that no image can lack it.

    If bundles have several images, all bundles must have the same fields in the same order. One that differs may hold
    members of two samples.
    """
    fields = [[entry.field.text for entry in bundle.entries if entry.field.role != OTHER] for bundle in bundles]
    if any(text not in each for bundle, each in zip(bundles, fields, strict=True) if bundle.images):
        return False
    return all(len(bundle.images) <= 1 for bundle in bundles) or all(each == fields[0] for each in fields)


def _stands_with_its_image(text: str, entries: Sequence[Entry]) -> bool:
    """Whether members with the stem of `text` come in stretches, each with one companion `text` and one image.

    In `i.0.jpg i.1.jpg i.0.jpg i.0.txt`, the text belongs to the second `i.0.jpg`.
    """
    stem = text.rpartition(".")[0]
    if not stem:
        # It serves images of any name, so the one beside it is not the only possible owner.
        return False
    for same, stretch in groupby(entries, key=lambda entry: entry.field.stem == stem):
        fields = [entry.field for entry in stretch]
        if same and any(field.text == text for field in fields):
            images = sum(field.role == IMAGE for field in fields)
            if images != 1 or sum(field.text == text for field in fields) != 1:
                return False
    return True


def _unused(bundle: Bundle) -> list[Entry]:
    used = {id(entry) for joined in bundle.joined for entry in joined.companions.values()}
    return [entry for entry in bundle.entries if entry.field.role in COMPANIONS and id(entry) not in used]
