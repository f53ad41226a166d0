"""fsspec drivers that raise chosen errors; importing this module registers them."""

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
    """A driver's own exception, which is not one of Python's."""


class StatusError(DriverError):
    """An exception with the server's answer, as in requests and httpx."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server said {status}")
        self.response = type("Answer", (), {"status_code": status})()


class Troubled(AbstractFileSystem):
    """Holds one shard, and raises the errors in `trouble`."""

    protocol = "troubled"
    cachable = False
    # For each place (a method), the errors of its next calls.
    trouble: dict[str, list[BaseException]] = {}  # noqa: RUF012

    @classmethod
    def meet(cls, place: str) -> None:
        """Raise the next error of `place`, if there is one."""
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
    """Raises the errors of the file system."""

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
        # The garbage collector closes files too, and an error raised there would be lost.
        super().close()


class TroubledAsync(AsyncFileSystem):
    """The same with coroutines, as in network drivers."""

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
