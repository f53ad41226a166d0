"""Links within a tar: which file's data a hard or symbolic link stands for.

A symbolic link is followed as on a disk, from its own folder and through linked folders, to a file that may come
later in the tar. Where that file's name comes more than once, no data is taken rather than another's.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from functools import cached_property

# As many links in a row as Linux follows before it takes them for a circle.
_MOST_HOPS = 40

# Offset and size of a file's data.
Place = tuple[int, int]


@dataclass(slots=True)
class _Archive:
    """The names of one of a tar's archives: its files by their names, its links' targets by clean paths."""

    places: dict[str, Place] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    targets: dict[str, str] = field(default_factory=dict)


class Links:
    """The files and links of a tar, archive by archive."""

    def __init__(self) -> None:
        self._archives: list[_Archive] = []
        # The number of the link's archive, the clean path that it leads to, and whether it is symbolic, by the offset
        # behind its header.
        self._links: dict[int, tuple[int, str, bool]] = {}

    def begin_archive(self) -> dict[str, Place]:
        """From here on, names are another archive's; its files are to be put into the dictionary that is returned."""
        self._archives.append(_Archive())
        return self._archives[-1].places

    def repeated(self, name: str) -> None:
        """Note that the archive holds another file of that name."""
        self._archives[-1].repeated.add(_clean(name))

    def add(self, offset: int, name: str, target: str, symbolic: bool) -> None:
        """Note a link; a symbolic one's target is a path from its own folder, a hard one's a member's name."""
        path = _clean(posixpath.join(posixpath.dirname(name), target) if symbolic else target)
        self._links[offset] = (len(self._archives) - 1, path, symbolic)
        self._archives[-1].targets[_clean(name)] = path

    def target(self, offset: int) -> Place | None:
        """The data that the link behind `offset` leads to, of its own archive or else of another; None where there is
        none, or more than one."""
        found = self._found(offset)
        return found[0] if len(found) == 1 else None

    def what_is_wrong(self, offset: int) -> str:
        """Why the link behind `offset` leads to no data, and what to do."""
        symbolic = self._links[offset][2]
        return dead_link(symbolic, "comes more than once" if self.leads_to_several(offset) else "is not")

    def leads_to_several(self, offset: int) -> bool:
        """Whether the link behind `offset` leads to a name that several files have."""
        return len(self._found(offset)) > 1

    def leads_to_a_folder(self, offset: int) -> bool:
        """Whether the link behind `offset` leads to a folder of files."""
        number, path, _ = self._links[offset]
        return path == "." or self._followed(self._archives[number], path) in self._folders

    def _found(self, offset: int) -> list[Place]:
        number, path, _ = self._links[offset]
        everywhere = range(len(self._archives))
        return self._in_archive(number, path) or [
            place for other in everywhere for place in self._in_archive(other, path)
        ]

    def _in_archive(self, number: int, path: str) -> list[Place]:
        """The files that `path` leads to in that archive; two stand for any number of more than one."""
        archive = self._archives[number]
        name = self._followed(archive, path)
        places = [self._files[number][name]] if name in self._files[number] else []
        return places * 2 if name in archive.repeated else places

    def _followed(self, archive: _Archive, path: str) -> str:
        """`path`, or where it leads to through links of the archive; the path of a circle is no file's."""
        for _ in range(_MOST_HOPS):
            parts = path.split("/")
            heads = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            link = next((head for head in heads if head in archive.targets), None)
            if link is None:
                return path
            path = _clean(archive.targets[link] + path[len(link) :])
        return ""

    # Made when the first link is followed, which few tars have.
    @cached_property
    def _files(self) -> list[dict[str, Place]]:
        return [{_clean(name): place for name, place in archive.places.items()} for archive in self._archives]

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
    """The sentence for a link whose file is not in the tar, or whatever else `what` says of it, and what to do."""
    kind, todo = ("symbolic", "-h") if symbolic else ("hard", "--hard-dereference")
    return f"a {kind} link, whose file {what} in this tar; pack with tar {todo}"


def _clean(path: str) -> str:
    """`path` without `./`, `a/../` and a slash in front, which tar takes away from absolute names."""
    return posixpath.normpath(path).lstrip("/")
