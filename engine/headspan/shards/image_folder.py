"""List a folder of images: images with their companions, classes, and every file that is left out.

Linked folders are followed. Each real folder is read once, so a loop of links ends. No file is left out silently:
`left_out` names each with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headspan.errors import SettingsError, SourceError, counted
from headspan.escapes import escaped
from headspan.shards.keys import Keys
from headspan.shards.members import COMPANIONS, IMAGE_EXTENSIONS

# Names of folders that are shards, parts or dates rather than classes: 00000, shard-0003, train-00000-of-00016, 2019.
# Other letters before the digits name a class, as in ImageNet's n01440764.
_NUMBERED = re.compile(
    r"(?:(?:shards?|parts?|partitions?|chunks?|batch|batches|splits?|slices?|pieces?|segments?|blocks?|buckets?|vol|"
    r"volumes?|tars?|archives?|files?|dirs?|folders?|data|train|val|valid|validation|test)[-_. ]?)+[0-9]+"
    r"(?:[-_. ]?of[-_. ]?[0-9]+)?|[0-9]{4,}",
    re.IGNORECASE,
)


@dataclass(slots=True)
class ImageFolder:
    """The files below `root`, by their paths relative to it, with slashes, sorted."""

    root: Path
    images: list[str] = field(default_factory=list)
    # Each image's companions, by their extensions in lower case.
    companions: dict[str, dict[str, str]] = field(default_factory=dict)
    # Every other file, link and folder, with the reason why it was not read.
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def classes(self, wanted: str) -> tuple[list[str], str]:
        """The names of the classes, which are the folders directly below the root, and a sentence about them.

        `wanted` is `auto`, `folders` or `none`. With `auto`, folders are classes if every image is in one, if no image
        has a `.cls` file, and if not all folders are numbered like shards. With the others, `.cls` files are left out.
        Raises SettingsError if `wanted` is `folders` and not every image is in one.
        """
        nested = all("/" in image for image in self.images)
        names = sorted({class_folder(image) for image in self.images}) if nested else []
        if wanted == "folders" and not names:
            raise SettingsError(
                f"{self.root}: --classes folders, but not every image is in a folder below it; move the others into "
                "folders, or leave --classes out"
            )
        if wanted != "auto":
            self.leave_out("cls", f"--classes {wanted} was given")
        files = sum("cls" in companions for companions in self.companions.values())
        if files:
            return [], f"classes from the .cls files of {counted(files, 'image')}"
        if wanted == "none" or not names:
            return [], "no classes"
        if wanted == "auto" and all(_NUMBERED.fullmatch(name) for name in names):
            shown = _listed(names)
            return [], f"no classes, since the folders are numbered ({shown}); --classes folders uses them as classes"
        return names, f"{len(names):,} classes from folders ({_listed(names)}); --classes none ignores them"

    def leave_out(self, extension: str, reason: str) -> None:
        """Leave the companions with that extension out, for `reason`."""
        lost = {beside.pop(extension) for beside in self.companions.values() if extension in beside}
        self.left_out = sorted([*self.left_out, *((path, reason) for path in lost)])

    def parts(self) -> Iterator[str]:
        """The images, then their companions."""
        yield from self.images
        for beside in self.companions.values():
            yield from beside.values()


def class_folder(image: str) -> str:
    """The folder directly below the root that holds an image."""
    return image.partition("/")[0]


def keys_of(images: Sequence[str]) -> list[str]:
    """A unique key for each image: its path without extension, and with `_` for dots."""
    keys = Keys()
    return [keys.key_of(stem_of(image)) for image in images]


def stem_of(path: str) -> str:
    """A path without the extension of its name."""
    dot = path.rfind(".", path.rfind("/") + 2)
    return path if dot < 0 or dot == len(path) - 1 else path[:dot]


def extension_of(path: str) -> str:
    """The extension of a path's name in lower case, without its dot."""
    return path[len(stem_of(path)) + 1 :].lower()


def read_folder(root: Path) -> ImageFolder:
    """The files in `root` and below. Raises SourceError if it is not a folder, or holds no image."""
    if not root.is_dir():
        raise SourceError(f"{root}: not a directory; name the folder that holds the images")
    found = ImageFolder(root)
    others: list[str] = []
    for path in sorted(_files(root, found.left_out)):
        (found.images if extension_of(path) in IMAGE_EXTENSIONS else others).append(path)
    by_stem: dict[str, list[str]] = {}
    for image in found.images if others else ():
        by_stem.setdefault(stem_of(image), []).append(image)
    extensions = frozenset(COMPANIONS.values())
    for path in others:
        extension = extension_of(path)
        beside = by_stem.get(stem_of(path), []) if extension in extensions else []
        if not beside:
            found.left_out.append((path, "neither an image nor a .txt, .json or .cls file with the name of one"))
        for image in beside:
            if (known := found.companions.setdefault(image, {}).setdefault(extension, path)) != path:
                found.left_out.append((path, f"{known} is used as the .{extension} of the same image"))
    found.left_out.sort()
    if not found.images:
        expected = ", ".join(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))
        others_named = f"; {left_out(found)}" if found.left_out else ""
        raise SourceError(
            f"{root}: no image in this folder or below; expected files that end in {expected}{others_named}"
        )
    return found


def has_image(root: Path) -> bool:
    """Whether there is an image in the folder `root` or below. Raises SourceError if a folder cannot be read."""
    return any(extension_of(path) in IMAGE_EXTENSIONS for path in _files(root, []))


def left_out(found: ImageFolder) -> str:
    """The number of files that were left out, and the first of their names."""
    return f"{len(found.left_out):,} left out ({_listed([path for path, _ in found.left_out])})"


def _files(root: Path, skipped: list[tuple[str, str]]) -> Iterator[str]:
    """Every regular file below `root`, relative to it. What else there is goes to `skipped`, with the reason."""
    top = root.resolve()
    entered = {top}
    waiting = [""]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(root / here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(
                f"{error.filename}: cannot be read ({error.strerror}); correct its permissions"
            ) from error
        folders = []
        for entry in found:
            name = entry.name
            path = f"{here}/{name}" if here else name
            if entry.is_dir():
                if _is_entered(entry, top, path, entered, skipped):
                    folders.append(path)
            elif name.startswith("."):
                skipped.append((path, "a hidden file"))
            elif entry.is_file():
                yield path
            else:
                skipped.append((path, "a link to a missing file" if entry.is_symlink() else "not a regular file"))
        waiting += reversed(folders)


def _is_entered(
    entry: os.DirEntry[str], top: Path, path: str, entered: set[Path], skipped: list[tuple[str, str]]
) -> bool:
    """Whether a folder is read; if not, it goes to `skipped`."""
    if _is_hidden(entry.name):
        skipped.append((path, "a hidden folder"))
        return False
    real = Path(entry.path).resolve()
    if real in entered or (entry.is_symlink() and (real in top.parents or _is_read_within(top, real))):
        # Its files are read by their own path, or it is a loop.
        skipped.append((path, "a folder that is already read by another path, or a link to a parent folder"))
        return False
    entered.add(real)
    return True


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_read_within(top: Path, real: Path) -> bool:
    """Whether the folder `real` is in `top` and is read there without a link, as hidden folders are not."""
    return real.is_relative_to(top) and not any(map(_is_hidden, real.relative_to(top).parts))


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join(map(escaped, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
