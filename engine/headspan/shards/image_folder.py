"""List a folder of images: images with their companions, classes, and every file that is left out.

Linked folders are followed. Each real folder is read once, so a loop of links ends. No file is left out silently:
`left_out` names each with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headspan.errors import SettingsError, SourceError, counted
from headspan.escapes import escaped
from headspan.shards.members import COMPANIONS, IMAGE_EXTENSIONS

CLASSES = ("auto", "folders", "none")
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
    """The files below `root`, by their paths relative to it, sorted."""

    root: Path
    images: list[Path] = field(default_factory=list)
    # Each image's companions, by their extensions in lower case.
    companions: dict[Path, dict[str, Path]] = field(default_factory=dict)
    # Every other file, link and folder, with the reason why it was not read.
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def classes(self, wanted: str) -> tuple[list[str], str]:
        """The names of the classes, which are the folders directly below the root, and a sentence about them.

        `wanted` is one of CLASSES. With `auto`, folders are classes if every image is in one, if no image has a `.cls`
        file, and if not all folders are numbered like shards. With the others, `.cls` files are left out. Raises
        SettingsError if `wanted` is `folders` and not every image is in one.
        """
        nested = all(len(image.parts) > 1 for image in self.images)
        names = sorted({image.parts[0] for image in self.images}) if nested else []
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
        self.left_out = sorted([*self.left_out, *((path, reason) for path in lost)], key=_by_path)


def _by_path(entry: tuple[Path, str]) -> str:
    return entry[0].as_posix()


def read_folder(root: Path) -> ImageFolder:
    """The files in `root` and below. Raises SourceError if it is not a folder, or holds no image."""
    if not root.is_dir():
        raise SourceError(f"{root}: not a directory; name the folder that holds the images")
    found = ImageFolder(root)
    others: list[Path] = []
    for path in sorted(_files(root, found.left_out), key=Path.as_posix):
        if not (root / path).is_file():
            reason = "a link to a missing file" if (root / path).is_symlink() else "not a regular file"
            found.left_out.append((path, reason))
        elif path.suffix[1:].lower() in IMAGE_EXTENSIONS:
            found.images.append(path)
        else:
            others.append(path)
    by_stem: dict[Path, list[Path]] = {}
    for image in found.images:
        by_stem.setdefault(image.with_suffix(""), []).append(image)
    for path in others:
        extension = path.suffix[1:].lower()
        beside = by_stem.get(path.with_suffix(""), []) if extension in COMPANIONS.values() else []
        if not beside:
            found.left_out.append((path, "neither an image nor a .txt, .json or .cls file with the name of one"))
        for image in beside:
            if (known := found.companions.setdefault(image, {}).setdefault(extension, path)) != path:
                found.left_out.append((path, f"{known.as_posix()} is used as the .{extension} of the same image"))
    found.left_out.sort(key=_by_path)
    if not found.images:
        expected = ", ".join(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))
        others_named = f"; {left_out(found)}" if found.left_out else ""
        raise SourceError(
            f"{root}: no image in this folder or below; expected files that end in {expected}{others_named}"
        )
    return found


def left_out(found: ImageFolder) -> str:
    """The number of files that were left out, and the first of their names."""
    return f"{len(found.left_out):,} left out ({_listed([path.as_posix() for path, _ in found.left_out])})"


def _files(root: Path, skipped: list[tuple[Path, str]]) -> Iterator[Path]:
    """Every file below `root`, relative to it. Hidden files, and folders that are not entered, go to `skipped`."""
    top = root.resolve()
    entered = {top}

    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror}); correct its permissions") from error

    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        here = Path(folder).relative_to(root)
        entered_here = []
        for name in sorted(folders):
            path, real = here / name, (root / here / name).resolve()
            is_link = (root / path).is_symlink()
            if _is_hidden(name):
                skipped.append((path, "a hidden folder"))
            elif real in entered or (is_link and (real in top.parents or _is_read_within(top, real))):
                # Its files are read by their own path, or it is a loop.
                skipped.append((path, "a folder that is already read by another path, or a link to a parent folder"))
            else:
                entered.add(real)
                entered_here.append(name)
        folders[:] = entered_here
        for name in files:
            if name.startswith("."):
                skipped.append((here / name, "a hidden file"))
            else:
                yield here / name


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_read_within(top: Path, real: Path) -> bool:
    """Whether the folder `real` is in `top` and is read there without a link, as hidden folders are not."""
    return real.is_relative_to(top) and not any(map(_is_hidden, real.relative_to(top).parts))


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join(map(escaped, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
