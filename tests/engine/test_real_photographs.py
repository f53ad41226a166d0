"""The whole pipeline on real photographs, if HEADSPAN_PHOTOS names shards of them."""

import os
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.run.verify import SUM_TOLERANCES, verify
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand
from tests.tolerances import FLOAT16_STORE, relative_error

PHOTOS = os.environ.get("HEADSPAN_PHOTOS", "")


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS, reason="HEADSPAN_PHOTOS names no shards of real photographs")
def test_real_photographs_go_through_the_whole_pipeline(tmp_path: Path) -> None:
    out = tmp_path / "photos.zarr"
    summary = hs.precompute(
        PHOTOS, out, model="ViT-B-32", pretrained="random:0", layers="all", emit="heads,patches,mlps", device="cpu"
    )
    assert summary.images > 0
    assert summary.bad == []
    store = hs.open(out)
    verdict = verify(store)
    assert verdict.problems == ()
    assert verdict.largest_error is not None
    assert verdict.largest_error < SUM_TOLERANCES["fp32"]

    # Keys, captions and offsets in the tar belong to the right rows.
    samples = store.samples().to_pylist()
    assert [sample["row"] for sample in samples] == store.rows.tolist()
    assert {sample["url"] for sample in samples} == set(expand([PHOTOS]))
    assert all(sample["caption"] for sample in samples)
    for sample in samples[:: max(len(samples) // 7, 1)]:
        with open_shard(sample["url"]) as shard:
            assert shard.read_at(sample["offset"], 3) in (b"\xff\xd8\xff", b"\x89PN", b"RIF")
            assert shard.read_at(sample["offset"] - 512, 512).startswith(sample["member"].encode())

    image, layer = store.images // 2, store.layers[-1]
    patches = store.patches(image, layer)
    heads = np.stack([store.head(layer, head)[image] for head in range(store.heads_per_layer)])
    assert relative_error(patches.sum(axis=0), heads) < FLOAT16_STORE

    spans = hs.textspan(
        store, [f"a photo of number {number}" for number in range(200)], texts_per_head=5, layers=[layer], save=True
    )
    assert (spans.indices >= 0).all()
