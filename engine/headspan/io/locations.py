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

    def __truediv__(self, key: str) -> StoreURL:
        return StoreURL(f"{self}/{key}")


# Where a store is.
Location = Path | StoreURL


def location_of(given: str | Path, error: type[HeadspanError] = SettingsError) -> Location:
    """The location that a user gives: a URL, or a path with `~` replaced. Raises `error` if `~user` does not exist."""
    return StoreURL(given) if isinstance(given, str) and is_object_store(given) else expand_user(given, error)


def unique(location: Location) -> str:
    """The location with links resolved, which tells whether two locations are one store."""
    return str(location.resolve() if isinstance(location, Path) else location)


def absolute(location: Location) -> Location:
    """The location as it is named from any folder."""
    return location.absolute() if isinstance(location, Path) else location
