"""The members of a tar, read forwards: names, where their data lies, and the data on request.

Python's tarfile ends without a word at a header that it cannot read; here that is a SourceError with its
offset, as is a member that the shard ends before, and a tar that goes over into zeros. What is odd about a tar that
can be read is kept as a remark. What members are for is not known here.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator

from headspan.errors import SourceError
from headspan.shards.links import Links, dead_link
from headspan.shards.sources import ShardReader

BLOCK_BYTES = 512
_ZEROS = bytes(BLOCK_BYTES)
# Adler-32's lower half is 1 and all bytes, modulo this; a header's sum is at most twice as large.
_ADLER_MODULUS = 65521
# Holds an image's companions and the next image's header in the usual tar, so that one read serves them all.
_WINDOW_BYTES = 8192
# Long names and pax records are some hundred bytes; a larger one is garbage that passed for a header.
_EXTENSION_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_LINKS = (_HARD_LINK, _SYMBOLIC_LINK)
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")

# What GNU tar, Python and pax fill up with zeros, if they are not told otherwise.
_RECORD, _PAX_RECORD = 20 * BLOCK_BYTES, 10 * BLOCK_BYTES
# `tar -b N` fills up N blocks. Any file is one record of some N, so only powers of two are taken for records.
_OTHER_RECORDS = tuple(BLOCK_BYTES << power for power in range(12))
# Two blocks of zeros end a tar.
_MARKER = 2 * BLOCK_BYTES

# Bytes behind the end are read so far: a command or a server may go on for ever.
_MOST_BEHIND_BYTES = 16 << 20

# Stands for the size of a link whose file has not come up to here; `Tar.links` knows it when all members have.
LINK = -1
# A regular member or a link: its path, where its data lies, its size, and which of the tar's archives it is in.
Member = tuple[str, int, int, int]


class Tar:
    """The members of a tar: ustar, GNU long names, links, pax records, archives one after the other."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self._window = b""
        self._start = 0
        # Answer for the links when all members have come.
        self.links = Links()
        # What is odd about the tar although it can be read, a sentence each; complete when all members have come.
        self.remarks: list[str] = []

    def members(self) -> Iterator[Member]:
        """Every regular member and link; between two of them, `read` may fetch the data of the first."""
        offset, archive = 0, 0
        # Where the archive begins, and where the zeros begin that follow its last member, if any were met.
        begin, end = 0, -1
        pax: dict[str, str] = {}
        own: dict[str, str] = {}
        places = self.links.begin_archive()
        while len(block := self._take(offset, BLOCK_BYTES)) == BLOCK_BYTES:
            if block == _ZEROS:
                end = offset if end < 0 else end
                offset += BLOCK_BYTES
                if offset - end > _OTHER_RECORDS[-1] + _MARKER:
                    raise self._zeros(begin, end, f"{offset} and on")
                continue
            if end >= 0:
                self._check_zeros(begin, end, offset, followed=True)
                if offset - end >= _MARKER and not self._is_header(block):
                    self._look_behind(end, offset)
                    return
                archive, begin, end, pax = archive + 1, offset, -1, {}
                places = self.links.begin_archive()
            kind, name, size = self._header(block, offset)
            data = offset + BLOCK_BYTES
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
                    if name in places:
                        self.links.repeated(name)
                    places[name] = (data, size)
                    yield name, data, size, archive
                elif kind in _LINKS:
                    target = values.get("linkpath", _text(block[157:257].partition(b"\0")[0]))
                    if kind == _HARD_LINK and target in places:
                        # A second name of an earlier member's data, as GNU tar writes it.
                        places[name] = places[target]
                        yield name, *places[name], archive
                    else:
                        self.links.add(data, name, target, symbolic=kind == _SYMBOLIC_LINK)
                        yield name, data, LINK, archive
                own = {}
            offset = data + (0 if kind in _WITHOUT_DATA else -(-size // BLOCK_BYTES) * BLOCK_BYTES)
        self._check_end(block, begin, end, offset, bool(own))

    def has_passed(self, offset: int) -> bool:
        """Whether `offset` lies before what is at hand, so that a stream would be opened again to read there."""
        return offset < self._start

    def read(self, offset: int, size: int) -> bytes:
        """A member's data; SourceError where the shard ends before it does."""
        data = b"" if self.has_passed(offset) else self._take(offset, size)
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
        size = _plain_size(block)
        if size < 0:
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
        return self.read(offset + BLOCK_BYTES, size)

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

    def _check_end(self, block: bytes, begin: int, end: int, offset: int, open_header: bool) -> None:
        """Whether the tar may end with `block`, which is no whole one, at `offset`.

        Its last archive began at `begin`, and zeros came from `end` on, or none where that is negative.
        """
        url, stop = self._reader.url, offset + len(block)
        if offset == 0 and not block:
            raise SourceError(f"{url}: empty (0 bytes), where a tar was wanted; fetch the shard again")
        if offset == 0 and len(block) < BLOCK_BYTES:
            raise SourceError(
                f"{url}: not a tar: {len(block)} bytes, where a header alone takes {BLOCK_BYTES}; give .tar or .tar.gz "
                "shards, or fetch the shard again"
            )
        if not open_header and any(block) and end >= 0 and offset - end >= _MARKER:
            self._check_zeros(begin, end, offset)
            self._note_behind(offset, stop)
        elif open_header or (block and (end < 0 or any(block))):
            raise SourceError(
                f"{url}: truncated: wanted {BLOCK_BYTES} bytes at offset {offset}, the file ends at {stop}; "
                "fetch the shard again"
            )
        elif end >= 0:
            self._check_zeros(begin, end, stop)
        elif not self._reader.knows_its_end:
            # Cut off between two members looks the same, and would lose the rest.
            raise SourceError(
                f"{url}: the stream ends at offset {offset} without a tar's end marker, so it may be "
                "cut short; fetch the shard to a file and name that"
            )
        else:
            self.remarks.append(
                f"the tar has no end marker at offset {offset}, so it may be cut short there; all members before were "
                "read"
            )
        if self._reader.has_garbage_behind:
            self.remarks.append("bytes lie behind the end of the gzip stream and are no gzip; they were not read")

    def _check_zeros(self, begin: int, end: int, stop: int, followed: bool = False) -> None:
        """Whether the zeros from `end` to `stop` may end the archive that began at `begin`; `followed` by other bytes.

        Raises SourceError for more zeros than fill up a record of the usual size, or two as `tar -A` leaves them,
        unless they fill up a larger record to its end. Where zeros are allowed and yet unusual, there is a remark.
        """
        zeros, length, whole = stop - end, stop - begin, end + _MARKER - begin
        most = _RECORD + _MARKER - BLOCK_BYTES
        # GNU tar appends an archive with the zeros behind it, and fills up once more.
        too_many = zeros > (most + _RECORD if stop % _RECORD == 0 and end > begin else most)
        if end == begin and zeros <= _RECORD:
            self.remarks.append(f"an archive of {zeros:,} bytes at offset {begin} is zeros and holds no member")
            return
        if any(length == _filled(whole, size) for size in (_PAX_RECORD, _RECORD)):
            return
        # A tar whose length fits the usual records may have lost its last members to zeros, up to that length.
        other = length % _RECORD != 0 and any(length == _filled(whole, size) for size in _OTHER_RECORDS)
        if too_many and not (other and end > begin):
            raise self._zeros(begin, end, str(stop))
        if followed:
            self.remarks.append(
                f"{zeros:,} bytes of zeros lie between members, from offset {end} to {stop}; they were taken for the "
                "end of one tar and the beginning of another, but a member may be lost there"
            )
        elif zeros > most or not (other or zeros < _MARKER + BLOCK_BYTES):
            self.remarks.append(
                f"{zeros:,} bytes of zeros follow the last member, from offset {end} to {stop}, more than tar writes "
                "without -A or -b; if it was not written so, its last members are lost"
            )

    def _zeros(self, begin: int, end: int, stop: str) -> SourceError:
        url = self._reader.url
        if end == begin == 0:
            return SourceError(f"{url}: not a tar: zeros from offset 0 to {stop}; fetch the shard again")
        return SourceError(
            f"{url}: damaged: zeros from offset {end} to {stop}, more than end a tar, so members may be lost there; "
            f"fetch the shard again, or cut the file to {end + _MARKER} bytes if it is whole without them"
        )

    def _is_header(self, block: bytes) -> bool:
        try:
            return _plain_size(block) >= 0 or tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace").size >= 0
        except tarfile.HeaderError:
            return False

    def _look_behind(self, end: int, offset: int) -> None:
        """Remark on what lies from `offset` on, behind the zeros that began at `end`, and is no header.

        Raises SourceError where members follow after all: then the zeros and what comes behind them are damage.
        """
        place = offset
        while block := self._take(place, BLOCK_BYTES):
            if place - offset >= _MOST_BEHIND_BYTES:
                raise SourceError(
                    f"{self._reader.url}: more than {_MOST_BEHIND_BYTES >> 20} MiB lie behind the end of the tar, from "
                    f"offset {offset} on, and are no tar; end the source there"
                )
            if len(block) == BLOCK_BYTES and block != _ZEROS and self._is_header(block):
                raise SourceError(
                    f"{self._reader.url}: damaged: at offset {end} come {offset - end:,} bytes of zeros and at "
                    f"{offset} no tar header, but members follow at offset {place}; fetch the shard again"
                )
            place += len(block)
        self._note_behind(offset, place)

    def _note_behind(self, offset: int, stop: int) -> None:
        self.remarks.append(
            f"{stop - offset:,} bytes lie behind the end of the tar, from offset {offset} on, and are no tar; they "
            "were not read"
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


def dead_link_of(header: bytes) -> str | None:
    """Why there is no data behind this header, if it is a link's."""
    kind = header[156:157]
    return dead_link(kind == _SYMBOLIC_LINK) if kind in _LINKS else None


def _plain_size(block: bytes) -> int:
    """The size that a header has in octal digits, as nearly all have it; negative where the block is no such header."""
    # Read without tarfile: a plan is mostly this.
    try:
        size = int(block[124:136].strip(b" \0") or b"0", 8)
        # The sum of all bytes, spaces for the stored sum; Adler-32 has it in its lower half, a tenth of the time.
        wanted = int(block[148:156].strip(b" \0"), 8) - 8 * 32 + sum(block[148:156])
    except ValueError:
        return -1
    return size if (1 + wanted) % _ADLER_MODULUS == zlib.adler32(block) & 0xFFFF else -1


def _filled(size: int, record: int) -> int:
    """`size`, filled up to whole records."""
    return -(-size // record) * record


def _text(name: bytes) -> str:
    # Escaped rather than kept as surrogates, which no UTF-8 table could store.
    return name.decode("utf-8", "backslashreplace")
