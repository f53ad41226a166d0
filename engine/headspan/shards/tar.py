"""The members of a tar, read forwards: their names, where their data is, and the data on request.

Python's tarfile ends without an error at a header that it cannot read. Here such a header, a shard that ends within a
member, and a tar that turns into zeros each raise SourceError with the offset. Oddities of a readable tar are listed in
`Tar.remarks`.
"""

from __future__ import annotations

from collections.abc import Iterator

from headspan.shards.links import Links
from headspan.shards.reader import ShardReader
from headspan.shards.tar_end import (
    MARKER_BYTES,
    MOST_ZEROS,
    ZEROS,
    end_remarks,
    trailing_remark,
    zeros_error,
    zeros_remarks,
)
from headspan.shards.tar_header import (
    BLOCK_BYTES,
    FILE_TYPES,
    GLOBAL_PAX,
    HARD_LINK,
    LINK_TYPES,
    LONG_NAME,
    LONG_TARGET,
    MOST_EXTENSION_BYTES,
    PAX_TYPES,
    SYMBOLIC_LINK,
    TYPES_WITHOUT_DATA,
    damaged,
    decoded,
    is_header,
    link_target,
    read_header,
    read_pax_records,
    read_pax_size,
)

# In the usual tar this holds an image's companions and the next image's header, so one read serves them all.
_WINDOW_BYTES = 8192
# The size of a link whose file is not known yet. `Tar.links` finds the file once all members are read.
LINK = -1
# A file or a link: its path, the offset of its data, its size, and the number of its archive in the tar.
Member = tuple[str, int, int, int]


class Tar:
    """The members of a tar: ustar, GNU long names, links, pax records, concatenated archives."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self._window = b""
        self._start = 0
        # Resolves links once all members are read.
        self.links = Links()
        # Oddities of the tar, one sentence each. Complete once all members are read.
        self.remarks: list[str] = []

    def members(self) -> Iterator[Member]:
        """Yield every file and link. Before the next one is requested, `read` may fetch the data of the last one.

        Raises SourceError if the shard is not a complete tar.
        """
        url = self._reader.url
        offset, archive = 0, 0
        # Where the archive begins, and where the zeros after its last member begin, if any came.
        begin, zeros = 0, -1
        global_pax: dict[str, str] = {}
        own: dict[str, str] = {}
        files = self.links.begin_archive()
        while len(block := self._take(offset, BLOCK_BYTES)) == BLOCK_BYTES:
            if block == ZEROS:
                zeros = offset if zeros < 0 else zeros
                offset += BLOCK_BYTES
                if offset - zeros > MOST_ZEROS:
                    raise zeros_error(url, begin, zeros, f"at least {offset}")
                continue
            if zeros >= 0:
                self.remarks += zeros_remarks(url, begin, zeros, offset, followed=True)
                if offset - zeros >= MARKER_BYTES and not is_header(block):
                    self.remarks.append(trailing_remark(url, self._take, zeros, offset))
                    return
                archive, begin, zeros, global_pax = archive + 1, offset, -1, {}
                files = self.links.begin_archive()
            kind, name, size = read_header(block, url, offset)
            data = offset + BLOCK_BYTES
            if kind in (LONG_NAME, LONG_TARGET):
                text = self._read_extension(offset, size)
                own["path" if kind == LONG_NAME else "linkpath"] = decoded(text.partition(b"\0")[0])
            elif kind in PAX_TYPES:
                records = read_pax_records(self._read_extension(offset, size), url, offset)
                (global_pax if kind == GLOBAL_PAX else own).update(records)
            else:
                values = {**global_pax, **own} if global_pax or own else {}
                name = values.get("path", name)
                if "size" in values:
                    size = read_pax_size(values["size"], url, offset)
                if kind == b"S" or any(key.startswith("GNU.sparse.") for key in values):
                    raise damaged(url, offset, f"{name}, a sparse file that headspan cannot read,")
                if kind in FILE_TYPES and not name.endswith("/"):
                    if name in files:
                        self.links.repeated(name)
                    files[name] = (data, size)
                    yield name, data, size, archive
                elif kind in LINK_TYPES:
                    target = values.get("linkpath", link_target(block))
                    if kind == HARD_LINK and target in files:
                        # A second name for an earlier member's data, as GNU tar writes it.
                        files[name] = files[target]
                        yield name, *files[name], archive
                    else:
                        self.links.add(data, name, target, symbolic=kind == SYMBOLIC_LINK)
                        yield name, data, LINK, archive
                own = {}
            offset = data + (0 if kind in TYPES_WITHOUT_DATA else -(-size // BLOCK_BYTES) * BLOCK_BYTES)
        self.remarks += end_remarks(self._reader, block, offset, begin, zeros, in_extension=bool(own))

    def has_passed(self, offset: int) -> bool:
        """Whether `offset` is before the window, so that reading there would open a stream again."""
        return offset < self._start

    def read(self, offset: int, size: int) -> bytes:
        """A member's data. Raises SourceError if the shard ends within it."""
        data = b"" if self.has_passed(offset) else self._take(offset, size)
        return data if len(data) == size else self._reader.read_at(offset, size)

    def _take(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`, fewer only at the end. Never reads a byte twice, nor goes back."""
        begin = offset - self._start
        if begin + size > len(self._window):
            rest = self._window[begin:]
            missing = max(size, _WINDOW_BYTES) - len(rest)
            self._window = rest + self._reader.read_up_to(offset + len(rest), missing)
            self._start, begin = offset, 0
        return self._window[begin : begin + size]

    def _read_extension(self, offset: int, size: int) -> bytes:
        """The data of a long name or pax header at `offset`."""
        if size > MOST_EXTENSION_BYTES:
            raise damaged(self._reader.url, offset, f"a name or pax header of {size} bytes")
        return self.read(offset + BLOCK_BYTES, size)
