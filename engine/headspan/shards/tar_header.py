"""The header blocks of a tar: types, names and sizes, long names and pax records.

Anything that is not a valid header raises SourceError with its offset.
"""

from __future__ import annotations

import re
import tarfile
import zlib

from headspan.errors import SourceError
from headspan.shards.links import dead_link

BLOCK_BYTES = 512
HARD_LINK, SYMBOLIC_LINK = b"1", b"2"
LINK_TYPES = (HARD_LINK, SYMBOLIC_LINK)
FILE_TYPES = (b"0", b"\0", b"7")
TYPES_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
# GNU tar's headers whose data is the name, or the link's target, of the next member.
LONG_NAME, LONG_TARGET = b"L", b"K"
# pax records for the next member, and for all that follow.
PAX_TYPES, GLOBAL_PAX = (b"x", b"X", b"g"), b"g"
# A long name or pax header has a few hundred bytes. A larger one is garbage that resembles a header.
MOST_EXTENSION_BYTES = 1 << 20
# Adler-32's lower half is 1 plus the sum of all bytes, modulo this. A header's sum is at most twice as large.
_ADLER_MODULUS = 65521


def read_header(block: bytes, url: str, offset: int) -> tuple[bytes, str, int]:
    """Type, name and size of the header `block`. Raises SourceError if it is not a header with a valid checksum."""
    kind = block[156:157]
    size = _octal_size(block)
    if size < 0:
        # Sizes beyond 8 GiB, signed checksums, and everything that is not a header.
        try:
            size = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace").size
        except tarfile.HeaderError as error:
            raise damaged(url, offset, f"no tar header ({error})") from error
    if size < 0:
        raise damaged(url, offset, f"a member of {size} bytes")
    name = block[:100].partition(b"\0")[0]
    # With GNU's magic, the prefix field holds times.
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return kind, decoded(name), size


def is_header(block: bytes) -> bool:
    """Whether `block` is a header with a valid checksum."""
    try:
        return _octal_size(block) >= 0 or tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace").size >= 0
    except tarfile.HeaderError:
        return False


def link_target(block: bytes) -> str:
    """The target that the header of a link states."""
    return decoded(block[157:257].partition(b"\0")[0])


def dead_link_of(block: bytes) -> str | None:
    """Why the member has no data, if its header is a link's; else None."""
    kind = block[156:157]
    return dead_link(kind == SYMBOLIC_LINK) if kind in LINK_TYPES else None


def read_pax_records(data: bytes, url: str, offset: int) -> dict[str, str]:
    """The pax records `length key=value\\n` in `data`; the length is that of the whole record, in bytes.

    Raises SourceError if the lengths do not match the data.
    """
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        size = int(length) if re.fullmatch(rb"[0-9]{1,7}", length) else 0
        key, equals, value = data[len(length) + 1 : size - 1].partition(b"=")
        if not (space and equals and data[size - 1 : size] == b"\n"):
            raise damaged(url, offset, "a pax header whose records have wrong lengths")
        records[decoded(key)] = decoded(value)
        data = data[size:]
    return records


def read_pax_size(text: str, url: str, offset: int) -> int:
    """The size that a pax record states. Raises SourceError if it is not a number."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise damaged(url, offset, f"a pax header with size {text!r}")
    return int(text)


def damaged(url: str, offset: int, found: str) -> SourceError:
    """The error for `found` at `offset`, where a member was expected."""
    if offset == 0:
        return SourceError(
            f"{url}: not a tar: found {found} at offset 0; give .tar or .tar.gz shards, or fetch the shard again"
        )
    return SourceError(
        f"{url}: damaged: found {found} at offset {offset}, where a member was expected; fetch the shard again"
    )


def decoded(name: bytes) -> str:
    """A name as text. Bytes that are not UTF-8 are escaped, since no UTF-8 table can store surrogates."""
    return name.decode("utf-8", "backslashreplace")


def _octal_size(block: bytes) -> int:
    """The size of a header with the usual octal digits; negative if `block` is not such a header."""
    # Faster than tarfile: planning spends most of its time here.
    try:
        size = int(block[124:136].strip(b" \0") or b"0", 8)
        # The checksum sums all bytes, with spaces in place of itself. Adler-32 has that sum in its lower half, and
        # takes a tenth of the time.
        expected = int(block[148:156].strip(b" \0"), 8) - 8 * 32 + sum(block[148:156])
    except ValueError:
        return -1
    return size if (1 + expected) % _ADLER_MODULUS == zlib.adler32(block) & 0xFFFF else -1
