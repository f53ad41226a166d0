"""JPEGs that are plainly sound are recognised with their size, and PIL decodes every file that is."""

from __future__ import annotations

import io
import os
import random
import struct
from functools import cache

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from headspan.config import Preprocess
from headspan.decode.exact import Undecodable, open_image, preprocess_image
from headspan.decode.gpu.sound_jpeg import marker_places, sound_size

HEIGHT, WIDTH = 43, 61
SMALL = Preprocess((8, 8))


def jpeg(mode: str = "RGB", width: int = WIDTH, height: int = HEIGHT, **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((width, height)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif(**tags: object) -> bytes:
    found = Image.Exif()
    found.update({int(tag[1:], 16): value for tag, value in {"x010f": "a camera", **tags}.items()})
    return found.tobytes()


@cache
def sound() -> dict[str, bytes]:
    """Files as cameras, editors and web servers make them."""
    return {
        "baseline": jpeg(),
        "progressive": jpeg(progressive=True),
        "optimised": jpeg(optimize=True, quality=40),
        "4:4:4": jpeg(subsampling=0),
        "4:2:2": jpeg(subsampling=1),
        "progressive 4:4:4": jpeg(subsampling=0, progressive=True, quality=95),
        "grey": jpeg("L"),
        "progressive grey": jpeg("L", progressive=True),
        "restarts": jpeg(restart_marker_blocks=2),
        "restarts by rows": jpeg(restart_marker_rows=1, progressive=True),
        "EXIF": jpeg(exif=exif(x011a=72.0, x0128=2, x0112=6)),
        "EXIF without a resolution": jpeg(exif=exif()),
        "a colour profile in two segments": jpeg(icc_profile=bytes(100_000)),
        "a comment": jpeg(comment=b"\xff\xd9 is no end here"),
        "one pixel": jpeg(width=1, height=1),
        "no JFIF segment": without_segment(jpeg(), 0xE0),
        "an Adobe segment": with_segment(jpeg(), 0xEE, b"Adobe" + bytes(6) + b"\x01"),
        "a thumbnail": with_segment(jpeg(), 0xE1, b"\0" + jpeg(width=16, height=16)),
    }


def segments(data: bytes) -> dict[int, int]:
    """The place of the last segment of each kind, before the first scan."""
    at, found = 2, {}
    while True:
        found[data[at + 1]] = at
        if data[at + 1] == 0xDA:
            return found
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def without_segment(data: bytes, marker: int) -> bytes:
    at = segments(data)[marker]
    return data[:at] + data[at + 2 + struct.unpack_from(">H", data, at + 2)[0] :]


def with_segment(data: bytes, marker: int, contents: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(contents) + 2) + contents + data[2:]


def patched(data: bytes, marker: int, offset: int, value: int) -> bytes:
    """`data` with another byte, `offset` after the beginning of its last segment of a kind."""
    changed = bytearray(data)
    changed[segments(data)[marker] + offset] = value
    return bytes(changed)


def retyped(data: bytes) -> bytes:
    """`data` with one byte as its resolution in EXIF."""
    changed = data
    for order in "<>":
        changed = changed.replace(struct.pack(f"{order}HHI", 0x011A, 5, 1), struct.pack(f"{order}HHI", 0x011A, 7, 1))
    assert changed != data
    return changed


def size_of(data: bytes) -> tuple[int, int] | None:
    """As a caller asks: in the middle of other bytes."""
    whole = b"\xff\xd8\xff" + data + b"\xff\xd9\xff\xda"
    return sound_size(whole, 3, 3 + len(data), marker_places(whole))


@pytest.mark.parametrize("name", sound())
def test_sound_files_are_recognised_with_their_size(name: str) -> None:
    data = sound()[name]
    image = open_image(data, SMALL)
    assert size_of(data) == (image.height, image.width)


MPF = b"MPF\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 45057, 4, 1, 2) + bytes(4)
# What PIL does with these: True if it decodes them.
OTHERS = {
    "nothing": (b"", False),
    "two bytes": (b"\xff\xd8", False),
    "an end alone": (b"\xff\xd8\xff\xd9", False),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(30), False),
    "CMYK": (jpeg("CMYK"), True),
    "RGB": (jpeg(keep_rgb=True), True),
    "other ids": (patched(patched(jpeg(), 0xC0, 10, 9), 0xDA, 5, 9), True),
    "inverted": (with_segment(jpeg(), 0xEE, b"Adobe" + bytes(6) + b"\x02"), True),
    "bytes after its end": (jpeg() + b"\0", True),
    "several images": (with_segment(jpeg(), 0xE2, MPF), True),
    "12 bits": (patched(jpeg(), 0xC0, 4, 12), False),
    "arithmetic coding": (patched(jpeg(), 0xC0, 1, 0xC9), None),
    "lossless": (patched(jpeg(), 0xC0, 1, 0xC3), False),
    "no height": (patched(patched(jpeg(), 0xC0, 5, 0), 0xC0, 6, 0), False),
    "a side that libjpeg refuses": (patched(patched(jpeg(), 0xC0, 5, 0xFF), 0xC0, 6, 0xFF), False),
    "five samples": (patched(jpeg(), 0xC0, 11, 0x51), False),
    "no quantization table": (patched(jpeg(), 0xC0, 12, 3), False),
    "no Huffman table": (patched(jpeg(), 0xDA, 6, 0x22), False),
    "an unknown component": (patched(jpeg(), 0xDA, 5, 7), False),
    "too many Huffman codes": (patched(jpeg(), 0xC4, 5, 3), False),
    "a short JFIF segment": (with_segment(without_segment(jpeg(), 0xE0), 0xE0, b"JFIF\0"), False),
    "a short profile": (with_segment(jpeg(), 0xE2, b"ICC_PROFILE\0"), False),
    "a resolution of another type": (retyped(without_segment(jpeg(exif=exif(x0128=2, x011a=72.0)), 0xE0)), False),
    "an end within a table": (jpeg()[:200] + b"\xff\xd9", False),
    "a table among the coefficients": (jpeg()[:-2] + b"\xff\xc4\0\x05\0\0\0\xff\xd9", False),
    "a bad scan after a good one": (jpeg(progressive=True)[:-2] + b"\xff\xda\0\x08\x01\x01\0\x05\x02\0\xff\xd9", False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_rare_or_broken_is_not_recognised(name: str) -> None:
    data, decodes = OTHERS[name]
    assert size_of(data) is None
    if decodes is not None:
        assert decoded_by_pil(data) is decodes


def decoded_by_pil(data: bytes) -> bool:
    try:
        preprocess_image(data, SMALL)
    except Undecodable:
        return False
    return True


@pytest.mark.parametrize("name", sound())
def test_no_truncated_file_is_recognised(name: str) -> None:
    data = sound()[name]
    for end in range(0, len(data), 50 if len(data) < 10_000 else 5000):
        assert size_of(data[:end]) is None, end


def test_pil_decodes_every_damaged_file_that_is_recognised() -> None:
    """Bits are flipped, bytes removed, inserted and replaced; mostly before the coefficients."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    choices = random.Random(seed)
    files = [data for data in sound().values() if len(data) < 10_000]
    recognised = 0
    for _ in range(3000):
        data = damaged(choices.choice(files), choices)
        size = size_of(data)
        if size is None:
            continue
        recognised += 1
        assert decoded_by_pil(data), data.hex()
        image = open_image(data, SMALL)
        assert (image.height, image.width, image.format) == (*size, "JPEG"), data.hex()
        assert image.mode in ("L", "RGB")
    assert 500 < recognised < 2500


def damaged(data: bytes, choices: random.Random) -> bytes:
    changed = bytearray(data)
    header = len(data) if choices.random() < 0.3 else min(len(data), 700)
    for _ in range(choices.choice([1, 1, 1, 2, 4])):
        at = choices.randrange(min(header, len(changed) - 1))
        kind = choices.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << choices.randrange(8)
        elif kind == 1:
            changed[at] = choices.choice([0, 1, 2, 3, 16, 17, 0xC4, 0xD9, 0xDA, 0xDB, 0xFF])
        elif kind == 2:
            del changed[at : at + choices.randrange(1, 20)]
        elif kind == 3:
            changed[at:at] = choices.randbytes(choices.randrange(1, 9))
        else:
            changed[at : at + 2] = bytes([0xFF, choices.choice([0xC0, 0xC2, 0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0])])
    return bytes(changed)


def test_pil_reads_no_other_exif_values_when_it_opens_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others could have types of which PIL says that the image is broken."""
    read: list[int] = []
    plain = Image.Exif.__getitem__

    def noted(self: Image.Exif, tag: int) -> object:
        read.append(tag)
        return plain(self, tag)

    monkeypatch.setattr(Image.Exif, "__getitem__", noted)
    data = without_segment(sound()["EXIF"], 0xE0)
    JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    assert set(read) == {0x011A, 0x0128}
