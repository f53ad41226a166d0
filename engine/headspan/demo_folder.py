"""The folder that a demo writes: a demo replaces an earlier demo in it and deletes nothing else.

Files are written in a folder with a random name and then moved to their final names. Before each move, a marker file
records the random name, and the size and checksum of every file. The next demo deletes only files that the marker
records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from headspan.errors import StoreError
from headspan.io.files import checksum, delete_folder, move, new_token, refusals, staged, write_atomically
from headspan.user_paths import expand_user

MARKER = ".headspan-demo.json"
# Size and crc32c of each file, by its path in the demo's folder; None for a folder.
Entries = dict[str, list[int] | None]


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """The folder of a demo, and what its marker says: the token of the temporary folder, and the demo's files."""

    folder: Path
    token: str
    made: Entries

    @property
    def making(self) -> Path:
        """The temporary folder."""
        return self.folder / f".headspan-demo-{self.token}"

    @classmethod
    def begin(cls, out: str | Path) -> DemoFolder:
        """Delete an earlier demo in the folder `out`, and begin one. Raises StoreError if it holds anything else."""
        if not str(out):
            raise StoreError("--out is empty; name the folder to write, such as headspan-demo")
        folder = expand_user(out)
        if "\0" in str(folder):
            raise StoreError(f"{folder}: no folder can have that name; choose another --out")
        with refusals(folder):
            if folder.exists() and not folder.is_dir():
                raise StoreError(f"{folder}: is a file; choose another --out")
            if not folder.exists() or not any(folder.iterdir()):
                folder.mkdir(parents=True, exist_ok=True)
                place = cls(folder, new_token(), {})
            else:
                place = cls(folder, *_read_marker(folder))
                place._delete_made()
            place._mark()
            place.making.mkdir()
        return place

    def move(self, *names: str) -> None:
        """Move files and folders to their final place, after the marker has listed them."""
        with refusals(self.folder):
            self.made.update(_entries(self.making))
            self._mark()
            for name in names:
                if (self.folder / name).exists():
                    raise StoreError(f"{self.folder / name}: appeared while the demo ran; choose another --out")
                move(self.making / name, self.folder / name)

    def _delete_made(self) -> None:
        """Delete the marker's files and the temporary folder. Raises StoreError if there are other files."""
        own = {MARKER, staged(self.folder / MARKER, self.token).name, self.making.name}
        if self.making.is_symlink():
            own.remove(self.making.name)
        found = _entries(self.folder, skip=own)
        strangers = sorted(name for name, entry in found.items() if entry == [] or self.made.get(name, ()) != entry)
        if strangers:
            raise StoreError(
                f"{self.folder}: holds {strangers[0]}, which the earlier demo did not write, or which has changed "
                "since; choose another --out, or move it away"
            )
        delete_folder(self.making)
        for name in sorted(found, reverse=True):
            if found[name] is None:
                (self.folder / name).rmdir()
            else:
                (self.folder / name).unlink()
        self.made.clear()

    def _mark(self) -> None:
        content = {"made by": f"headspan {version('headspan')} demo", "making": self.token, "files": self.made}
        write_atomically(self.folder / MARKER, [json.dumps(content, indent=0).encode()], self.token)


def _read_marker(folder: Path) -> tuple[str, Entries]:
    """The token and the files that the marker in `folder` records. Raises StoreError if there is no readable marker."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        token, made = marker["making"], dict(marker["files"])
        if not re.fullmatch("[0-9a-f]{8}", token):
            raise ValueError("not a token")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise StoreError(
            f"{folder}: is not empty and has no readable {MARKER}, so no demo of this version wrote it; choose another "
            "--out, or delete the folder yourself"
        ) from None
    return token, made


def _entries(folder: Path, skip: Collection[str] = ()) -> Entries:
    """Every file and folder below `folder`, except the top entries named in `skip`.

    A link or a special file, which no demo writes, gets an entry that no marker can contain.
    """
    found: Entries = {}
    for top in sorted(folder.iterdir()):
        if top.name in skip:
            continue
        for path in (top, *(top.rglob("*") if top.is_dir() and not top.is_symlink() else ())):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                found[name] = []
            else:
                found[name] = None if path.is_dir() else list(checksum(path))
    return found
