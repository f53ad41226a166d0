"""Drivers of sources that raise whatever they are told to; importing this registers them with fsspec."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

from tests.engine.tars import pairs, tar_bytes

DATA = tar_bytes(pairs(30))


class DriverError(Exception):
    """A driver's own exception, which is of none of Python's kinds."""


class StatusError(DriverError):
    """One with the server's answer, as requests and httpx have it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server said {status}")
        self.response = type("Answer", (), {"status_code": status})()


class Troubled(AbstractFileSystem):
    """Holds one shard, and raises what it is told to, in the place that it is told."""

    protocol = "troubled"
    cachable = False
    # The place (a method), and the errors of its next calls.
    trouble: dict[str, list[BaseException]] = {}  # noqa: RUF012

    @classmethod
    def meet(cls, place: str) -> None:
        """Raise what is next there."""
        if cls.trouble.get(place):
            raise cls.trouble[place].pop(0)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meet("init")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.meet("info")
        return {"name": path, "size": len(DATA), "type": "file"}

    def modified(self, path: str) -> Any:
        self.meet("modified")
        raise NotImplementedError

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.meet("open")
        return TroubledFile(DATA)


class TroubledFile(io.BytesIO):
    """Raises where the file system does."""

    def seekable(self) -> bool:
        Troubled.meet("seekable")
        return "stream" not in Troubled.trouble

    def seek(self, *place: int) -> int:
        Troubled.meet("seek")
        return super().seek(*place)

    def read(self, size: int | None = -1, /) -> bytes:
        Troubled.meet("read")
        return super().read(size)

    def close(self) -> None:
        # Files that fail are closed by the garbage collector too, where nothing may be raised.
        super().close()


class TroubledAsync(AsyncFileSystem):
    """The same as coroutines, as drivers for networks are."""

    protocol = "troubledasync"
    cachable = False

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        Troubled.meet("info")
        return {"name": path, "size": len(DATA), "type": "file"}

    async def _cat_file(self, path: str, start: int = 0, end: int | None = None, **options: Any) -> bytes:
        await asyncio.sleep(0)
        Troubled.meet("cat")
        return DATA[start:end]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        Troubled.meet("open")
        return TroubledFile(DATA)


fsspec.register_implementation("troubled", Troubled, clobber=True)
fsspec.register_implementation("troubledasync", TroubledAsync, clobber=True)
