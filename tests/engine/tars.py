"""Build tars for tests: from members, from images with captions, and from headers written by hand."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterable

Members = Iterable[tuple[str, bytes]]


def tar_bytes(members: Members, form: int = tarfile.GNU_FORMAT, **options: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def pairs(count: int, size: int = 700) -> list[tuple[str, bytes]]:
    """`count` images of about `size` bytes, each followed by its caption."""
    members = []
    for n in range(count):
        members += [(f"{n:06d}.jpg", bytes([n % 251]) * (size + n)), (f"{n:06d}.txt", b"caption %d" % n)]
    return members


def header(name: bytes, size: bytes, kind: bytes = b"0", prefix: bytes = b"", magic: bytes = b"ustar\x0000") -> bytes:
    """A header block, written by hand."""
    block = bytearray(struct.pack("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
        name, b"0000644\0", b"0000000\0", b"0000000\0", size, b"00000000000\0", b" " * 8, kind, b"", magic, b"", b"",
        b"", b"", prefix))  # fmt: skip
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
