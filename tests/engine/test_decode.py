"""Tests of decoding: pixels against open_clip's transform, bad images, and spans in order and within the memory."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tarfile
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from headspan.config import Preprocess
from headspan.decode import threads as threads_module
from headspan.decode.batches import Batch, DecodedSpan, rebatch
from headspan.decode.exact import Undecodable, fill_exact, preprocess_image
from headspan.decode.threads import ThreadDecoder
from headspan.errors import SourceError
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage, Sample
from tests.engine.decoding import MECHANISMS, decoded, decoder, spans

MODES = ("RGB", "L", "RGBA", "LA", "CMYK", "P", "1", "I;16")
SIZES = ((257, 3), (3, 131), (1, 1), (224, 224), (225, 223), (97, 101), (640, 427), (31, 448))


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An image of `mode`; `size` is width and height."""
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., :2].copy().view(np.uint16)[..., 0])
    if mode == "P":
        return Image.fromarray(values[..., :3].copy()).quantize(64)
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode)
    if channels is None:
        return Image.fromarray(values[..., 0].copy()).convert(mode)
    return Image.frombytes(mode, size, values[..., :channels].tobytes())


def encoded(image: Image.Image, form: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form or ("TIFF" if image.mode == "CMYK" else "PNG"), **options)
    return file.getvalue()


def by_open_clip(data: bytes, preprocess: Preprocess) -> np.ndarray:
    """open_clip's transform without its last step, normalisation, in units of 1/255."""
    transform = open_clip.image_transform(
        preprocess.size if preprocess.size[0] != preprocess.size[1] else preprocess.size[0],
        is_train=False,
        resize_mode=preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        fill_color=preprocess.fill_color,
    )
    with Image.open(io.BytesIO(data)) as image:
        scaled = image
        for step in transform.transforms[:-1]:
            scaled = step(scaled)
    return torch.round(scaled * 255).to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("target", [(224, 224), (65, 97)])
def test_pixels_equal_open_clips_bit_for_bit(mode: str, resize_mode: str, target: tuple[int, int]) -> None:
    compared = 0
    for number, size in enumerate(SIZES):
        preprocess = Preprocess(
            size=target,
            resize_mode=resize_mode,
            interpolation=("bicubic", "bilinear")[number % 2],
            fill_color=(0, 127)[number // 2 % 2],
        )
        data = encoded(picture(mode, size, seed=number))
        try:
            wanted = by_open_clip(data, preprocess)
        except ValueError:
            # A side that rounds to 0: open_clip fails, and headspan reports the image as bad.
            with pytest.raises(Undecodable):
                preprocess_image(data, preprocess)
            continue
        found = preprocess_image(data, preprocess)
        assert found.dtype == np.uint8
        assert found.shape == (*target, 3)
        np.testing.assert_array_equal(found, wanted)
        compared += 1
    assert compared >= len(SIZES) - 2


# Sides of pictures and of targets.
SIDES = st.tuples(st.integers(1, 400), st.integers(1, 400))
TARGETS = st.tuples(st.integers(1, 90), st.integers(1, 90))
PREPROCESSES = st.builds(
    Preprocess,
    size=TARGETS | TARGETS.map(lambda target: (target[0], target[0])),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill_color=st.just(9),
)


@settings(max_examples=60, deadline=None)
@given(size=SIDES, preprocess=PREPROCESSES, mode=st.sampled_from(MODES))
def test_pixels_equal_open_clips_for_any_size(size: tuple[int, int], preprocess: Preprocess, mode: str) -> None:
    data = encoded(picture(mode, size))
    try:
        wanted = by_open_clip(data, preprocess)
    except ValueError:
        with pytest.raises(Undecodable):
            preprocess_image(data, preprocess)
        return
    np.testing.assert_array_equal(preprocess_image(data, preprocess), wanted)


def test_jpeg_orientation_is_ignored_and_the_first_frame_of_an_animation_is_used() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph = picture("RGB", (131, 97))
    plain = preprocess_image(encoded(photograph, "JPEG", quality=90), Preprocess())
    with_orientation = preprocess_image(encoded(photograph, "JPEG", quality=90, exif=turned), Preprocess())
    np.testing.assert_array_equal(with_orientation, plain)

    first, second = picture("P", (33, 31), seed=1), picture("P", (33, 31), seed=2)
    animation = encoded(first, "GIF", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(animation)) as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(preprocess_image(animation, Preprocess()), by_open_clip(animation, Preprocess()))


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header has this size, with 99 bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>403 Forbidden</html>", "not an image"),
        (b"\xff\xd8\xff\xe0 no more", "cannot be opened: Truncated"),
        (encoded(picture("RGB", (131, 97)), "JPEG")[:-900], "cannot be decoded: .*truncated"),
        (encoded(picture("RGB", (131, 97)))[:-900], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (png_header(50_000, 50_000), "more than 178,956,970 pixels"),
        (png_header(13_400, 13_400), "more than 178,956,970 pixels"),
        (png_header(40_000, 2), "too long and narrow: 40000x2 resizes to 4480000x224"),
    ],
)
def test_a_bad_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        preprocess_image(data, Preprocess())


def test_a_decompression_bomb_allocates_no_memory() -> None:
    data = png_header(50_000, 50_000)
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable):
            preprocess_image(data, Preprocess())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_warnings_of_pil_are_silenced() -> None:
    # An image above PIL's warning limit and below its error limit, and a palette with transparency in bytes.
    large = encoded(Image.new("1", (10_000, 9_000)))
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 10_000 * 9_000
    assert preprocess_image(large, Preprocess()).max() == 0
    palette = encoded(picture("P", (33, 31)), transparency=bytes(range(64)))
    assert preprocess_image(palette, Preprocess()).shape == (224, 224, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=9),
    keep=st.floats(0.01, 1),
)
def test_broken_bytes_give_pixels_or_a_reason_and_nothing_else(
    form: str, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(encoded(picture("RGB", (23, 17)), form))
    for where, value in changes:
        data[int(where * len(data))] = value
    with contextlib.suppress(Undecodable):
        pixels = preprocess_image(bytes(data[: int(keep * len(data))]), Preprocess(size=(16, 16)))
        assert pixels.shape == (16, 16, 3)


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def shard_of(path: Path, images: int, bad: tuple[int, ...] = ()) -> list[Sample]:
    def content(number: int) -> bytes:
        if number in bad:
            return b"" if number % 2 else b"no image"
        return encoded(picture("RGB", (40 + number % 7, 60 - number % 5), seed=number), "JPEG")

    members = {f"{number:05d}.jpg": content(number) for number in range(images)}
    return scan(write_tar(path, members), 0, pytest.fail)[1]


SMALL = Preprocess(size=(32, 32))


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("in_flight_bytes", [1, 40_000, 1 << 28])
def test_order_and_pixels_do_not_depend_on_the_workers(tmp_path: Path, in_flight_bytes: int, mechanism: str) -> None:
    samples = shard_of(tmp_path / "a.tar", 67, bad=(0, 5, 66))
    alone_bad: list[BadImage] = []
    alone = decoded(samples, SMALL, alone_bad, 1, in_flight_bytes)
    many_bad: list[BadImage] = []
    many = decoded(samples, SMALL, many_bad, 5, in_flight_bytes, mechanism)
    assert [row for row, _ in many] == [row for row in range(67) if row not in (0, 5, 66)]
    for (row, one), (other_row, other) in zip(alone, many, strict=True):
        assert row == other_row
        np.testing.assert_array_equal(one, other)
    assert many_bad == alone_bad
    assert [(image.row, image.key) for image in many_bad] == [(0, "00000"), (5, "00005"), (66, "00066")]
    assert [image.reason.split()[0] for image in many_bad] == ["not", "empty", "not"]
    assert {image.url for image in many_bad} == {str(tmp_path / "a.tar")}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_samples_of_several_shards_are_decoded_in_order(tmp_path: Path, mechanism: str) -> None:
    first = shard_of(tmp_path / "a.tar", 3)
    second = shard_of(tmp_path / "b.tar", 4)
    bad: list[BadImage] = []
    found = decoded(first + second + first, SMALL, bad, 2, 1 << 20, mechanism)
    assert [row for row, _ in found] == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2]
    assert bad == []
    np.testing.assert_array_equal(found[0][1], found[7][1])


def test_bytes_in_flight_stay_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = shard_of(tmp_path / "a.tar", 33)
    most = [0]

    class Watched(threads_module._Budget):
        def take(self, size: int) -> None:
            super().take(size)
            most[0] = max(most[0], self._taken)

    monkeypatch.setattr(threads_module, "_Budget", Watched)
    # An image of some 45 by 58 pixels: 10 KB at full size, 6 KB resized, 3 KB finished, 3 KB as a JPEG.
    assert len(decoded(samples, SMALL, [], 2, 60_000)) == 33
    assert 40_000 < most[0] <= 60_000


def test_closing_early_ends_the_threads(tmp_path: Path) -> None:
    images = ThreadDecoder(fill_exact, SMALL, 1 << 20, 3).decode(spans(shard_of(tmp_path / "a.tar", 50)))
    assert next(images).good.rows.tolist() == [0, 1, 2]
    assert any(thread.name.startswith("headspan-decode") for thread in threading.enumerate())
    images.close()
    assert not any(thread.name.startswith("headspan-decode") for thread in threading.enumerate())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_shard_that_shrank_after_the_plan_is_an_error_after_the_spans_before_it(
    tmp_path: Path, mechanism: str
) -> None:
    samples = shard_of(tmp_path / "a.tar", 9)
    os.truncate(tmp_path / "a.tar", samples[6].offset + 1)
    images = decoder(mechanism, SMALL, 1 << 20, 2).decode(spans(samples, 2))
    # The spans before the one that cannot be read come first.
    assert [row for _ in range(3) for row in next(images).good.rows] == list(range(6))
    size, offset = samples[6].size_bytes, samples[6].offset
    sentence = rf"a\.tar: truncated: expected {size} bytes at offset {offset}, but the file ends at {offset + 1}; fetch"
    with pytest.raises(SourceError, match=sentence):
        next(images)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_forward_only_shard_gives_the_same_pixels(tmp_path: Path, mechanism: str) -> None:
    samples = shard_of(tmp_path / "a.tar", 5)
    url = f"pipe:cat {tmp_path / 'a.tar'}"
    piped = [Sample(s.row, s.key, url, s.member, s.offset, s.size_bytes) for s in (*samples[2:], *samples[:2])]
    bad: list[BadImage] = []
    found = decoded(piped, SMALL, bad, 2, 1 << 20, mechanism)
    wanted = dict(decoded(samples, SMALL, bad, 1, 1 << 20))
    assert bad == []
    assert [row for row, _ in found] == [2, 3, 4, 0, 1]
    for row, pixels in found:
        np.testing.assert_array_equal(pixels, wanted[row])


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 257])
def test_batches_of_any_size_hold_the_good_images_in_order(tmp_path: Path, size: int, mechanism: str) -> None:
    samples = shard_of(tmp_path / "a.tar", 17, bad=(0, 5, 6, 7, 8, 16))
    bad: list[BadImage] = []
    wanted = decoded(samples, SMALL, bad)
    rows, found = [], []
    before: list[Batch] = []
    for batch in rebatch(decoder(mechanism, SMALL, 1 << 16, 2, batch_size=size).decode(spans(samples)), size):
        rows.append(batch.rows)
        # A consumer holds two batches while it gathers a third.
        before.append(batch)
        if len(before) == 2:
            found += [part.copy() for part in before[0].parts]
            before.pop(0).release()
    found += [part.copy() for part in before[0].parts]
    before[0].release()
    assert [len(each) for each in rows[:-1]] == [size] * (len(rows) - 1)
    assert 1 <= len(rows[-1]) <= size
    assert np.concatenate(rows).tolist() == [row for row, _ in wanted]
    np.testing.assert_array_equal(np.concatenate(found), np.stack([pixels for _, pixels in wanted]))


def span_of(first: int, images: int, released: list[int]) -> DecodedSpan:
    """A span of good images; its first row is noted in `released` when it is released."""
    pixels = np.full((images, 2, 2, 3), first, np.uint8)
    good = Batch(np.arange(first, first + images), (pixels,), lambda: released.append(first))
    return DecodedSpan(good, (), first + images - 1, 0, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 64])
def test_batches_copy_no_pixels_and_release_a_span_once_after_the_last_batch_that_holds_some_of_it(size: int) -> None:
    released: list[int] = []
    spans = [span_of(0, 4, released), span_of(4, 1, released), span_of(5, 0, released), span_of(5, 6, released)]
    batches = list(rebatch(spans, size))
    assert [row for batch in batches for row in batch.rows.tolist()] == list(range(11))
    for batch in batches:
        assert sum(map(len, batch.parts)) == len(batch.rows)
        for part in batch.parts:
            assert sum(np.shares_memory(part, span.good.parts[0]) for span in spans) == 1
    # The span without images is needed by no batch.
    assert released == [5]
    released.clear()
    for batch in batches:
        rows = set(batch.rows.tolist())
        before = len(released)
        batch.release()
        done = released[before:]
        assert done == [first for first, last in ((0, 3), (4, 4), (5, 10)) if last in rows]


@pytest.mark.parametrize(
    ("in_flight_bytes", "batch_size", "images"),
    [(1 << 28, 32, 32), (1, 32, 1), (4 * 3072 * 3, 7, 3), (4 * 3072 * 100, 257, 86), (4 * 3072 * 100, 1, 1)],
)
def test_a_span_is_an_equal_part_of_a_batch_and_memory_holds_four_spans(
    in_flight_bytes: int, batch_size: int, images: int
) -> None:
    assert ThreadDecoder(fill_exact, SMALL, in_flight_bytes).span_images(batch_size) == images
