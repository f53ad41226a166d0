"""Make names to keys of samples, as WebDataset can read them from a tar."""

from __future__ import annotations


class Keys:
    """Makes names to keys of WebDataset, each of which is given out once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def key_of(self, name: str) -> str:
        """Return the key for `name`, which may have folders: without dots, which would end it, and not yet used."""
        folder, slash, base = name.strip("/").rpartition("/")
        key = plain = as_utf8(f"{folder}{slash}{base.replace('.', '_')}")
        if key.startswith("__") or not base:
            # Webdataset skips folders whose names begin and end with two underscores.
            key = plain = f"0{key}"
        number = 1
        while key in self._used:
            number += 1
            key = f"{plain}_{number}"
        self._used.add(key)
        return key


def as_utf8(name: str) -> str:
    """A file's name as text, with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
