"""The end of a tar: whether zeros are padding or damage, and which bytes follow the end.

A tar that is damaged at its end raises SourceError. An unusual but readable end gives remarks, one sentence each.
"""

from __future__ import annotations

from collections.abc import Callable

from headspan.errors import SourceError
from headspan.shards.reader import ShardReader
from headspan.shards.tar_header import BLOCK_BYTES, is_header

ZEROS = bytes(BLOCK_BYTES)
# Two blocks of zeros end a tar.
MARKER_BYTES = 2 * BLOCK_BYTES
# GNU tar and Python, and pax, pad a tar to whole records of these sizes by default.
_RECORD, _PAX_RECORD = 20 * BLOCK_BYTES, 10 * BLOCK_BYTES
# `tar -b N` pads to records of N blocks. Every file is one record for some N, so only powers of two are accepted.
_OTHER_RECORDS = tuple(BLOCK_BYTES << power for power in range(12))
# More zeros than this never end a tar.
MOST_ZEROS = _OTHER_RECORDS[-1] + MARKER_BYTES
# How far bytes after the end are read. A command or a server may never stop.
_MOST_TRAILING_BYTES = 16 << 20


def end_remarks(
    reader: ShardReader, block: bytes, offset: int, begin: int, zeros: int, in_extension: bool
) -> list[str]:
    """Remarks on the end of the shard, whose last `block`, at `offset`, is not a whole one.

    The last archive begins at `begin`, and zeros follow it from `zeros` on, or none if that is negative.
    `in_extension` says that a long name or pax header came last, without its member. Raises SourceError if the tar is
    empty, truncated or damaged.
    """
    url, stop = reader.url, offset + len(block)
    remarks: list[str] = []
    if offset == 0 and not block:
        raise SourceError(f"{url}: empty (0 bytes), but a tar was expected; fetch the shard again")
    if offset == 0 and len(block) < BLOCK_BYTES:
        raise SourceError(
            f"{url}: not a tar: {len(block)} bytes, but a header alone takes {BLOCK_BYTES}; give .tar or .tar.gz "
            "shards, or fetch the shard again"
        )
    if not in_extension and any(block) and zeros >= 0 and offset - zeros >= MARKER_BYTES:
        remarks += zeros_remarks(url, begin, zeros, offset)
        remarks.append(_trailing(offset, stop))
    elif in_extension or (block and (zeros < 0 or any(block))):
        raise SourceError(
            f"{url}: truncated: expected {BLOCK_BYTES} bytes at offset {offset}, but the file ends at {stop}; "
            "fetch the shard again"
        )
    elif zeros >= 0:
        remarks += zeros_remarks(url, begin, zeros, stop)
    elif not reader.knows_its_end:
        # A stream cut off between two members looks the same, and would lose the rest.
        raise SourceError(
            f"{url}: the stream ends at offset {offset} without a tar's end marker, so it may be "
            "truncated; fetch the shard to a file and name that"
        )
    else:
        remarks.append(
            f"the tar has no end marker at offset {offset}, so it may be truncated there; all members before it were "
            "read"
        )
    if reader.has_trailing_garbage:
        packing = reader.packing
        remarks.append(f"bytes that are not {packing} follow the end of the {packing} stream; they were not read")
    return remarks


def zeros_remarks(url: str, begin: int, zeros: int, stop: int, followed: bool = False) -> list[str]:
    """Remarks on the zeros from offset `zeros` to `stop` that end the archive that begins at `begin`.

    `followed` says that other bytes come after them. Raises SourceError for more zeros than pad a record of the usual
    size, or two as `tar -A` leaves them, unless they pad a larger record exactly. Zeros that are allowed but unusual
    get a remark.
    """
    count, length, whole = stop - zeros, stop - begin, zeros + MARKER_BYTES - begin
    most = _RECORD + MARKER_BYTES - BLOCK_BYTES
    # GNU tar appends an archive after the zeros of the first, and pads once more.
    too_many = count > (most + _RECORD if stop % _RECORD == 0 and zeros > begin else most)
    if zeros == begin and count <= _RECORD:
        return [f"an archive of {count:,} bytes at offset {begin} contains only zeros and no member"]
    if any(length == _padded(whole, size) for size in (_PAX_RECORD, _RECORD)):
        return []
    # A tar with the length of whole usual records may have lost its last members to zeros up to that length.
    other = length % _RECORD != 0 and any(length == _padded(whole, size) for size in _OTHER_RECORDS)
    if too_many and not (other and zeros > begin):
        raise zeros_error(url, begin, zeros, str(stop))
    if followed:
        return [
            f"{count:,} bytes of zeros stand between members, from offset {zeros} to {stop}; they were read as the "
            "end of one tar and the beginning of another, but a member may be lost there"
        ]
    if count > most or not (other or count < MARKER_BYTES + BLOCK_BYTES):
        return [
            f"{count:,} bytes of zeros follow the last member, from offset {zeros} to {stop}, more than tar writes "
            "without -A or -b; if the tar was written without them, its last members are lost"
        ]
    return []


def zeros_error(url: str, begin: int, zeros: int, stop: str) -> SourceError:
    """The error for more zeros, from offset `zeros` to `stop`, than end the archive that begins at `begin`."""
    if zeros == begin == 0:
        return SourceError(f"{url}: not a tar: zeros from offset 0 to {stop}; fetch the shard again")
    return SourceError(
        f"{url}: damaged: zeros from offset {zeros} to {stop}, more than end a tar, so members may be lost there; "
        f"fetch the shard again, or cut the file to {zeros + MARKER_BYTES} bytes if it is complete without them"
    )


def trailing_remark(url: str, take: Callable[[int, int], bytes], zeros: int, offset: int) -> str:
    """The remark on bytes from `offset` on that are not a header, after zeros that begin at `zeros`.

    `take(offset, size)` reads the shard. Raises SourceError if members follow after all, since the zeros and the bytes
    are then damage, and if there are more than 16 MiB of such bytes.
    """
    place = offset
    while block := take(place, BLOCK_BYTES):
        if place - offset >= _MOST_TRAILING_BYTES:
            raise SourceError(
                f"{url}: more than {_MOST_TRAILING_BYTES >> 20} MiB that are not a tar follow the end of the tar, from "
                f"offset {offset} on; cut the file there"
            )
        if len(block) == BLOCK_BYTES and block != ZEROS and is_header(block):
            raise SourceError(
                f"{url}: damaged: {offset - zeros:,} bytes of zeros at offset {zeros} and no tar header at {offset}, "
                f"but members follow at offset {place}; fetch the shard again"
            )
        place += len(block)
    return _trailing(offset, place)


def _trailing(offset: int, stop: int) -> str:
    return (
        f"{stop - offset:,} bytes that are not a tar follow the end of the tar, from offset {offset} on; they were not "
        "read"
    )


def _padded(size: int, record: int) -> int:
    """`size`, rounded up to whole records."""
    return -(-size // record) * record
