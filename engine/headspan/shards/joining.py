"""The members of a tar joined to samples: which are images, and which companions each image takes.

The rule is WebDataset's. A member's path up to the first dot of its base name is its key, the rest its field, in lower
case. Members of one key are one sample, and each image of a sample is a row. An image takes the caption, metadata and
class of its own name; else those of the longest beginning of its name, so that `k.txt` serves `k.left.jpg`; else the
only one of its sample, so that `k.outputs.txt` serves `k.input.jpg`. No image takes what is named after another image.

WebDataset begins a sample wherever the key changes. Here a companion that lies alone is joined to its key's image
anywhere in the tar, as long as no field of the key comes twice. Where one does, archives that lie one after the other
are looked at one by one, and within an archive an image takes what lies beside it, or nothing. Where samples of one
key follow each other and one of them lacks a field, no image of them takes it: it may be the next image's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby

from headspan.config import MemberNames
from headspan.shards.tar import Member

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "avifs"}
)
IMAGE, UNNAMED_IMAGE, OTHER = "image", "image of another member", "other"
# A link that leads to no file of the tar, and would be none of the above.
DEAD_LINK = "link"
# The Sample's fields that companions fill, and the extension that each has if no other member is named.
COMPANIONS = {"caption": "txt", "metadata": "json", "label": "cls"}
# An image beside another of its key is a part of that one's sample where a word of its field says so.
_MASK = re.compile(
    r"(masks?|seg|segm|segmentation|semantic|instances?|panoptic|depth|disparity|normals?|flow|edges?|canny|alpha|"
    r"matte|trimap)[_-]?[0-9]*"
)
# What may be the word of a field; other parts of a name, such as numbers, tell images apart.
_WORD = re.compile(r"[a-z_][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Field:
    """What a member's name has behind its key, in lower case, and what the member is by that."""

    text: str
    # IMAGE, one of COMPANIONS, UNNAMED_IMAGE (an image where another member is named as the image), DEAD_LINK or OTHER.
    role: str
    # The text without its last extension, and how long that is with its dot.
    stem: str
    extension_length: int
    # Whether it is the caption that the user named in full, such as `3.txt`, whose words may then be numbers too.
    is_chosen: bool = False


# A member of a sample: its field, its path, and where its data lies.
Entry = tuple[Field, str, int, int]


@dataclass(slots=True)
class Run:
    """Neighbouring members of one key, in one of the tar's archives."""

    key: str
    archive: int
    entries: list[Entry]


@dataclass(slots=True)
class Joined:
    """An image with its companions by the Sample's field that they fill."""

    image: Entry
    companions: dict[str, Entry]
    # The Sample's fields for which several companions might be meant, each with the paths of some.
    unclear: Sequence[tuple[str, list[str]]] = ()
    # Those whose companion cannot be told from that of another sample of the same key.
    withheld: Sequence[str] = ()


@dataclass(slots=True)
class Left:
    """Members that are no row and no companion of one, by what they are taken for."""

    masks: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    # Of keys without an image, and of keys that come again, where no image lies beside them.
    alone: list[Entry] = field(default_factory=list)
    astray: list[Entry] = field(default_factory=list)
    # Companions of samples that have an image, where no image takes them and no image's note tells why.
    untaken: list[Entry] = field(default_factory=list)


def runs(
    members: Iterable[Member], names: MemberNames, on_companion: Callable[[Entry], None], on_link: Callable[[Run], None]
) -> list[Run]:
    """The members in runs of one key, in their order; those that macOS packs beside files are left out.

    `on_companion` is called with each companion when it comes, so that it can be read in passing; `on_link` with the
    run whose last member is a link that leads to no earlier file.
    """
    fields: dict[str, Field] = {}
    found: list[Run] = []
    last_key, last_archive = "", -1
    entries: list[Entry] = []
    for name, offset, size, archive in members:
        base = name.rfind("/") + 1
        if name.startswith("._", base) or name.startswith("__MACOSX/") or "/__MACOSX/" in name:
            continue
        # A dot in front hides a file; it begins no field.
        dot = name.find(".", base + 1)
        key, text = (name[:dot], name[dot + 1 :]) if dot >= 0 else (name, "")
        if (kind := fields.get(text)) is None:
            kind = fields[text] = _field(text, names)
        if key != last_key or archive != last_archive:
            entries = []
            run = Run(key, archive, entries)
            found.append(run)
            last_key, last_archive = key, archive
        entries.append((kind, name, offset, size))
        if size < 0:
            on_link(run)
        elif kind.role in COMPANIONS:
            on_companion(entries[-1])
    return found


def join(found: Sequence[Run], left: Left) -> Iterator[Joined]:
    """Every image that is a row, in the order of the tar; `left` is filled with what is none."""
    first: dict[str, Run] = {}
    again: dict[str, list[Run]] = {}
    for run in found:
        if (known := first.setdefault(run.key, run)) is not run:
            again.setdefault(run.key, [known]).append(run)
    joined: dict[int, list[Joined]] = {}
    for run in found:
        alone = run.key not in again
        if alone and (simple := _simple(run)) is not None:
            yield simple
            continue
        if id(run) not in joined:
            joined.update(_join_key([run] if alone else again[run.key], left))
        yield from joined.pop(id(run))


def _field(text: str, names: MemberNames) -> Field:
    lower = text.lower()
    stem, _, extension = lower.rpartition(".")
    role = OTHER
    if _named(lower, names.image) or (names.image is None and extension in IMAGE_EXTENSIONS):
        role = IMAGE
    elif _named(lower, names.caption):
        role = "caption"
    elif extension in IMAGE_EXTENSIONS:
        role = UNNAMED_IMAGE
    else:
        by_extension = {extension: role for role, extension in COMPANIONS.items()}
        role = by_extension.get(extension, OTHER)
        if role == "caption" and (names.caption is not None or names.caption_json is not None):
            role = OTHER
    is_chosen = role == "caption" and lower in [each.strip().lower() for each in (names.caption or "").split(",")]
    return Field(lower, role, stem, len(extension) + 1 if text else 0, is_chosen)


def _named(text: str, patterns: str | None) -> bool:
    """Whether the field `text` is named by one of `patterns`, which commas part."""
    return patterns is not None and any(fnmatchcase(text, each.strip().lower()) for each in patterns.split(","))


def _simple(run: Run) -> Joined | None:
    """The usual sample, one image and at most one companion of a kind, all named by the key alone; None for others."""
    image: Entry | None = None
    companions: dict[str, Entry] = {}
    for entry in run.entries:
        kind = entry[0]
        role = kind.role
        if role == IMAGE:
            if image is not None:
                return None
            image = entry
        elif role == UNNAMED_IMAGE:
            return None
        elif role in COMPANIONS:
            if role in companions:
                return None
            companions[role] = entry
        if kind.stem and (role == IMAGE or role in COMPANIONS):
            return None
    return None if image is None else Joined(image, companions)


@dataclass(slots=True)
class _Part:
    """Members of one key without a field that comes twice, which belong together."""

    run: Run
    entries: list[Entry]
    # The images among them that are rows, and each with its companions.
    images: list[Entry] = field(default_factory=list)
    joined: list[Joined] = field(default_factory=list)


def _join_key(found: Sequence[Run], left: Left) -> dict[int, list[Joined]]:
    """The images of all runs of one key, by the run's identity, in the order of the tar."""
    parts = {id(run): _parts(run) for run in found}
    every = [part for each in parts.values() for part in each]
    scopes = [every]
    if _repeats(every):
        archives = [list(group) for _, group in groupby(every, key=lambda part: part.run.archive)]
        scopes = []
        for scope in archives:
            scopes += [[part] for part in scope] if _repeats(scope) else [scope]
    for scope in scopes:
        _find_images(scope, left)
    members = [entry for part in every for entry in part.entries]
    if any(part.images for part in every):
        owned = {each for part in every for image in part.images for each in _beginnings(image[0].stem)} - {""}
        everything = _Companions(members, owned)
        for scope in scopes:
            _join_scope(scope, everything, owned)
            if not any(part.images for part in scope):
                left.astray += [entry for part in scope for entry in part.entries if entry[0].role in COMPANIONS]
        for each in parts.values():
            _withhold_what_is_unclear(each)
        left.untaken += [entry for scope in scopes for entry in _untaken(scope)]
    elif not any(entry[0].role == UNNAMED_IMAGE for entry in members):
        left.alone += [entry for entry in members if entry[0].role != DEAD_LINK]
    return {run: [joined for part in each for joined in part.joined] for run, each in parts.items()}


def _parts(run: Run) -> list[_Part]:
    """The run, begun anew wherever a field comes again."""
    parts, seen = [_Part(run, [])], set[str]()
    for entry in run.entries:
        if entry[0].text in seen:
            parts.append(_Part(run, []))
            seen.clear()
        seen.add(entry[0].text)
        parts[-1].entries.append(entry)
    return parts


def _repeats(scope: Sequence[_Part]) -> bool:
    seen: set[str] = set()
    for part in scope:
        for entry in part.entries:
            if entry[0].text in seen:
                return True
            seen.add(entry[0].text)
    return False


def _find_images(scope: Sequence[_Part], left: Left) -> None:
    """Set the images that are rows; masks of others, and images of members that are not the named one, are `left`."""
    entries = [entry for part in scope for entry in part.entries]
    left.unnamed += [entry[1] for entry in entries if entry[0].role == UNNAMED_IMAGE]
    images = [entry[0].stem for entry in entries if entry[0].role == IMAGE]
    own = {entry[0].stem for entry in entries if entry[0].role in COMPANIONS}
    masks = {stem for stem in images if _mask_of(stem) is not None and stem not in own}
    stems = {stem for stem in images if stem not in masks}
    beginnings = {beginning for stem in stems for beginning in _beginnings(stem)}
    for part in scope:
        for entry in part.entries:
            kind = entry[0]
            if kind.role != IMAGE:
                continue
            base = _mask_of(kind.stem) if kind.stem in masks else None
            # Of an image of that name, of one whose name goes on behind it, or of one whose name it begins with.
            if base is not None and (base in beginnings or any(each in stems for each in _beginnings(base))):
                left.masks.append(entry[1])
            else:
                part.images.append(entry)


def _mask_of(stem: str) -> str | None:
    """What stands before the word of a mask in `stem`; None where there is no such word."""
    words = stem.split(".")
    place = next((place for place, word in enumerate(words) if _MASK.fullmatch(word)), None)
    return None if place is None else ".".join(words[:place])


def _beginnings(stem: str) -> Iterator[str]:
    """`stem` and what is left of it without its last words, down to nothing."""
    while stem:
        yield stem
        stem = stem.rpartition(".")[0]
    yield ""


class _Companions:
    """Companions by the name that they have, and by what the names of their images may begin with.

    `owned` are the names of images and what these begin with: what is named so belongs to no other image.
    """

    # Where there are more, any of them might be meant; so many are told.
    _TOLD = 3

    def __init__(self, entries: Iterable[Entry], owned: set[str]) -> None:
        self._named: dict[tuple[str, str], Entry] = {}
        self._under: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._free: set[tuple[str, str]] = set()
        for entry in entries:
            role, stem = entry[0].role, entry[0].stem
            if role not in COMPANIONS:
                continue
            self._named[role, stem] = entry
            words = stem.split(".") if stem else []
            for place, word in enumerate(words):
                if entry[0].is_chosen or _WORD.fullmatch(word):
                    under = (role, ".".join(words[:place]))
                    if stem not in owned:
                        self._free.add(under)
                    if len(self._under[under]) < self._TOLD:
                        self._under[under].append(entry)

    def named(self, role: str, stem: str) -> Entry | None:
        """The companion of that very name."""
        return self._named.get((role, stem))

    def under(self, role: str, stem: str) -> tuple[list[Entry], bool]:
        """Some of those whose names go on with a word behind `stem`, and whether any is named after no image."""
        return self._under.get((role, stem), []), (role, stem) in self._free


def _join_scope(scope: Sequence[_Part], everything: _Companions, owned: set[str]) -> None:
    """Give the images of each part their companions: those of the part, and those of parts without an image."""
    lone = _Companions((entry for part in scope if not part.images for entry in part.entries), owned)
    for part in scope:
        sources = (_Companions(part.entries, owned), lone) if part.images else ()
        for image in part.images:
            joined = Joined(image, {})
            for role in COMPANIONS:
                found = _find(role, image[0].stem, sources)
                if len(found) == 1:
                    joined.companions[role] = found[0]
                elif found:
                    joined.unclear = (*joined.unclear, (role, [entry[1] for entry in found]))
                elif _find(role, image[0].stem, (everything,)):
                    joined.withheld = (*joined.withheld, role)
            part.joined.append(joined)


def _find(role: str, stem: str, sources: Sequence[_Companions]) -> list[Entry]:
    """The companion of an image named `stem`, or several of which any might be it, or none."""
    for beginning in _beginnings(stem):
        for source in sources:
            if (entry := source.named(role, beginning)) is not None:
                return [entry]
    for beginning in _beginnings(stem):
        under = [source.under(role, beginning) for source in sources]
        if found := [entry for entries, _ in under for entry in entries]:
            # Where all are named after other images, they belong to those.
            return found if any(free for _, free in under) else []
    return []


def _withhold_what_is_unclear(parts: Sequence[_Part]) -> None:
    """Of a run in which fields come again, give no image a companion whose sample is unclear.

    Where each part has images and the companion, the samples are complete and each image keeps its own. Where the
    companion is missing from one part, it may be the next sample's: in `a.jpg a.cls a.jpg`, the class may stand before
    its image or behind it.
    """
    if len(parts) == 1:
        return
    unclear = {
        entry[0].text
        for part in parts
        for joined in part.joined
        for entry in joined.companions.values()
        if not _is_complete(entry[0].text, parts)
    }
    spoilt = {entry[0].text for part in parts for entry in _not_taken(part)}
    neighbours = [entry for part in parts for entry in part.entries]
    apart = {text for text in unclear - spoilt if _lies_with_its_image(text, neighbours)}
    for part in parts:
        for joined in part.joined:
            for role, entry in list(joined.companions.items()):
                own = entry[0].text in apart and entry[0].stem == joined.image[0].stem
                if entry[0].text in unclear | spoilt and not own:
                    del joined.companions[role]
                    joined.withheld = (*joined.withheld, role)


def _is_complete(text: str, parts: Sequence[_Part]) -> bool:
    """Whether each part that has images has a companion of the field `text`, so that no image may be without it.

    Where parts have several images, all parts must have the same fields in the same order: one that differs may hold
    members of two samples.
    """
    fields = [[entry[0].text for entry in part.entries if entry[0].role != OTHER] for part in parts]
    if any(text not in each for part, each in zip(parts, fields, strict=True) if part.images):
        return False
    return all(len(part.images) <= 1 for part in parts) or all(each == fields[0] for each in fields)


def _lies_with_its_image(text: str, entries: Sequence[Entry]) -> bool:
    """Whether each companion of the field `text` lies in a stretch of its name's members, with one image of that name.

    In `i.0.jpg i.1.jpg i.0.jpg i.0.txt`, the text is the second image's.
    """
    stem = text.rpartition(".")[0]
    if not stem:
        # It serves images of any name, so that the one beside it is not the only one that may own it.
        return False
    for same, group in groupby(entries, key=lambda entry: entry[0].stem == stem):
        kinds = [entry[0] for entry in group]
        if same and any(kind.text == text for kind in kinds):
            images = sum(kind.role == IMAGE for kind in kinds)
            if images != 1 or sum(kind.text == text for kind in kinds) != 1:
                return False
    return True


def _not_taken(part: _Part) -> list[Entry]:
    taken = {id(entry) for joined in part.joined for entry in joined.companions.values()}
    return [entry for entry in part.entries if entry[0].role in COMPANIONS and id(entry) not in taken]


def _untaken(scope: Sequence[_Part]) -> list[Entry]:
    """Companions that no image of the scope took, unless an image has a note on companions of that role."""
    everything = [joined for part in scope for joined in part.joined]
    taken = {id(entry) for joined in everything for entry in joined.companions.values()}
    told = {role for joined in everything for role in (*joined.withheld, *(role for role, _ in joined.unclear))}
    return [
        entry
        for part in scope
        for entry in (part.entries if everything else ())
        if entry[0].role in COMPANIONS and entry[0].role not in told and id(entry) not in taken
    ]
