"""What lies in a folder of images: the images with their companions, the classes, and every file that is neither.

Linked folders are followed, and each real folder is read once, so that a circle of links ends. Nothing is left out in
silence: `left_out` names every other file with a reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headspan.errors import SettingsError, SourceError
from headspan.escapes import escaped
from headspan.shards.members import COMPANIONS, IMAGE_EXTENSIONS

CLASSES = ("auto", "folders", "none")
# A folder that is a shard, a part or a date rather than a class: 00000, shard-0003, train-00000-of-00016, 2019. Other
# letters before the digits are a class: ImageNet's are n01440764 and so on.
_NUMBERED = re.compile(
    r"(?:(?:shards?|parts?|partitions?|chunks?|batch|batches|splits?|slices?|pieces?|segments?|blocks?|buckets?|vol|"
    r"volumes?|tars?|archives?|files?|dirs?|folders?|data|train|val|valid|validation|test)[-_. ]?)+[0-9]+"
    r"(?:[-_. ]?of[-_. ]?[0-9]+)?|[0-9]{4,}",
    re.IGNORECASE,
)


@dataclass(slots=True)
class ImageFolder:
    """The files of `root`, by their paths in it, in the order of those."""

    root: Path
    images: list[Path] = field(default_factory=list)
    # An image's companions by their extensions, in lower case.
    companions: dict[Path, dict[str, Path]] = field(default_factory=dict)
    # Every other file, link and folder that was not read, and why.
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def classes(self, wanted: str) -> tuple[list[str], str]:
        """The classes' names, which are those of the folders right below the root, and a sentence that says so.

        `wanted` is one of CLASSES; `auto` takes folders for classes if every image lies in one, if no image has a
        `.cls` file, and if not all folders are numbered as shards are. Otherwise `.cls` files are left out.
        """
        nested = all(len(image.parts) > 1 for image in self.images)
        names = sorted({image.parts[0] for image in self.images}) if nested else []
        if wanted == "folders" and not names:
            raise SettingsError(f"{self.root}: --classes folders, but not every image lies in a folder below it")
        if wanted != "auto":
            self.leave_out("cls", f"--classes {wanted} was given")
        files = sum("cls" in companions for companions in self.companions.values())
        if files:
            return [], f"classes as the .cls files have them, of {files:,} images"
        if wanted == "none" or not names:
            return [], "no classes"
        if wanted == "auto" and all(_NUMBERED.fullmatch(name) for name in names):
            shown = _listed(names)
            return [], f"no classes, since the folders are numbered ({shown}); --classes folders makes classes of them"
        return names, f"{len(names):,} classes by folder ({_listed(names)}); --classes none makes none"

    def leave_out(self, extension: str, reason: str) -> None:
        """Take away the companions of that extension, and list them with `reason`."""
        lost = {beside.pop(extension) for beside in self.companions.values() if extension in beside}
        self.left_out = sorted([*self.left_out, *((path, reason) for path in lost)], key=_by_path)


def _by_path(left: tuple[Path, str]) -> str:
    return left[0].as_posix()


def read_folder(root: Path) -> ImageFolder:
    """What lies in `root` and below. SourceError where that is no folder, or one without an image."""
    if not root.is_dir():
        raise SourceError(f"{root}: not a directory; name the folder that holds the images")
    found = ImageFolder(root)
    others: list[Path] = []
    for path in sorted(_files(root, found.left_out), key=Path.as_posix):
        if not (root / path).is_file():
            reason = "a link to nothing" if (root / path).is_symlink() else "no regular file"
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
            found.left_out.append((path, "no image, nor a .txt, .json or .cls of the name of one beside it"))
        for image in beside:
            if (known := found.companions.setdefault(image, {}).setdefault(extension, path)) != path:
                found.left_out.append((path, f"{known.as_posix()} is the .{extension} of the image beside it"))
    found.left_out.sort(key=_by_path)
    if not found.images:
        wanted = ", ".join(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))
        others_named = f"; {left_out(found)}" if found.left_out else ""
        raise SourceError(
            f"{root}: no image in this folder or below; files that end in {wanted} are taken{others_named}"
        )
    return found


def left_out(found: ImageFolder) -> str:
    """How many files were left out, and the first of them."""
    return f"{len(found.left_out):,} left out ({_listed([path.as_posix() for path, _ in found.left_out])})"


def _files(root: Path, left: list[tuple[Path, str]]) -> Iterator[Path]:
    """Every file below `root`, relative to it; hidden ones, and folders that are not entered, go to `left`."""
    top = root.resolve()
    entered = {top}

    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror}); mend its permissions") from error

    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        here = Path(folder).relative_to(root)
        kept = []
        for name in sorted(folders):
            path, real = here / name, (root / here / name).resolve()
            is_link = (root / path).is_symlink()
            if _is_hidden(name):
                left.append((path, "a hidden folder"))
            elif real in entered or (is_link and (real in top.parents or _is_read_within(top, real))):
                # Its files are taken where they are, or it is a circle.
                left.append((path, "a folder that is read already by another path, or a link to one that holds this"))
            else:
                entered.add(real)
                kept.append(name)
        folders[:] = kept
        for name in files:
            if name.startswith("."):
                left.append((here / name, "a hidden file"))
            else:
                yield here / name


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_read_within(top: Path, real: Path) -> bool:
    """Whether the folder `real` lies in `top` and is reached there without a link; hidden folders are not."""
    return real.is_relative_to(top) and not any(map(_is_hidden, real.relative_to(top).parts))


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join(map(escaped, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
