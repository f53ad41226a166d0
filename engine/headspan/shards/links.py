"""Resolve hard and symbolic links within a tar to the data of the files that they lead to.

A symbolic link is followed as on a disk: from its own folder, through linked folders, to a file that may come later in
the tar. If several files have that file's name, the link leads to none, since the data might be another's.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from functools import cached_property

# Linux follows as many links in a row before it reports a loop.
_MOST_HOPS = 40

# Offset and size of a file's data.
Place = tuple[int, int]


@dataclass(slots=True)
class _Archive:
    """The names in one of a tar's archives: the places of its files, and the targets of its links by clean paths."""

    files: dict[str, Place] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    targets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Link:
    """A link: the number of its archive, the clean path that it leads to, and whether it is symbolic."""

    archive: int
    path: str
    symbolic: bool


class Links:
    """The files and links of a tar, archive by archive. A link is identified by the offset after its header."""

    def __init__(self) -> None:
        self._archives: list[_Archive] = []
        self._links: dict[int, _Link] = {}

    def begin_archive(self) -> dict[str, Place]:
        """Begin another archive; the caller adds its files to the dictionary that is returned."""
        self._archives.append(_Archive())
        return self._archives[-1].files

    def repeated(self, name: str) -> None:
        """Record that the archive holds another file with that name."""
        self._archives[-1].repeated.add(_clean(name))

    def add(self, offset: int, name: str, target: str, symbolic: bool) -> None:
        """Record a link. A symbolic link's target is relative to its own folder, a hard link's is a member's name."""
        path = _clean(posixpath.join(posixpath.dirname(name), target) if symbolic else target)
        self._links[offset] = _Link(len(self._archives) - 1, path, symbolic)
        self._archives[-1].targets[_clean(name)] = path

    def target(self, offset: int) -> Place | None:
        """The data that the link leads to, in its own archive or else in another; None if there is none or several."""
        found = self._found(offset)
        return found[0] if len(found) == 1 else None

    def what_is_wrong(self, offset: int) -> str:
        """Why the link leads to no data, and what to do."""
        symbolic = self._links[offset].symbolic
        return dead_link(symbolic, "occurs several times" if self.leads_to_several(offset) else "is not")

    def leads_to_several(self, offset: int) -> bool:
        """Whether several files have the name that the link leads to."""
        return len(self._found(offset)) > 1

    def leads_to_a_folder(self, offset: int) -> bool:
        """Whether the link leads to a folder that holds files."""
        link = self._links[offset]
        return link.path == "." or self._followed(self._archives[link.archive], link.path) in self._folders

    def _found(self, offset: int) -> list[Place]:
        link = self._links[offset]
        everywhere = range(len(self._archives))
        return self._in_archive(link.archive, link.path) or [
            place for other in everywhere for place in self._in_archive(other, link.path)
        ]

    def _in_archive(self, number: int, path: str) -> list[Place]:
        """The files that `path` leads to in that archive: none, one, or two that stand for several."""
        archive = self._archives[number]
        name = self._followed(archive, path)
        places = [self._files[number][name]] if name in self._files[number] else []
        return places * 2 if name in archive.repeated else places

    def _followed(self, archive: _Archive, path: str) -> str:
        """Where `path` leads through the archive's links; the empty string, which no file has, for a loop."""
        for _ in range(_MOST_HOPS):
            parts = path.split("/")
            heads = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            link = next((head for head in heads if head in archive.targets), None)
            if link is None:
                return path
            path = _clean(archive.targets[link] + path[len(link) :])
        return ""

    # Computed when the first link is followed. Few tars have links.
    @cached_property
    def _files(self) -> list[dict[str, Place]]:
        return [{_clean(name): place for name, place in archive.files.items()} for archive in self._archives]

    @cached_property
    def _folders(self) -> set[str]:
        folders: set[str] = set()
        for files in self._files:
            for name in files:
                while name and name not in folders:
                    name = posixpath.dirname(name)
                    folders.add(name)
        return folders - {""}


def dead_link(symbolic: bool, what: str = "is not") -> str:
    """Why a link leads to no data, and what to do. `what` is "is not" or "occurs several times", said of the file."""
    kind, flag = ("symbolic", "-h") if symbolic else ("hard", "--hard-dereference")
    return f"a {kind} link to a file that {what} in this tar; pack with tar {flag}"


def _clean(path: str) -> str:
    """`path` without `./`, `a/../` and a leading slash, which tar removes from absolute names."""
    return posixpath.normpath(path).lstrip("/")
