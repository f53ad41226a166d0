"""Tests of --decode gpu without a GPU: libjpeg stands in for the library, and the reference for the kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from PIL import Image
from torch import Tensor

import headspan as hs
from headspan.cli.precompute import _advise
from headspan.config import Preprocess
from headspan.decode.batches import DecodedSpan
from headspan.decode.exact import Undecodable, fill, interpolation, preprocess_image
from headspan.decode.fast import fill_fast
from headspan.decode.gpu import rendering
from headspan.decode.gpu.decoder import STREAMS, GpuDecoder
from headspan.decode.gpu.nvjpeg import torchvision_on
from headspan.decode.gpu.pieces import cut
from headspan.decode.gpu.placing import placed
from headspan.decode.threads import ThreadDecoder
from headspan.errors import SettingsError, SourceError
from headspan.shards.plan import scan
from headspan.shards.samples import Sample
from headspan_kernels import reference
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files, write_tar
from tests.engine.decoding import spans
from tests.engine.test_decode import PREPROCESSES, SIDES, encoded, picture
from tests.engine.test_fast_decoding import photograph
from tests.tolerances import relative_error

CPU = torch.device("cpu")
THUMBNAIL = Preprocess((24, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


class Library:
    """Decodes JPEGs with libjpeg, all of a list or none, and notes its calls."""

    def __init__(self, refuses: Callable[[bytes], bool] = lambda data: False) -> None:
        self.refuses = refuses
        # The pixels of each image, by call.
        self.calls: list[list[int]] = []

    def __call__(self, jpegs: list[Tensor]) -> list[Tensor]:
        found = []
        for jpeg in jpegs:
            data = jpeg.numpy().tobytes()
            if self.refuses(data):
                raise RuntimeError("Failed to decode jpeg stream: 8")
            pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
            found.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
        self.calls.append([image[0].numel() for image in found])
        return found


def gpu(library: Library, in_flight_bytes: int = 1 << 24, **more: Any) -> GpuDecoder:
    return GpuDecoder(library, THUMBNAIL, CPU, torch.float32, in_flight_bytes, 2, **more)


def grey_levels(part: Tensor) -> np.ndarray:
    """The grey levels of normalised pixels, `[image, height, width, 3]`."""
    levels = part.permute(0, 2, 3, 1).double().numpy() * THUMBNAIL.std + np.array(THUMBNAIL.mean)
    return np.asarray(levels * 255)


@pytest.fixture
def members() -> list[tuple[str, bytes]]:
    """Images of many sizes and kinds, good and bad."""
    jpegs = [
        encoded(photograph(31 + 17 * n, 90 - 7 * n, n), "JPEG", progressive=n % 3 == 0, subsampling=n % 2 * 2)
        for n in range(9)
    ]
    grey = encoded(photograph(50, 40).convert("L"), "JPEG")
    others = [
        encoded(photograph(70, 20), "PNG"),
        encoded(picture("CMYK", (30, 40)), "JPEG"),
        encoded(picture("RGBA", (30, 40))),
        jpegs[0][:-40],
        jpegs[1] + b"after its end",
        b"",
        b"no image",
        encoded(photograph(2, 1000), "JPEG"),
    ]
    data = [jpegs[0], *others[:3], *jpegs[1:5], *others[3:], grey, *jpegs[5:]]
    return [(f"{place:03d}.jpg", each) for place, each in enumerate(data)]


def samples_of(path: Path) -> Sequence[Sample]:
    return scan(str(path), 0, lambda note: None)[1]


def decoded_spans(decoder: GpuDecoder | ThreadDecoder, samples: Sequence[Sample], images: int) -> list[DecodedSpan]:
    return list(decoder.decode(spans(samples, images)))


def test_rows_reasons_checksums_and_pixels_are_those_of_fast(members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    samples = samples_of(write_tar(tmp_path / "a.tar", members))
    library = Library()
    found = decoded_spans(gpu(library), samples, 7)
    wanted = decoded_spans(ThreadDecoder(fill_fast, THUMBNAIL, 1 << 24, 2), samples, 7)
    assert sum(len(span.bad) for span in found) == 3
    assert sum(map(len, library.calls)) == 11
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.good.rows.tolist() == theirs.good.rows.tolist()
        assert ours.bad == theirs.bad
        assert (ours.last_row, ours.encoded_bytes, ours.crc32c) == (
            theirs.last_row,
            theirs.encoded_bytes,
            theirs.crc32c,
        )
        levels = np.concatenate([grey_levels(part) for part in ours.good.parts])
        (pixels,) = theirs.good.parts
        # Both round to grey levels after each pass, with weights that differ in their last digits.
        assert np.abs(levels - pixels).max() < 2.001
        assert np.abs(levels - pixels).mean() < 0.02


@pytest.mark.parametrize("refused", ["all", "some", "sizes"])
def test_what_the_library_does_not_decode_is_decoded_by_the_host(
    refused: str, members: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    samples = samples_of(write_tar(tmp_path / "a.tar", members))
    library = Library(lambda data: refused == "all" or (refused == "some" and len(data) % 3 == 0))
    decode = library
    if refused == "sizes":
        # It says something else than the header.
        decode = lambda jpegs: [image[:, :-1] for image in library(jpegs)]  # type: ignore[assignment]  # noqa: E731
    found = decoded_spans(gpu(decode), samples, 9)
    wanted = decoded_spans(ThreadDecoder(fill_fast, THUMBNAIL, 1 << 24, 2), samples, 9)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.good.rows.tolist(), ours.bad) == (theirs.good.rows.tolist(), theirs.bad)
        levels = np.concatenate([grey_levels(part) for part in ours.good.parts])
        difference = np.abs(levels - theirs.good.parts[0])
        assert difference.max() < (2.001 if refused == "some" else 0.001)


@settings(max_examples=60, deadline=None)
@given(size=SIDES, preprocess=PREPROCESSES)
def test_images_are_placed_as_the_exact_route_places_them(size: tuple[int, int], preprocess: Preprocess) -> None:
    image = picture("RGB", size)
    where = placed(image.height, image.width, preprocess)
    try:
        wanted = preprocess_image(encoded(image), preprocess)
    except Undecodable:
        assert where is None
        return
    assert where is not None
    found = reference.preprocess(
        *([torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)], [where], preprocess.size),
        *((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float32, interpolation(preprocess), fill(preprocess)),
    )
    # Of noise, a misplaced pixel would differ by tens of levels.
    assert np.abs(found[0].permute(1, 2, 0).numpy() * 255 - wanted).max() < 2.001


def test_large_images_are_decoded_by_the_host(
    members: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(write_tar(tmp_path / "a.tar", members))
    library = Library()
    monkeypatch.setattr(rendering, "MOST_PIXELS", 3000)
    decoded_spans(gpu(library), samples, 30)
    assert 0 < max(pixels for call in library.calls for pixels in call) <= 3000
    # PIL's own limit, of which it refuses the double.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1300)
    library.calls.clear()
    (span,) = decoded_spans(gpu(library), samples, 30)
    assert "more than 2,600 pixels" in {bad.reason for bad in span.bad}
    assert max(pixels for call in library.calls for pixels in call) <= 2600


def test_images_in_flight_stay_within_the_memory_on_host_and_device(tmp_path: Path) -> None:
    jpegs = [encoded(photograph(200, 150, n), "JPEG") for n in range(30)]
    samples = samples_of(write_tar(tmp_path / "a.tar", [(f"{n:03d}.jpg", data) for n, data in enumerate(jpegs)]))
    library = Library()
    decoder = gpu(library, 6 * STREAMS * 3 * 200 * 150)
    found = decoded_spans(decoder, samples, 30)
    assert sum(len(span.good.rows) for span in found) == 30
    # Half of it is for rasters, and each stream has a third of that.
    assert max(map(len, library.calls)) == 3
    assert decoder.span_images(1000) * decoder.image_bytes <= decoder.in_flight_bytes / 2 / STREAMS
    size = len(jpegs[0])
    pieces = list(cut(spans(samples, 30), 128, 5 * size))
    assert [len(piece) for piece in pieces] != [30]
    assert all(piece.encoded_bytes <= 5 * size or len(piece) == 1 for piece in pieces)
    assert [row for piece in pieces for row in piece.rows.tolist()] == list(range(30))


@pytest.mark.parametrize(("batch", "span"), [(1, 128), (7, 126), (64, 128), (128, 128), (256, 128), (300, 100)])
def test_a_span_has_whole_batches_or_an_equal_part_of_one(batch: int, span: int) -> None:
    assert gpu(Library(), 1 << 30).span_images(batch) == span


def test_spans_before_a_shard_that_cannot_be_read_are_yielded_first(
    members: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    samples = samples_of(path)
    path.write_bytes(path.read_bytes()[: samples[10].offset])
    before = threading.active_count()
    running = gpu(Library()).decode(spans(samples, 4))
    assert [span.last_row for span in islice(running, 2)] == [3, 7]
    with pytest.raises(SourceError, match="truncated"):
        next(running)
    assert threading.active_count() <= before


def test_closing_the_generator_ends_its_threads(members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    samples = samples_of(write_tar(tmp_path / "a.tar", members * 5))
    before = threading.active_count()
    running = gpu(Library()).decode(spans(samples, 4))
    next(running)
    assert threading.active_count() > before
    running.close()
    assert threading.active_count() <= before


def test_without_a_gpu_it_is_refused_before_anything_is_written(toy_run: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--decode gpu needs a CUDA device, but the model runs on cpu;"):
        hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(decode="gpu"))
    assert list(tmp_path.iterdir()) == []


def test_a_torchvision_without_a_gpu_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr("torchvision.io.decode_jpeg", fails)
    with pytest.raises(SettingsError, match=r"does not \(.*not compiled with nvJPEG support\); give --decode fast"):
        torchvision_on(torch.device("cuda"))
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda jpegs, **settings: [torch.zeros(3, 16, 16)] * len(jpegs))
    with pytest.raises(SettingsError, match="decodes white to something else"):
        torchvision_on(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preprocess", [THUMBNAIL, Preprocess((64, 48), resize_mode="longest", fill_color=7)])
def test_on_a_gpu_pixels_are_close_to_those_of_fast(
    preprocess: Preprocess, members: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    samples = samples_of(write_tar(tmp_path / "a.tar", members * 20))
    device = torch.device("cuda")
    decoder = GpuDecoder(torchvision_on(device), preprocess, device, torch.float32, 1 << 24, 2)
    found = decoded_spans(decoder, samples, 64)
    wanted = decoded_spans(ThreadDecoder(fill_fast, preprocess, 1 << 24, 2), samples, 64)
    assert [bad for span in found for bad in span.bad] == [bad for span in wanted for bad in span.bad]
    ours = torch.cat([part.cpu() for span in found for part in span.good.parts])
    levels = (ours.permute(0, 2, 3, 1).double().numpy() * preprocess.std + preprocess.mean) * 255
    difference = np.abs(levels - np.concatenate([part for span in wanted for part in span.good.parts]))
    assert difference.mean() < 1
    assert np.percentile(difference, 99.9) < 16


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Let runs on a CPU have a library that decodes."""
    library = Library()
    monkeypatch.setattr("headspan.decode.choice.jpegs_on", lambda device: library)
    return library


def test_a_run_stores_what_a_run_with_fast_stores(toy_run: ToyRun, tmp_path: Path, library: Library) -> None:
    settings = toy_run.settings(emit=("heads", "mlps"))
    ours = hs.precompute(out=tmp_path / "gpu.zarr", **{**settings, "decode": "gpu"})
    theirs = hs.precompute(out=tmp_path / "fast.zarr", **{**settings, "decode": "fast"})
    assert library.calls
    assert (ours.images, ours.bad) == (theirs.images, theirs.bad)
    assert [bad.row for bad in ours.bad] == list(BROKEN_ROWS)
    found, wanted = hs.open(tmp_path / "gpu.zarr"), hs.open(tmp_path / "fast.zarr")
    assert relative_error(found.head(0, 0), wanted.head(0, 0)) < 0.02
    assert found.attributes["decode"] == "gpu"
    assert {"torchvision", "simplejpeg"} < found.attributes["made_with"]["libraries"].keys()
    assert "torchvision" not in wanted.attributes["made_with"]["libraries"]
    # The encoded images have the same checksums.
    assert hs.verify(tmp_path / "gpu.zarr", sources=True).problems == ()
    assert ours.seconds["reading"] > 0
    assert ours.seconds["decoding"] > 0


def test_a_run_that_ended_early_continues_to_the_same_bytes(toy_run: ToyRun, tmp_path: Path, library: Library) -> None:
    settings = toy_run.settings(emit=("heads",), decode="gpu")
    hs.precompute(out=tmp_path / "whole.zarr", **settings)

    def stop(event: Any) -> None:
        if event.stage == "images" and event.done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hs.precompute(out=tmp_path / "cut.zarr", on_progress=stop, **settings)
    assert 0 < hs.precompute(out=tmp_path / "cut.zarr", **settings).skipped < 70
    whole, cut_short = relative_files(tmp_path / "whole.zarr"), relative_files(tmp_path / "cut.zarr")
    arrays = {name for name in whole if name.startswith(("heads", "norm", "embedding", "ok"))}
    assert arrays
    assert {name: whole[name] for name in arrays} == {name: cut_short[name] for name in arrays}


@pytest.mark.parametrize(
    ("waited", "decode", "backend", "advised"),
    [
        (3.0, "fast", "headspan_kernels.fused on cuda", True),
        (1.0, "fast", "headspan_kernels.fused on cuda", False),
        (3.0, "exact", "headspan_kernels.fused on cuda", False),
        (3.0, "gpu", "headspan_kernels.fused on cuda", False),
        (3.0, "fast", "headspan_kernels.onednn on cpu", False),
    ],
)
def test_a_run_whose_gpu_waited_for_images_says_that_it_can_decode_them(
    waited: float, decode: str, backend: str, advised: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = hs.Summary("s.zarr", 100, [], 0, seconds={"waiting for images": waited, "total": 10.0})
    store: Any = SimpleNamespace(attributes={"decode": decode, "backend": backend, "precision": "fp16"})
    _advise(summary, store)
    assert ("waited for images for 30 % of the time; --decode gpu" in capsys.readouterr().out) is advised
