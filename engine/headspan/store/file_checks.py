"""Compare files with their recorded sizes and checksums.

What `zarr.consolidate_metadata` adds to a group's metadata does not count as damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import google_crc32c

from headspan.io.local import LocalStorage
from headspan.io.remembered import Remembered
from headspan.io.storage import Checksum, Storage

# Files of a bucket that are read at the same time. One holds some 32 MB meanwhile.
_AT_ONCE = 8


def faults(storage: Storage, files: Mapping[str, Checksum]) -> Iterator[tuple[str, str]]:
    """List those of `files` that differ from their recorded size and crc32c, with what is wrong.

    The metadata of a group may have a copy of the metadata below it, which `zarr.consolidate_metadata` adds.
    """
    for key, found in _checksums(storage, list(files)):
        size, crc = files[key]
        if found is None:
            yield key, f"{key} is missing"
            continue
        found_size, found_crc = found
        if (found_size, found_crc) != (size, crc):
            data = _without_copy(storage, key)
            if data is not None and (len(data), google_crc32c.value(data)) == (size, crc):
                continue
        if found_size != size:
            yield key, f"{key} has {found_size} bytes, but its record says {size}"
        elif found_crc != crc:
            yield key, f"{key} has changed since it was written (crc32c {found_crc:08x}, not {crc:08x})"


def _checksums(storage: Storage, keys: Sequence[str]) -> Iterator[tuple[str, Checksum | None]]:
    """Yield size and crc32c of files, in order; None for a missing one. Of a bucket, several are read at a time."""
    if isinstance(storage, LocalStorage | Remembered):
        yield from ((key, None if storage.size(key) is None else storage.checksum(key)) for key in keys)
        return

    def read(key: str) -> Checksum | None:
        try:
            return storage.checksum(key)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        yield from zip(keys, threads.map(read, keys), strict=True)


def plain(data: bytes) -> bytes:
    """Return the metadata of a group without a copy of other metadata, in the form whose checksum is recorded.

    Raises ValueError if they are damaged.
    """
    metadata = json.loads(data)
    if not isinstance(metadata, dict):
        raise ValueError("the metadata are no JSON object")
    metadata.pop("consolidated_metadata", None)
    # As zarr-python writes it.
    return json.dumps(metadata, indent=2).encode()


def _without_copy(storage: Storage, key: str) -> bytes | None:
    """Return the metadata in a file without a copy of other metadata; None for any other file."""
    if key.rpartition("/")[2] != "zarr.json":
        return None
    try:
        return plain(storage.get(key))
    except (OSError, ValueError):
        return None
