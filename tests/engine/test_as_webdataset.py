"""A store as a WebDataset pipeline: the samples that webdataset itself reads, with the numbers of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

import headspan as hs
from headspan.errors import SettingsError, SourceError
from tests.conftest import ToyRun, encoded_image, write_tar

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def run(toy_run: ToyRun, shards: list[Path], out: Path) -> hs.Store:
    weights = str(toy_run.weights)
    hs.precompute(
        list(map(str, shards)), out, model=str(toy_run.config), pretrained=weights, layers="all", device="cpu"
    )
    return hs.open(out)


def test_samples_are_those_of_webdataset_with_their_numbers(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    samples = store.samples().to_pylist()
    found = list(hs.as_webdataset(store, ("heads", "embedding", "image")))
    plain = {
        sample["__key__"]: sample
        for sample in webdataset.WebDataset(list(map(str, toy_run.shards)), shardshuffle=False)
    }
    assert [sample["__key__"] for sample in found] == [sample["key"] for sample in samples]
    for sample in found:
        own = {name: data for name, data in sample.items() if not name.endswith(".npy")}
        # The store names a shard as the run did.
        assert own == {name: data for name, data in plain[own["__key__"]].items() if name != "__local_path__"}
    decoded = list(hs.as_webdataset(store).decode("rgb8").map(lambda sample: sample))
    for image, sample in enumerate(decoded):
        assert (sample["embedding.npy"] == store.embedding[image]).all()
        assert sample["heads.npy"].dtype == np.float16
        for place, layer in enumerate(store.layers):
            assert (sample["heads.npy"][place, 1] == store.head_coordinates(layer, 1)[image]).all()


def test_the_pipeline_has_the_methods_of_the_package(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    pipeline = (
        hs.as_webdataset(store, layers=[2], heads=[0])
        .shuffle(20)
        .decode("torchrgb", partial=True)
        .to_tuple("jpg;png", "heads.npy", "embedding.npy", "__key__")
        .map(lambda sample: sample[1:])
        .batched(16)
    )
    keys, rows = [], []
    for heads, embedding, key in pipeline:
        assert heads.shape[1:] == (1, 1, 16)
        keys += key
        rows += list(np.asarray(embedding))
    by_key = dict(zip(keys, rows, strict=True))
    assert len(keys) == store.images
    for key, embedding in zip(store.samples().column("key").to_pylist(), store.embedding, strict=True):
        assert (by_key[key] == embedding).all()


def test_failed_images_come_without_arrays_on_request(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    found = list(hs.as_webdataset(store, keep_failed=True))
    assert len(found) == store.planned_images
    without = {sample["__key__"] for sample in found if "heads.npy" not in sample}
    assert without == {bad.key for bad in store.bad_images()}


def test_repeated_keys_and_several_images_of_a_sample_get_their_own_numbers(toy_run: ToyRun, tmp_path: Path) -> None:
    def image(row: int) -> bytes:
        return encoded_image(row, kind="PNG")

    members = [
        ("a/k.left.png", image(0)),
        ("a/k.RIGHT.png", image(1)),
        ("a/k.json", b"{}"),
        ("__meta__", b"not a sample"),
        ("other.txt", b"no image"),
        ("k.png", image(2)),
        ("j.png", image(3)),
        ("k.png", image(4)),
        ("a/k.mask.png", image(5)),
    ]
    store = run(toy_run, [write_tar(tmp_path / "a.tar", members)], tmp_path / "run.zarr")
    found = list(hs.as_webdataset(store, ("embedding", "image")).decode())
    pairs = [
        (sample["__key__"], name, int(value))
        for sample in found
        for name, value in sample.items()
        if name.endswith("image.npy")
    ]
    assert pairs == [
        ("a/k", "left.image.npy", 0), ("a/k", "right.image.npy", 1), ("k", "image.npy", 2), ("j", "image.npy", 3),
        ("k", "image.npy", 4),
    ]  # fmt: skip
    assert (found[3]["embedding.npy"] == store.embedding[4]).all()
    assert found[0]["left.png"] == image(0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_share_the_shards(toy_run: ToyRun, workers: int, shuffle: bool) -> None:
    pipeline = (
        hs.as_webdataset(toy_run.path, "image", shuffle=shuffle, seed=3).decode(partial=True).to_tuple("image.npy")
    )
    found = [int(image) for (image,) in DataLoader(pipeline, batch_size=None, num_workers=workers)]
    assert sorted(found) == list(range(hs.open(toy_run.path).images))


def test_ranks_share_the_shards(toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        found += [sample["__key__"] for sample in hs.as_webdataset(toy_run.path)]
    assert sorted(found) == sorted(hs.open(toy_run.path).samples().column("key").to_pylist())


def test_shards_are_visited_in_another_order_with_another_seed(toy_run: ToyRun) -> None:
    orders = {
        tuple(sample["__url__"] for sample in hs.as_webdataset(toy_run.path, shuffle=True, seed=seed))
        for seed in range(8)
    }
    assert len(orders) > 1
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_a_shard_that_changed_or_is_no_tar_is_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("k.png", encoded_image(0, kind="PNG"))])
    store: Any = run(toy_run, [tar], tmp_path / "run.zarr")
    with pytest.raises(SettingsError, match="holds no array 'maps'"):
        hs.as_webdataset(store, "maps")
    for name, said in (("list.csv", r"list\.csv: is no tar"), ("pipe:cat a.tar", "is a command")):
        if not name.startswith("pipe:"):
            (tmp_path / name).write_text("x")
            name = str(tmp_path / name)
        with pytest.raises(SourceError, match=said):
            hs.as_webdataset(store, shards=name)
    write_tar(tar, [("k.png", encoded_image(1, kind="PNG")), ("l.png", encoded_image(1, kind="PNG"))])
    with pytest.raises(SourceError, match="has changed since precompute read it"):
        list(hs.as_webdataset(store))
