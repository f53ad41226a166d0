"""Tests of the fast route: its pixels against open_clip's transform, its bad images against the exact route's."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import headspan as hs
from headspan.config import PrecomputeSettings, Preprocess
from headspan.decode import fast as fast_pixels
from headspan.decode.exact import Undecodable, fill_exact, open_image, preprocess_image
from headspan.decode.fast import fill_fast
from headspan.decode.routes import Route, route
from headspan.errors import SettingsError, StoreError
from headspan.run.repair import repair
from headspan.shards.plan import scan
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files
from tests.engine.test_decode import PREPROCESSES, SIDES, by_open_clip, encoded, picture
from tests.tolerances import relative_error

PHOTOS = os.environ.get("HEADSPAN_PHOTOS", "")
# Limits of the largest and of the mean difference over a photograph, in grey levels.
LARGEST, MEAN = 2, 0.01


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as in a photograph."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def pixels_by(route: Route, data: bytes, preprocess: Preprocess) -> np.ndarray:
    pixels = np.full((*preprocess.size, 3), 99, np.uint8)
    route(data, open_image(data, preprocess), preprocess, pixels)
    return pixels


def fast(data: bytes, preprocess: Preprocess) -> np.ndarray:
    return pixels_by(fill_fast, data, preprocess)


@pytest.fixture
def no_exact_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if an image takes the exact route."""
    monkeypatch.setattr(fast_pixels, "fill_exact", lambda *arguments: pytest.fail("took the exact route"))


THUMBNAIL = Preprocess((32, 32))


def outcome(route: Route, data: bytes, preprocess: Preprocess) -> np.ndarray | str:
    """The pixels, or the reason why there are none."""
    try:
        return pixels_by(route, data, preprocess)
    except Undecodable as error:
        return str(error)


def agree(data: bytes, preprocess: Preprocess = THUMBNAIL) -> None:
    wanted, found = (outcome(route, data, preprocess) for route in (fill_exact, fill_fast))
    if isinstance(wanted, str) or isinstance(found, str):
        assert found == wanted
    else:
        assert np.abs(found.astype(int) - wanted).max() <= LARGEST


# Width and height: of cameras, landscape and portrait, odd, below the target, and far from square.
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (427, 640), (257, 131), (131, 257), (90, 100), (1200, 300), (300, 1200), (41, 257)]
)
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.usefixtures("no_exact_route")
def test_a_photographs_pixels_differ_by_at_most_two_levels(size: tuple[int, int], resize_mode: str) -> None:
    data = encoded(photograph(*size), "JPEG", quality=85)
    for target in ((224, 224), (65, 97)):
        for interpolation in ("bicubic", "bilinear"):
            preprocess = Preprocess(target, resize_mode=resize_mode, interpolation=interpolation, fill_color=127)
            found, wanted = fast(data, preprocess), by_open_clip(data, preprocess)
            assert (found.dtype, found.shape) == (np.uint8, (*target, 3))
            difference = np.abs(found.astype(int) - wanted)
            assert difference.max() <= LARGEST
            assert difference.mean() < MEAN


def orientation() -> Image.Exif:
    turned = Image.Exif()
    turned[0x0112] = 6
    return turned


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 50}),
        ("RGB", {"quality": 95, "subsampling": "4:4:4"}),
        ("RGB", {"quality": 75, "subsampling": "4:2:2"}),
        ("RGB", {"quality": 75, "subsampling": "4:2:0"}),
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
        ("RGB", {"restart_marker_blocks": 3}),
        ("RGB", {"exif": orientation()}),
        ("RGB", {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()}),
        ("L", {"quality": 85}),
        ("L", {"progressive": True}),
    ],
)
@pytest.mark.usefixtures("no_exact_route")
def test_every_kind_of_undamaged_jpeg_takes_the_fast_route(mode: str, options: dict[str, Any]) -> None:
    image = photograph(301, 225).convert(mode)
    data = encoded(image, "JPEG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        decoded = np.asarray(opened.convert("RGB"))
    # At its own size an image is only decoded, and both routes decode to the same bits.
    as_it_is = Preprocess((225, 301), resize_mode="squash")
    np.testing.assert_array_equal(fast(data, as_it_is), decoded)
    difference = np.abs(fast(data, Preprocess()).astype(int) - by_open_clip(data, Preprocess()))
    assert difference.max() <= LARGEST
    assert 0 < difference.mean() < MEAN


@settings(max_examples=60, deadline=None)
@given(size=SIDES, preprocess=PREPROCESSES, mode=st.sampled_from(["RGB", "L"]))
def test_noise_of_any_size_and_target_differs_by_at_most_two_levels(
    size: tuple[int, int], preprocess: Preprocess, mode: str
) -> None:
    agree(encoded(picture(mode, size), "JPEG", quality=95), preprocess)


JPEG = encoded(photograph(131, 97), "JPEG")


@pytest.mark.parametrize(
    "data",
    [
        encoded(photograph(131, 97).convert("CMYK"), "JPEG"),
        encoded(photograph(131, 97)),
        encoded(photograph(131, 97), "WEBP"),
        # Stray bytes, which libjpeg skips with a warning.
        JPEG.replace(b"\xff\xda", b"\0\0\xff\xda"),
    ],
    ids=["CMYK", "PNG", "WebP", "stray bytes"],
)
def test_anything_but_an_undamaged_jpeg_takes_the_exact_route(data: bytes) -> None:
    np.testing.assert_array_equal(fast(data, Preprocess()), by_open_clip(data, Preprocess()))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_has_the_same_reason_on_both_routes(progressive: bool) -> None:
    data = encoded(photograph(61, 43), "JPEG", progressive=progressive)
    for length in [*range(0, len(data) - 40, 23), *range(len(data) - 40, len(data) + 1)]:
        agree(data[:length])
        agree(data[:length] + bytes(7))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    keep=st.sampled_from([1.0, 1.0, 0.9, 0.5]),
    options=st.sampled_from(
        [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}, {"restart_marker_blocks": 2}]
    ),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_broken_jpegs_have_the_same_result_on_both_routes(
    changes: list[tuple[float, int]], keep: float, options: dict[str, Any], mode: str
) -> None:
    data = bytearray(encoded(photograph(23, 17).convert(mode), "JPEG", **options))
    for where, value in changes:
        data[int(where * len(data))] = value
    agree(bytes(data[: int(keep * len(data))]))


IN_ONE_THREAD = """
import os, sys, threading
import numpy as np
import torch
torch.set_num_threads(4)
from headspan.config import Preprocess
from headspan.decode.fast import fill_fast
from headspan.decode.exact import open_image

data, wanted = sys.stdin.buffer.read(), Preprocess()
threads = lambda: len(os.listdir("/proc/self/task"))
found = []

def work():
    fill_fast(data, open_image(data, wanted), wanted, np.empty((224, 224, 3), np.uint8))
    found.append(threads())
    # torch's number of threads is unchanged for other work in this thread.
    torch.ones(1 << 22).exp()
    found.append(threads())

before = threads()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found[0] - before, found[1] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in Linux's /proc")
def test_an_image_uses_one_thread_even_without_torchs_code_for_bytes() -> None:
    # Without AVX2, torch resizes bytes in OpenMP threads.
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    environment.pop("OMP_NUM_THREADS", None)
    data = encoded(photograph(800, 600), "JPEG")
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_THREAD], input=data, capture_output=True, check=False, env=environment
    )
    assert done.stderr == b""
    assert done.stdout == b"1 4\n"


def embeddings(path: Path) -> np.ndarray:
    return np.asarray(hs.open(path).embedding)


def test_a_fast_run_is_close_to_the_exact_one_and_does_not_depend_on_the_threads(
    toy_run: ToyRun, tmp_path: Path
) -> None:
    common = toy_run.settings(decode="fast")
    one = hs.precompute(out=tmp_path / "a" / "s.zarr", **{**common, "workers": 1})
    many = hs.precompute(out=tmp_path / "b" / "s.zarr", **{**common, "workers": 5})
    assert [image.row for image in one.bad] == list(BROKEN_ROWS)
    assert [image.reason for image in one.bad] == [image.reason for image in hs.open(toy_run.path).bad_images()]
    assert many.bad == one.bad
    assert relative_files(tmp_path / "a") == relative_files(tmp_path / "b")
    rows = hs.open(toy_run.path).rows
    found, wanted = embeddings(tmp_path / "a" / "s.zarr"), embeddings(toy_run.path)
    # Every third image is a PNG.
    np.testing.assert_array_equal(found[rows % 3 == 0], wanted[rows % 3 == 0])
    assert not np.array_equal(found, wanted)
    # The toy's images are small and nearly flat, and its norms amplify small differences.
    assert relative_error(found, wanted) < 1e-2


def test_a_store_is_resumed_and_repaired_with_the_route_that_made_it(toy_run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    common = toy_run.settings(emit=("heads",), decode="fast")
    hs.precompute(out=out, **common)
    before = relative_files(out)
    for damaged in ("embedding/c/1/0", "heads/c/0/0/0/0"):
        (out / damaged).unlink()
    assert repair(out).units == (0, 1)
    assert relative_files(out) == before
    with pytest.raises(StoreError, match=r'was made with decode "fast", but this run asks for "exact"; use the same'):
        hs.precompute(out=out, **{**common, "decode": "exact"})
    assert relative_files(out) == before


def test_fast_is_the_default_and_unknown_routes_are_refused() -> None:
    assert PrecomputeSettings(("a.tar",), "s.zarr").decode == "fast"
    with pytest.raises(SettingsError, match="--decode quick is unknown; choose from fast, exact"):
        PrecomputeSettings(("a.tar",), "s.zarr", decode="quick")


def test_without_simplejpeg_fast_is_refused_before_anything_is_written_and_exact_works(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.delitem(sys.modules, "headspan.decode.fast")
    with pytest.raises(SettingsError, match=r"needs simplejpeg, which cannot be loaded here .* give --decode exact$"):
        hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(decode="fast"))
    assert list(tmp_path.iterdir()) == []
    assert route("exact") is fill_exact


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS, reason="HEADSPAN_PHOTOS names no shards of real photographs")
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_real_photographs_pixels_differ_by_at_most_two_levels(resize_mode: str) -> None:
    means = []
    for shard in expand([PHOTOS]):
        with open_shard(shard) as reader:
            for sample in scan(shard, 0, lambda note: None)[1]:
                data = reader.read_at(sample.offset, sample.size_bytes)
                preprocess = Preprocess(resize_mode=resize_mode)
                difference = np.abs(fast(data, preprocess).astype(int) - preprocess_image(data, preprocess))
                assert difference.max() <= LARGEST, sample.key
                means.append(difference.mean())
    print(f"{resize_mode}: {len(means)} photographs, mean difference {np.mean(means):.4f}, at most {max(means):.4f}")
    assert max(means) < MEAN
