"""The benchmark of `--decode gpu`'s pixels, with stand-ins for the library and the GPU."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from benchmarks import pictures
from benchmarks.gpu_pixels import by_kind, differences
from headspan.config import PrecomputeSettings
from headspan.model.load import LoadedModel
from headspan.run.encoder import Encoder, prepare
from tests.engine.test_gpu_decoding import CPU, Library


@pytest.fixture
def encode(toy_model: LoadedModel) -> Encoder:
    settings = PrecomputeSettings(("a.tar",), "s.zarr", device="cpu", layers="all")
    return prepare(settings, lambda: toy_model)


def test_pixels_and_heads_are_compared_by_kind(encode: Encoder, toy_model: LoadedModel) -> None:
    random = np.random.default_rng(0)
    jpegs = by_kind([pictures.photo_like(random, 90, 60) for _ in range(3)])
    assert len({len(each) for encoded in jpegs.values() for each in encoded}) == 9
    library = Library()

    def brighter(found: list[Tensor]) -> list[Tensor]:
        return [image.clamp(max=250) + 5 for image in library(found)]

    same = differences(jpegs, toy_model.preprocess, encode, library, CPU)
    other = differences(jpegs, toy_model.preprocess, encode, brighter, CPU)
    for kind in ("4:2:0", "4:4:4", "4:2:0, progressive"):
        assert (same[kind]["images"], same[kind]["decoded_on_gpu"]) == (3, 3)
        for name in ("exact", "fast"):
            found, brightened = same[kind][f"against {name}"], other[kind][f"against {name}"]
            assert found["mean_levels"] < 0.02
            assert found["largest_levels"] < 2.001
            assert found["heads"] < 0.01
            assert brightened["mean_levels"] == pytest.approx(5, abs=0.3)
            assert brightened["share_above_two"] > 0.9
            assert brightened["heads"] > 2 * found["heads"]
