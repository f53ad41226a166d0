"""Shards to every image's row, and rows to units of work, before anything is computed.

Reads tar headers and the small companions of an image (caption, metadata, class), never an image. A tar that
is cut off or holds garbage is a SourceError with its offset: the members after it are not lost in silence.
Rows are consecutive in the order of the shards and of their members.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence

from headspan.errors import SourceError
from headspan.records import BadImage, Listener, Progress, Sample, Shard, Unit, ignore
from headspan.sources import ShardReader, describe, open_shard

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
# A companion is read whole at plan time; one that is larger than this is none.
COMPANION_BYTES = 16 << 20

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
# Holds an image's companions and the next image's header in the usual tar, so that one read serves them all.
_WINDOW_BYTES = 8192
# Long names and pax records are some hundred bytes; a larger one is garbage that passed for a header.
_EXTENSION_BYTES = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")

# A regular member: its path, where its data lies, its size, and which of the tar's archives it is in.
_Member = tuple[str, int, int, int]


def list_samples(
    urls: Sequence[str], *, on_note: Callable[[BadImage], None], listen: Listener = ignore
) -> Iterator[tuple[Shard, list[Sample]]]:
    """Each shard with its images, rows consecutive over all shards; a `Progress` of stage `plan` after each.

    `on_note` hears of companions that cannot be read (see `scan`). Raises SourceError for a shard that is no
    whole tar, and, after the last shard, if there was no image in any.
    """
    images = 0
    for done, url in enumerate(urls, start=1):
        shard, samples = scan(url, images, on_note)
        images += shard.images
        listen(Progress(stage="plan", done=done, total=len(urls), note=f"{images} images"))
        yield shard, samples
    if images == 0:
        raise SourceError(
            f"no image in {len(urls)} shards (first: {next(iter(urls), 'none')}); check them, headspan takes "
            f"members named {', '.join(f'*.{extension}' for extension in sorted(IMAGE_EXTENSIONS))}"
        )


def scan(url: str, first_row: int, on_note: Callable[[BadImage], None]) -> tuple[Shard, list[Sample]]:
    """One shard and its images, in tar order, from `first_row` on; it may hold none.

    A member is an image by its last extension, whatever the case; its key is its path without it. `key.txt`,
    `key.json` and `key.cls` are found anywhere in the tar; one that cannot be read leaves None and is told to
    `on_note`. `k.mask.png` is a companion where there is an image `k`, and an image of its own where not.
    Two images with one key keep a row each. Raises SourceError for what is not a whole tar.
    """
    size_bytes, modified_ns = describe(url)
    images: list[tuple[str, _Member]] = []
    companions: dict[str, dict[str, list[tuple[int, bytes | None]]]] = {kind: {} for kind in _COMPANIONS}
    with open_shard(url) as reader:
        tar = _Tar(reader)
        for member in tar.members():
            name, offset, size, archive = member
            base = name[name.rfind("/") + 1 :]
            stem, _, extension = base.rpartition(".")
            # macOS packs `._name` and `__MACOSX/` beside the files proper.
            if not stem or base.startswith("._") or name.startswith("__MACOSX/") or "/__MACOSX/" in name:
                continue
            key = name[: -len(extension) - 1]
            kind = extension.lower()
            if kind in IMAGE_EXTENSIONS:
                images.append((key, member))
            elif kind in companions:
                data = tar.read(offset, size) if size <= COMPANION_BYTES else None
                companions[kind].setdefault(key, []).append((archive, data))

    keys = {key for key, _ in images}
    samples: list[Sample] = []
    for key, (name, offset, size, archive) in images:
        if _belongs_to_another(key, keys):
            continue
        row = first_row + len(samples)
        values: dict[str, str | int | None] = {}
        for kind, (field, parse, wanted) in _COMPANIONS.items():
            if key not in companions[kind]:
                continue
            data = _nearest(companions[kind][key], archive)
            try:
                if data is None:
                    raise ValueError("too large")
                values[field] = parse(data)
            except (ValueError, RecursionError):
                values[field] = None
                limit = f" of at most {COMPANION_BYTES >> 20} MiB" if data is None else ""
                on_note(BadImage(row, key, url, f"{field} is not {wanted}{limit}"))
        samples.append(Sample(row, key, url, name, offset, size, **values))  # type: ignore[arg-type]
    return Shard(url, first_row, len(samples), size_bytes, modified_ns), samples


def units(images: int, unit_images: int) -> list[Unit]:
    """Rows 0 to `images` in spans of `unit_images`; the last may be shorter."""
    starts = range(0, images, unit_images)
    return [Unit(index, start, min(unit_images, images - start)) for index, start in enumerate(starts)]


def _belongs_to_another(key: str, keys: set[str]) -> bool:
    """Whether `key` is another image's key with something after a dot, as a mask's is."""
    dot = key.find(".", key.rfind("/") + 2)
    while dot >= 0:
        if key[:dot] in keys:
            return True
        dot = key.find(".", dot + 1)
    return False


def _nearest(found: list[tuple[int, bytes | None]], archive: int) -> bytes | None:
    """The last companion in the image's own archive, else the last: `cat a.tar b.tar` may repeat its keys."""
    own = [data for where, data in found if where == archive]
    return own[-1] if own else found[-1][1]


def _caption(data: bytes) -> str:
    return data.decode("utf-8-sig").strip()


def _metadata(data: bytes) -> str:
    text = data.decode("utf-8-sig").strip()
    json.loads(text)
    return text


def _label(data: bytes) -> int:
    if not re.fullmatch(rb"\s*[+-]?[0-9]{1,18}\s*", data):
        raise ValueError("not an integer of 64 bits")
    return int(data)


# The companion's extension: the Sample's field, how it is read, and what it should have been.
_COMPANIONS: dict[str, tuple[str, Callable[[bytes], str | int], str]] = {
    "txt": ("caption", _caption, "UTF-8"),
    "json": ("metadata", _metadata, "JSON"),
    "cls": ("label", _label, "an integer"),
}


class _Tar:
    """The members of a tar: ustar, GNU long names, pax paths and sizes, archives one after the other."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self._window = b""
        self._start = 0

    def members(self) -> Iterator[_Member]:
        """Every regular member; between two of them, `read` may fetch the data of the first."""
        offset, archive, closed = 0, 0, False
        pax: dict[str, str] = {}
        own: dict[str, str] = {}
        while len(block := self._take(offset, _BLOCK)) == _BLOCK:
            if block == _ZEROS:
                closed = True
                offset += _BLOCK
                continue
            if closed:
                archive, closed, pax = archive + 1, False, {}
            kind, name, size = self._header(block, offset)
            data = offset + _BLOCK
            if kind in (b"L", b"x", b"X", b"g"):
                text = self._extension(offset, size)
                if kind == b"L":
                    own["path"] = _text(text.partition(b"\0")[0])
                else:
                    (pax if kind == b"g" else own).update(self._records(text, offset))
            elif kind != b"K":
                values = {**pax, **own}
                name = values.get("path", name)
                if "size" in values:
                    size = self._size(values["size"], offset)
                if kind == b"S" or any(key.startswith("GNU.sparse.") for key in values):
                    raise self._damaged(offset, f"{name} is stored sparse, which headspan does not read")
                if kind in _REGULAR and not name.endswith("/"):
                    yield name, data, size, archive
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
            right = int(block[148:156].strip(b" \0"), 8) == sum(block) - sum(block[148:156]) + 8 * 32
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
