"""Say where a store is: the path of a folder, or the URL of a place in an object store such as `s3://bucket/run.zarr`.

Both kinds of location have a name, and a file of the store is `location / key` in messages.
"""

from __future__ import annotations

from pathlib import Path

from headspan.errors import HeadspanError, SettingsError
from headspan.io.stores import is_object_store
from headspan.user_paths import expand_user


class StoreURL(str):
    """The URL of a store in an object store, without a slash at its end."""

    __slots__ = ()

    def __new__(cls, url: str) -> StoreURL:
        return super().__new__(cls, url.rstrip("/"))

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part of the URL without its ending."""
        return self.name.rpartition(".")[0] or self.name

    def resolve(self) -> StoreURL:
        """The URL itself, which has no links."""
        return self

    def absolute(self) -> StoreURL:
        """The URL itself, which is named alike from any folder."""
        return self

    def __truediv__(self, key: str) -> StoreURL:
        return StoreURL(f"{self}/{key}")


# Where a store is.
Location = Path | StoreURL


def location_of(given: str | Path, error: type[HeadspanError] = SettingsError) -> Location:
    """The location that a user gives: a URL, or a path with `~` replaced. Raises `error` if `~user` does not exist."""
    return StoreURL(given) if isinstance(given, str) and is_object_store(given) else expand_user(given, error)
