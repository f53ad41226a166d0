"""Write numbered tars in WebDataset's format, each of which is complete or absent.

The same samples always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from headspan.errors import SettingsError
from headspan.io.files import move, new_token, staged


class StagedTar:
    """One tar that is written under a temporary name. A context manager: after an exception nothing is left."""

    def __init__(self, path: Path) -> None:
        """Open the temporary file. Raises OSError if the disk refuses, here and below."""
        # Imported here, because it takes a while and `tools` list their flags without it.
        from webdataset.writer import TarWriter

        self._path, self._temporary = path, staged(path, new_token())
        self._file = self._temporary.open("wb")
        # A fixed time, so that the same samples give the same bytes.
        self._tar = TarWriter(self._file, mtime=0)
        self.samples = 0

    def __enter__(self) -> StagedTar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.discard()

    def write(self, sample: Mapping[str, str | bytes]) -> None:
        """Write one sample: its `__key__`, and contents by extension."""
        self._tar.write(dict(sample))
        self.samples += 1

    def finish(self) -> None:
        """Complete the tar and give it its name."""
        self._tar.close()
        self._file.close()
        move(self._temporary, self._path)

    def discard(self) -> None:
        """Delete the temporary file."""
        # In this order: an open tar writes its end when it is deleted.
        with suppress(OSError):
            self._tar.close()
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class TarShards:
    """Writes samples to `out/000000.tar` and so on, `images_per_shard` in each. A context manager."""

    def __init__(self, out: Path, images_per_shard: int) -> None:
        """Create the folder. Raises SettingsError if it exists and is not empty, or if the number is below 1."""
        if images_per_shard < 1:
            raise SettingsError(f"{images_per_shard} images per shard are too few; give at least 1")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise SettingsError(f"{out}: exists and is not an empty directory; name another, or remove it")
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._images_per_shard = out, images_per_shard
        self._shards = 0
        self._tar: StagedTar | None = None

    def __enter__(self) -> TarShards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._end()
        elif self._tar is not None:
            self._tar.discard()

    @property
    def shards(self) -> int:
        """Number of tars that are complete."""
        return self._shards

    def write(self, sample: Mapping[str, str | bytes]) -> None:
        """Write one sample: its `__key__`, and contents by extension. Raises OSError if the disk refuses."""
        if self._tar is None:
            self._tar = StagedTar(self._out / f"{self._shards:06d}.tar")
        self._tar.write(sample)
        if self._tar.samples == self._images_per_shard:
            self._end()

    def _end(self) -> None:
        """Complete the tar and give it its name."""
        if self._tar is not None:
            self._tar.finish()
            self._tar = None
            self._shards += 1


def numbered(folder: Path, shards: int) -> str:
    """The brace pattern of `shards` shards in `folder`, which begin with 000000.tar."""
    last = shards - 1
    return str(folder / (f"{{000000..{last:06d}}}.tar" if last else "000000.tar"))
