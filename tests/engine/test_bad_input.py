"""Tests of bad input: every kind of bad member through a whole run, and mutated shards from tar to pixels.

Set HEADSPAN_FUZZ_SECONDS to fuzz for longer than a second or two.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headspan as hs
from headspan.config import Preprocess
from headspan.errors import SourceError
from headspan.events import Progress
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage
from tests.conftest import ToyRun, encoded_image, image_members, relative_files, write_tar
from tests.engine.decoding import decoded

FUZZ_SECONDS = float(os.environ.get("HEADSPAN_FUZZ_SECONDS", "1.5"))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def scene(width: int = 41, height: int = 33) -> Image.Image:
    """A picture with edges, gradients and grain, as in a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    grain = np.random.default_rng(0).integers(0, 40, (height, width))
    bands = [(128 + 90 * np.sin(x / 5 + shift) + 30 * (y > height // 2) - grain).clip(0, 255) for shift in (0, 1, 2)]
    return Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header has this size, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(scene(), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    return saved(Image.fromarray(np.arange(41 * 33, dtype=np.uint16).reshape(33, 41) * 40), "PNG")


# One good image of every kind.
GOOD = {
    "cmyk.jpg": saved(scene().convert("CMYK"), "JPEG"),
    "sixteen-bit.png": sixteen_bit(),
    "palette.png": saved(scene().convert("P"), "PNG"),
    "alpha.png": saved(scene().convert("RGBA"), "PNG"),
    "animated.webp": saved(scene(), "WEBP", lossless=True, save_all=True, append_images=[scene().rotate(90)]),
    "rotated.jpg": rotated(),
    "one.png": saved(scene(1, 1), "PNG"),
    "grey.jpg": saved(scene().convert("L"), "JPEG"),
    "bitmap.png": saved(scene().convert("1"), "PNG"),
    "café/日本語 🎉.jpg": encoded_image(1),
    "x" * 300 + ".jpg": encoded_image(2),
    "../../outside.png": encoded_image(3, kind="PNG"),
    "/absolute.png": encoded_image(4, kind="PNG"),
}
BAD = {
    "huge.png": png_header(50_000, 50_000),
    "text.jpg": b"I am not a picture.\n" * 50,
    "empty.jpg": b"",
    "cut.jpg": saved(scene(), "JPEG")[:-200],
    "html.png": b"<html><body>403 Forbidden</body></html>",
}
# Companions that cannot be read, of good images.
NOTED = {"latin.txt": b"caf\xe9", "broken.json": b'{"a": ', "word.cls": b"cat"}


def all_members() -> list[tuple[str, bytes]]:
    members = [*GOOD.items(), *BAD.items(), *NOTED.items()]
    members += [(f"{name.partition('.')[0]}.jpg", encoded_image(9)) for name in NOTED]
    # Duplicate keys, a caption without an image, and a caption long before its image.
    members += [("twice.jpg", encoded_image(5)), ("twice.jpg", encoded_image(6)), ("alone.txt", b"no picture")]
    return [("late.txt", b"first the words"), *members, ("late.jpg", encoded_image(7))]


def test_bad_images_of_every_kind_are_reported_and_the_others_stored(toy_run: ToyRun, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shard = write_tar(tmp_path / "in" / "a.tar", all_members())
    summary = hs.precompute(out=tmp_path / "out" / "s.zarr", **toy_run.settings(shards=[str(shard)], unit_images=8))
    store = hs.open(tmp_path / "out" / "s.zarr")
    assert {bad.key for bad in summary.bad} == {name.rpartition(".")[0] for name in BAD}
    assert all(bad.reason and bad.url == str(shard) for bad in summary.bad)
    assert store.bad_images() == summary.bad
    keys = store.samples()["key"].to_pylist()
    wanted = [name.rpartition(".")[0] for name in GOOD]
    assert keys == [*wanted, "latin", "broken", "word", "twice", "twice", "late"]
    assert np.isfinite(store.embedding).all()
    # Two images may have the same key.
    first, second = (place for place, key in enumerate(keys) if key == "twice")
    assert (store.embedding[first] != store.embedding[second]).any()
    captions = dict(zip(keys, store.samples()["caption"].to_pylist(), strict=True))
    assert (captions["late"], captions["latin"]) == ("first the words", None)
    noted = {(note.key, note.reason) for note in store.notes()}
    assert noted == {
        ("latin", "caption is not UTF-8"),
        ("broken", "metadata is not JSON"),
        ("word", "label is not an integer"),
        ("alone.txt", "is neither an image nor a member that belongs to one"),
    }
    # Keys that look like paths create no files.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s.zarr"]
    assert hs.verify(hs.open(tmp_path / "out" / "s.zarr", include_failed=True), sources=True).problems == ()


def test_the_first_frame_of_an_animation_is_used_and_a_rotation_mark_is_ignored(tmp_path: Path) -> None:
    members = [("a.webp", GOOD["animated.webp"]), ("r.jpg", GOOD["rotated.jpg"]), ("p.jpg", saved(scene(), "JPEG"))]
    found = pixels_of(write_tar(tmp_path / "a.tar", members), [])
    still = pixels_of(write_tar(tmp_path / "b.tar", [("a.webp", saved(scene(), "WEBP", lossless=True))]), [])
    np.testing.assert_array_equal(found[0], still[0])
    np.testing.assert_array_equal(found[1], found[2])


def pixels_of(shard: Path, bad: list[BadImage]) -> list[np.ndarray]:
    """The pixels of a tar's good images."""
    _, samples = scan(str(shard), 0, lambda note: None)
    found = decoded(samples, Preprocess(size=(16, 16)), bad)
    assert len(found) + len(bad) == len(samples)
    return [pixels for _, pixels in found]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"", r"empty \(0 bytes\)"),
        (lambda data: data[:3_000], "truncated: expected .* the file ends at 3000"),
        (lambda data: b"not a tar " * 200, "not a tar: found .* at offset 0"),
        (None, "damaged: found .* at offset"),
        (lambda data: gzip.compress(data)[:-900], "reading failed after|truncated"),
    ],
)
def test_an_incomplete_tar_ends_the_plan_with_its_name(
    spoil: Callable[[bytes], bytes] | None, said: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    shard = write_tar(tmp_path / "a.tar", image_members(range(9)))
    data = shard.read_bytes()
    if spoil is not None:
        data = spoil(data)
    else:
        # The second header.
        with tarfile.open(shard) as tar:
            offset = tar.getmembers()[1].offset
        data, said = data[:offset] + b"\xff" * 512 + data[offset + 512 :], f"{said} {offset}"
    shard.write_bytes(data)
    with pytest.raises(SourceError, match=rf"a\.tar: {said}"):
        hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[str(shard)]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_gzipped_shard_gives_the_same_numbers_as_the_plain_one(toy_run: ToyRun, tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "a.tar", image_members(range(5)))
    packed = tmp_path / "b.tar"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for name, shard in (("plain", plain), ("packed", packed)):
        hs.precompute(out=tmp_path / f"{name}.zarr", **toy_run.settings(shards=[str(shard)], emit=("heads",)))
    wanted, found = relative_files(tmp_path / "plain.zarr"), relative_files(tmp_path / "packed.zarr")
    arrays = [name for name in wanted if "/c/" in name]
    assert len(arrays) > 9
    assert {name: found[name] for name in arrays} == {name: wanted[name] for name in arrays}


def test_a_shard_that_disappears_ends_the_run_and_the_same_command_resumes_it(toy_run: ToyRun, tmp_path: Path) -> None:
    shards = [tmp_path / f"{number}.tar" for number in range(3)]
    for shard, original in zip(shards, toy_run.shards, strict=True):
        shard.write_bytes(original.read_bytes())
    settings = toy_run.settings(shards=[str(shard) for shard in shards], unit_images=16)
    gone = tmp_path / "gone"

    def vanish(event: Progress) -> None:
        if event.stage == "planned":
            shards[2].rename(gone)

    with pytest.raises(SourceError, match=r"2\.tar: cannot be read \(.*No such file"):
        hs.precompute(out=tmp_path / "s.zarr", on_progress=vanish, **settings)
    store = hs.open(tmp_path / "s.zarr", include_failed=True)
    # Rows 0 to 31, two units, are in the first two tars; the third unit could not be read.
    assert [record.unit for record in store.contents.records] == [0, 1]
    assert hs.verify(store).problems == ()
    gone.rename(shards[2])
    assert hs.precompute(out=tmp_path / "s.zarr", **settings).skipped == 32
    hs.precompute(out=tmp_path / "whole.zarr", **settings)
    assert relative_files(tmp_path / "s.zarr") == relative_files(tmp_path / "whole.zarr")


SEEDS: tuple[bytes, ...] = (
    saved(scene(), "JPEG", quality=90),
    saved(scene(), "JPEG", progressive=True),
    saved(scene(), "PNG"),
    saved(scene().convert("P"), "PNG"),
    saved(scene(), "WEBP"),
    saved(scene().convert("CMYK"), "JPEG"),
    rotated(),
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """`data` with bytes changed, removed, repeated or overwritten, or truncated."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        where, size = draw.randrange(len(changed)), draw.choice((1, 1, 2, 16, 512))
        match draw.randrange(6):
            case 0 | 1:
                changed[where] = draw.randrange(256)
            case 2:
                del changed[where : where + size]
            case 3:
                changed[where:where] = changed[where : where + size]
            case 4:
                changed[where : where + size] = bytes(draw.choice((0, 255)) for _ in range(size))
            case _:
                del changed[max(where, 1) :]
        if not changed:
            return b""
    return bytes(changed)


def tar_of(images: Sequence[bytes], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number, data in enumerate(images):
            for name, content in ((f"{'n' * (number * 70)}{number}.jpg", data), (f"{number}.json", b'{"a": 1}')):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_mutated_shards_give_pixels_reasons_or_a_source_error_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(os.environ.get("HEADSPAN_FUZZ_SEED", "0"))
    shard = tmp_path / "a.tar"
    refused = good = reasons = 0
    until = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < until or min(refused, good, reasons) == 0:
        images = draw.sample(SEEDS, 3)
        if draw.random() < 0.5:
            # Mutate the images, so that the decoders are reached, or else the tar.
            data = tar_of(
                [mutated(image, draw) for image in images], draw.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
            )
        else:
            data = mutated(tar_of(images, draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))), draw)
        if draw.random() < 0.1:
            data = mutated(gzip.compress(data), draw)
        shard.write_bytes(data)
        bad: list[BadImage] = []
        try:
            good += len(pixels_of(shard, bad))
        except SourceError as error:
            assert str(error).startswith(f"{shard}: ")  # noqa: PT017
            refused += 1
        assert all(image.reason for image in bad)
        reasons += len(bad)
