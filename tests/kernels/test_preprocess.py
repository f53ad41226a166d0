"""The kernel that resizes images, against Pillow and the reference, interpreted, emulated or run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from headspan.decode.exact import fill_exact
from headspan.decode.threads import ThreadDecoder
from headspan.shards.plan import scan
from tests.conftest import image_members, write_tar
from tests.engine.decoding import spans
from tests.kernels.test_reference import (
    MEAN,
    ROUNDED_ELSEWHERE,
    SIZE,
    SOURCES,
    STD,
    by_pillow,
    levels_of,
    noise,
    ways_to_place,
)
from tests.kernels.tritons import DEPRECATIONS, ON_GPU

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")

from headspan.config import Preprocess
from headspan.decode.gpu import rendering
from headspan.decode.gpu.decoder import GpuDecoder
from headspan_kernels import fused, reference
from headspan_kernels.reference import Placed

pytestmark = [pytest.mark.usefixtures("world", "nothing_is_zero_by_chance"), DEPRECATIONS]


def on_device(images: list[torch.Tensor], addressed: list[torch.Tensor]) -> list[torch.Tensor]:
    """The images where kernels can read them: their addresses are numbers in a table."""
    moved = [image.cuda() if ON_GPU else image for image in images]
    addressed += moved
    return moved


@pytest.mark.parametrize(
    ("way", "mode"),
    [
        *((way, "bicubic") for way in ("squash", "crop", "pad", "corner", "small")),
        ("crop", "bilinear"),
        *(pytest.param(way, "bilinear", marks=pytest.mark.full_size) for way in ("squash", "pad", "corner", "small")),
    ],
)
def test_images_of_many_sizes_in_one_batch_equal_pillows_within_one_grey_level(
    random: torch.Generator, addressed: list[torch.Tensor], way: str, mode: str
) -> None:
    # The emulator takes half a second an image, so every other size is placed in three ways, and the rest in two.
    chosen = [*enumerate(SOURCES)] if ON_GPU else [*enumerate(SOURCES)][way in ("crop", "small") :: 2]
    images = [noise(random, number, *size) for number, size in chosen]
    placed = [ways_to_place(*size)[way]._replace(rows_first=bool(number % 4 < 2)) for number, size in chosen]
    given = on_device(images, addressed)
    normalised = fused.preprocess(given, placed, SIZE, MEAN, STD, torch.float32, mode, 99)
    assert normalised.shape == (len(chosen), 3, *SIZE)
    found = levels_of(normalised)
    wanted = np.stack([by_pillow(image, where, mode, 99) for image, where in zip(images, placed, strict=True)])
    assert np.abs(found - wanted).max() < 1.001
    assert np.abs(found - wanted).mean() < ROUNDED_ELSEWHERE
    plain = levels_of(reference.preprocess(images, placed, SIZE, MEAN, STD, torch.float32, mode, 99))
    assert np.abs(found - plain).max() < 1.001
    assert np.abs(found - plain).mean() < ROUNDED_ELSEWHERE


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-7)])
def test_the_input_has_the_towers_type(
    random: torch.Generator, addressed: list[torch.Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    """The interpreter truncates to bfloat16, where a GPU rounds."""
    images = on_device([noise(random, 1, 40, 30), noise(random, 2, 9, 70)], addressed)
    placed = [ways_to_place(*image.shape[1:])["pad"] for image in images]
    found = fused.preprocess(images, placed, SIZE, MEAN, STD, dtype)
    exact = fused.preprocess(images, placed, SIZE, MEAN, STD, torch.float32)
    assert found.dtype == dtype
    assert ((found.float() - exact).abs() <= tolerance * exact.abs() + 1e-6).all()


def test_only_the_part_of_a_resized_image_that_is_kept_is_computed(
    random: torch.Generator, addressed: list[torch.Tensor]
) -> None:
    """An image of 2 by 3,000 pixels has 24,000 columns when its rows are 16; they would take minutes here."""
    image = noise(random, 2, 2, 3000)
    where = Placed(16, 24_000, 0, 11_994)
    found = levels_of(
        fused.preprocess(on_device([image], addressed), [where], SIZE, MEAN, STD, torch.float32, "bicubic", 0)
    )
    assert np.abs(found[0] - by_pillow(image, where, "bicubic", 0)).max() < 1.001


@pytest.mark.skipif(ON_GPU, reason="tests/engine/test_gpu_decoding.py has this on a GPU")
def test_the_decoder_of_a_gpu_uses_the_kernel(
    addressed: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the images are JPEGs, which libjpeg decodes in place of the GPU; the others come from the host."""
    samples = scan(str(write_tar(tmp_path / "a.tar", image_members(range(6), (4,)))), 0, lambda note: None)[1]

    def decode(jpegs: list[torch.Tensor]) -> list[torch.Tensor]:
        found = [simplejpeg.decode_jpeg(jpeg.numpy().tobytes(), "RGB", fastdct=False) for jpeg in jpegs]
        return [torch.from_numpy(pixels).permute(2, 0, 1).contiguous() for pixels in found]

    def resize(images: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        addressed.extend(images)
        return fused.preprocess(images, *rest)

    monkeypatch.setattr(rendering, "ops", lambda device: SimpleNamespace(preprocess=resize))
    preprocess = Preprocess(SIZE, MEAN, STD)
    decoder = GpuDecoder(decode, preprocess, torch.device("cpu"), torch.float32, 1 << 24, 1)
    (found,), (wanted,) = (
        list(each.decode(spans(samples, 6))) for each in (decoder, ThreadDecoder(fill_exact, preprocess, 1 << 24, 1))
    )
    assert [bad.row for bad in found.bad] == [4]
    assert (found.bad, found.crc32c, found.good.rows.tolist()) == (wanted.bad, wanted.crc32c, [0, 1, 2, 3, 5])
    difference = np.abs(levels_of(torch.cat(found.good.parts)) - wanted.good.parts[0])
    assert difference.max() < 1.001
    assert len(addressed) == 5
