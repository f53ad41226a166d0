"""The members of a tar, read forwards: names, where their data lies, and the data on request.

Python's tarfile ends without a word at a header that it cannot read; here that is a SourceError with its
offset, as is a member that the shard ends before. What members are for is not known here.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator

from headspan.errors import SourceError
from headspan.sources import ShardReader

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
# Adler-32's lower half is 1 and all bytes, modulo this; a header's sum is at most twice as large.
_ADLER_MODULUS = 65521
# Holds an image's companions and the next image's header in the usual tar, so that one read serves them all.
_WINDOW_BYTES = 8192
# Long names and pax records are some hundred bytes; a larger one is garbage that passed for a header.
_EXTENSION_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
# Hard and symbolic.
_LINKS = (b"1", b"2")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")

# A regular member: its path, where its data lies, its size, and which of the tar's archives it is in.
Member = tuple[str, int, int, int]


class Tar:
    """The members of a tar: ustar, GNU long names, hard links, pax records, archives one after the other."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self._window = b""
        self._start = 0

    def members(self) -> Iterator[Member]:
        """Every regular member; between two of them, `read` may fetch the data of the first."""
        offset, archive, closed = 0, 0, False
        pax: dict[str, str] = {}
        own: dict[str, str] = {}
        places: dict[str, tuple[int, int]] = {}
        while len(block := self._take(offset, _BLOCK)) == _BLOCK:
            if block == _ZEROS:
                closed = True
                offset += _BLOCK
                continue
            if closed:
                archive, closed, pax = archive + 1, False, {}
            kind, name, size = self._header(block, offset)
            data = offset + _BLOCK
            if kind in (b"L", b"K", b"x", b"X", b"g"):
                text = self._extension(offset, size)
                if kind in (b"L", b"K"):
                    own["path" if kind == b"L" else "linkpath"] = _text(text.partition(b"\0")[0])
                else:
                    (pax if kind == b"g" else own).update(self._records(text, offset))
            else:
                values = {**pax, **own} if pax or own else {}
                name = values.get("path", name)
                if "size" in values:
                    size = self._size(values["size"], offset)
                if kind == b"S" or any(key.startswith("GNU.sparse.") for key in values):
                    raise self._damaged(offset, f"{name} is stored sparse, which headspan does not read")
                if kind in _REGULAR and not name.endswith("/"):
                    places[name] = (data, size)
                    yield name, data, size, archive
                elif kind in _LINKS:
                    # A hard link is a second name of an earlier member's data, as GNU tar writes it; any
                    # other link has no data here, and is a member of no bytes.
                    target = values.get("linkpath", _text(block[157:257].partition(b"\0")[0]))
                    yield name, *(places.get(target, (data, 0)) if kind == _LINKS[0] else (data, 0)), archive
                own = {}
            offset = data + (0 if kind in _WITHOUT_DATA else -(-size // _BLOCK) * _BLOCK)
        self._check_end(block, offset, closed, bool(own))

    def read(self, offset: int, size: int) -> bytes:
        """A member's data; SourceError where the shard ends before it does."""
        data = self._take(offset, size)
        return data if len(data) == size else self._reader.read_at(offset, size)

    def _take(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`, fewer only at the end; never reads a byte twice, nor goes back."""
        begin = offset - self._start
        if begin + size > len(self._window):
            kept = self._window[begin:]
            wanted = max(size, _WINDOW_BYTES) - len(kept)
            self._window = kept + self._reader.read_up_to(offset + len(kept), wanted)
            self._start, begin = offset, 0
        return self._window[begin : begin + size]

    def _header(self, block: bytes, offset: int) -> tuple[bytes, str, int]:
        """Type, name and size of a header block whose checksum is right."""
        kind = block[156:157]
        try:
            # The common header, read without tarfile: a plan is mostly this.
            size = int(block[124:136].strip(b" \0") or b"0", 8)
            # The sum of all bytes, spaces for the stored sum; Adler-32 has it in its lower half, a tenth of the time.
            wanted = int(block[148:156].strip(b" \0"), 8) - 8 * 32 + sum(block[148:156])
            right = (1 + wanted) % _ADLER_MODULUS == zlib.adler32(block) & 0xFFFF
        except ValueError:
            right = False
        if not right or size < 0:
            # Sizes beyond 8 GiB, signed checksums, and everything that is wrong.
            try:
                size = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace").size
            except tarfile.HeaderError as error:
                raise self._damaged(offset, f"no tar header ({error})") from error
        if size < 0:
            raise self._damaged(offset, f"a member of {size} bytes")
        name = block[:100].partition(b"\0")[0]
        # Where the magic is GNU's, the prefix field holds times.
        if block[345] and block[257:263] == b"ustar\0":
            name = block[345:500].partition(b"\0")[0] + b"/" + name
        return kind, _text(name), size

    def _extension(self, offset: int, size: int) -> bytes:
        if size > _EXTENSION_BYTES:
            raise self._damaged(offset, f"a name or pax header of {size} bytes")
        return self.read(offset + _BLOCK, size)

    def _records(self, data: bytes, offset: int) -> dict[str, str]:
        """pax records: `length key=value\\n`, the length being the record's, in bytes."""
        records: dict[str, str] = {}
        while data.strip(b"\0"):
            length, space, _ = data.partition(b" ")
            size = int(length) if re.fullmatch(rb"[0-9]{1,7}", length) else 0
            key, equals, value = data[len(length) + 1 : size - 1].partition(b"=")
            if not (space and equals and data[size - 1 : size] == b"\n"):
                raise self._damaged(offset, "a pax header whose records do not add up")
            records[_text(key)] = _text(value)
            data = data[size:]
        return records

    def _size(self, text: str, offset: int) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise self._damaged(offset, f"a pax header with size {text!r}")
        return int(text)

    def _check_end(self, block: bytes, offset: int, closed: bool, open_header: bool) -> None:
        url = self._reader.url
        if offset == 0 and not block:
            raise SourceError(f"{url}: empty (0 bytes), where a tar was wanted; fetch the shard again")
        if offset == 0 and len(block) < _BLOCK:
            raise SourceError(
                f"{url}: not a tar: {len(block)} bytes, where a header alone takes {_BLOCK}; give .tar or .tar.gz "
                "shards, or fetch the shard again"
            )
        if open_header or (block and not (closed and not any(block))):
            end = offset + len(block)
            raise SourceError(
                f"{url}: truncated: wanted {_BLOCK} bytes at offset {offset}, the file ends at {end}; "
                "fetch the shard again"
            )
        if not closed and not self._reader.knows_its_end:
            # Cut off between two members looks the same, and would lose the rest.
            raise SourceError(
                f"{url}: the stream ends at offset {offset} without a tar's end marker, so it may be "
                "cut short; fetch the shard to a file and name that"
            )

    def _damaged(self, offset: int, found: str) -> SourceError:
        if offset == 0:
            return SourceError(
                f"{self._reader.url}: not a tar: at offset 0 comes {found}; give .tar or .tar.gz shards, "
                "or fetch the shard again"
            )
        return SourceError(
            f"{self._reader.url}: damaged: at offset {offset} comes {found}, where a member was wanted; "
            "fetch the shard again"
        )


def _text(name: bytes) -> str:
    # Escaped rather than kept as surrogates, which no UTF-8 table could store.
    return name.decode("utf-8", "backslashreplace")
