"""PyTorch datasets over a store: every image once, in any number of processes, with the store's own numbers."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import headspan as hs
from benchmarks.models import TOY, store_size
from benchmarks.random_store import add_moments, planned_store, sparse_store, unit_batches, write_store, zero_moments
from headspan.errors import SettingsError, StoreError
from headspan.loading.columns import Columns
from headspan.loading.order import Order, part, skipped_batches
from headspan.loading.staged import Staged
from headspan.shards.samples import BadImage
from tests.conftest import ToyRun, encoded_image, write_tar
from tests.tolerances import FLOAT32_SUM, relative_error
from tests.warm_python import FORKED

ROWS = 203
# Tests use more workers than small machines have cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 203 rows in units of 24, two layers, with patches; every seventh row is bad."""
    path = tmp_path_factory.mktemp("loading") / "run.zarr"
    size, emit, random = store_size(TOY, ROWS, 24, 2), ("heads", "patches"), np.random.default_rng(0)
    store = planned_store(path, size, emit, random)
    for unit in store.unfinished():
        moments, bad = zero_moments(size), []
        with store.begin(unit) as writer:
            for rows, arrays in unit_batches(unit, size, emit, random):
                good = rows % 7 != 3
                add_moments(moments, {name: values[good] for name, values in arrays.items()})
                writer.put(rows, good, arrays)
                bad += [BadImage(row, f"{row:09d}", "00000.tar", "truncated") for row in rows[~good].tolist()]
            writer.commit(moments, bad)
    store.finish()
    return path


def images_of(batches: Any) -> list[int]:
    return [int(image) for batch in batches for image in batch["image"]]


def stream(path: Path, **settings: Any) -> Any:
    settings = {"block_images": 10, "buffer_blocks": 3, "batch_size": 8, "shuffle": True} | settings
    arrays = settings.pop("arrays", ("heads", "embedding", "image"))
    return hs.torch_dataset(path, arrays, style="iterable", **settings)


@pytest.mark.parametrize("dtype", ["float32", np.float16, torch.float16])
def test_a_batch_holds_the_numbers_that_zarr_reads(path: Path, dtype: Any) -> None:
    group = zarr.open_group(path, mode="r")
    dataset = hs.torch_dataset(path, ("heads", "embedding", "norm", "patches", "image"), dtype=dtype)
    good = np.flatnonzero(np.asarray(group["ok"]))
    assert len(dataset) == len(good) == ROWS - 29
    places = np.random.default_rng(1).permutation(len(good))[:57]
    batch = dataset[places]
    assert batch["image"].tolist() == places.tolist()
    for name in ("heads", "embedding", "norm", "patches"):
        expected = np.asarray(group[name])[good[places]]
        found = batch[name].numpy()
        assert found.dtype == (np.float32 if expected.dtype == np.float32 or dtype == "float32" else np.float16)
        assert (found == expected.astype(found.dtype)).all(), name
    assert batch["heads"].shape == (57, 2, 3, 16)
    # One image, from the end, and single images as a DataLoader asks for them.
    assert torch.equal(dataset[-1]["heads"], dataset[[len(dataset) - 1]]["heads"][0])
    assert [sample["image"].item() for sample in dataset.__getitems__([5, 0, 5])] == [5, 0, 5]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("mapped", [True, False])
def test_layers_and_heads_are_chosen_in_the_order_given(
    path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mapped:
        # A store of another program, whose shards have another index.
        monkeypatch.setattr("headspan.store.mapped._index", lambda spec, used: b"")
    store = hs.open(path)
    dataset = hs.torch_dataset(store, ("heads", "contributions", "patches"), layers=[2, 1], heads=[2, 0])
    batch = dataset[[150, 3, 77, 3]]
    for place, layer in enumerate((2, 1)):
        for column, head in enumerate((2, 0)):
            own = store.head_coordinates(layer, head)[[150, 3, 77, 3]]
            assert (batch["heads"][:, place, column].numpy() == own).all()
            dense = store.head(layer, head)[[150, 3, 77, 3]]
            assert relative_error(batch["contributions"][:, place, column].numpy(), dense) < FLOAT32_SUM
        patches = store.patch_coordinates(77, layer)[:, [2, 0]].swapaxes(0, 1)
        assert (batch["patches"][2, place].numpy() == patches).all()
    other = hs.torch_dataset(store, "contributions", layers=[1], convention="per_term", normalised=False)[[9]]
    expected = store.heads([1], "per_term", normalised=False)[[9]]
    assert relative_error(other["contributions"].numpy(), expected) < FLOAT32_SUM


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("images", [None, np.arange(0, 170, 3), np.r_[5:60, 61:62, 90:150]])
def test_batches_from_groups_in_memory_equal_those_from_files(
    path: Path, images: np.ndarray | None, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mapped:
        monkeypatch.setattr("headspan.store.mapped._index", lambda spec, used: b"")
    settings: dict[str, Any] = {"batch_size": 23, "block_images": 40, "buffer_blocks": 2, "images": images}
    settings["arrays"] = ("heads", "embedding", "norm", "patches", "contributions", "image")
    staged, stage = [], Columns.stage

    def counted(self: Columns, places: np.ndarray, memory: Staged, first: int) -> None:
        staged.append(len(places))
        stage(self, places, memory, first)

    monkeypatch.setattr(Columns, "stage", counted)
    for chosen in ({}, {"dtype": "float16", "layers": [2], "heads": [2, 0]}):
        found = list(stream(path, **settings, **chosen))
        assert sum(staged) == sum(len(batch["image"]) for batch in found)
        staged.clear()
        with monkeypatch.context() as patch:
            patch.setattr("headspan.loading.read_ahead._STAGED_BYTES", 0)
            wanted = list(stream(path, **settings, **chosen))
        assert not staged
        assert len(found) == len(wanted) > 1
        for batch, other in zip(found, wanted, strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_the_contributions_of_a_real_run_sum_to_its_unit_embeddings(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    dataset = hs.torch_dataset(store, ("contributions", "embedding"))
    batch = dataset[list(range(len(dataset)))]
    expected = store.heads()
    assert relative_error(batch["contributions"].numpy(), expected) < FLOAT32_SUM
    assert (batch["embedding"].numpy() == store.embedding).all()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_ranks_and_workers_visit_every_image_once(path: Path, shuffle: bool, ranks: int, workers: int) -> None:
    order = Order(ROWS, shuffle, 3, 10, 3)
    shares = [part(range(ROWS), rank, ranks, equal=False) for rank in range(ranks)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    parts = [part(share, worker, workers, equal=False) for share in shares for worker in range(workers)]
    visited = [np.concatenate([np.empty(0, int), *order.buffers(0, positions)]) for positions in parts]
    assert sorted(np.concatenate(visited).tolist()) == list(range(ROWS))
    # From any image on, the rest is the same.
    for positions, whole in zip(parts, visited, strict=True):
        for skipped in (0, 1, 13, len(whole)):
            rest = np.concatenate([np.empty(0, int), *order.buffers(0, positions, skipped)])
            assert (rest == whole[skipped:]).all()
    equal = {len(part(range(ROWS), index, ranks, equal=True)) for index in range(ranks)}
    assert equal == {ROWS // ranks}


@pytest.mark.parametrize(("workers", "method"), [(0, None), (1, "fork"), (3, "fork"), (2, "spawn")])
def test_a_loader_yields_every_image_once_with_its_numbers(path: Path, workers: int, method: str | None) -> None:
    store, dataset = hs.open(path), stream(path)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method)
    found = list(loader)
    assert sorted(images_of(found)) == list(range(store.images))
    heads = np.stack([[store.head_coordinates(layer, head) for head in range(3)] for layer in store.layers])
    for batch in found:
        assert (batch["heads"].numpy() == heads[:, :, batch["image"].numpy()].transpose(2, 0, 1, 3)).all()
        assert (batch["embedding"].numpy() == store.embedding[batch["image"].numpy()]).all()
    assert sum(len(batch["image"]) < 8 for batch in found) <= max(1, workers)


def test_an_epoch_has_an_order_of_its_own_and_a_seed_repeats_it(path: Path) -> None:
    dataset = stream(path, arrays=("image",))
    first = images_of(dataset)
    assert images_of(dataset) == first
    assert images_of(stream(path, arrays=("image",))) == first
    dataset.set_epoch(1)
    second = images_of(dataset)
    assert sorted(second) == sorted(first)
    assert second != first
    assert images_of(stream(path, arrays=("image",), seed=1)) != first
    # Neither the images of a block nor the blocks keep their order.
    assert images_of(stream(path, arrays=("image",), shuffle=False)) == list(range(len(first)))
    jumps = np.abs(np.diff(first))
    assert (jumps == 1).mean() < 0.2
    assert np.median(jumps) > 5


def test_workers_that_are_kept_learn_of_the_next_epoch(path: Path) -> None:
    dataset = stream(path, arrays=("image",))
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    first = images_of(loader)
    dataset.set_epoch(1)
    assert images_of(loader) != first


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("done", [0, 1, 4, 20, 100])
def test_an_epoch_continues_after_the_batches_that_were_done(path: Path, workers: int, done: int) -> None:
    def epoch(batches_done: int) -> list[list[int]]:
        dataset = stream(path, arrays=("image",))
        dataset.set_epoch(5, batches_done)
        return [batch["image"].tolist() for batch in DataLoader(dataset, batch_size=None, num_workers=workers)]

    assert epoch(done) == epoch(0)[done:]


def test_skipped_batches_are_those_of_taking_turns() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        batches = random.integers(0, 6, random.integers(1, 5)).tolist()
        turns = [index for number in range(6) for index, count in enumerate(batches) if number < count]
        done = int(random.integers(0, 25))
        expected = [turns[:done].count(index) for index in range(len(batches))]
        assert skipped_batches(done, len(batches), batches) == expected


def test_dropping_the_last_gives_all_ranks_the_same_number_of_batches(path: Path) -> None:
    counts = set()
    for rank in range(3):
        dataset = stream(path, rank=rank, world_size=3, drop_last=True, arrays=("image",))
        found = list(DataLoader(dataset, batch_size=None, num_workers=2))
        assert {len(batch["image"]) for batch in found} == {8}
        counts.add(len(found))
    assert len(counts) == 1


RANK = """
import sys
import torch.distributed as dist
from torch.utils.data import DataLoader
import headspan as hs

def main():
    path, rank, meeting, method = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    dataset = hs.torch_dataset(path, ("image",), style="iterable", shuffle=True, batch_size=7)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    print(*(int(image) for batch in loader for image in batch["image"]))
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full_size)])
def test_ranks_of_torch_distributed_share_the_images(path: Path, method: str, tmp_path: Path) -> None:
    # A process that is spawned imports the script.
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, *(["-c", FORKED + RANK] if method == "fork" else [str(script)]), str(path)]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting"), method], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found = [[int(word) for word in output.split()] for output in outputs]
    assert sorted(found[0] + found[1]) == list(range(hs.open(path).images))
    assert abs(len(found[0]) - len(found[1])) <= 1


def test_a_map_style_loader_batches_single_images_or_whole_lists(path: Path) -> None:
    dataset = hs.torch_dataset(path, ("heads", "image"))
    plain = list(DataLoader(dataset, batch_size=9, num_workers=2))
    sampler = BatchSampler(RandomSampler(dataset), 9, drop_last=False)
    whole = list(DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=1))
    assert images_of(plain) == list(range(len(dataset)))
    assert sorted(images_of(whole)) == images_of(plain)
    order = torch.cat([batch["image"] for batch in whole]).argsort()
    expected = torch.cat([batch["heads"] for batch in plain])
    assert torch.equal(torch.cat([batch["heads"] for batch in whole])[order], expected)


def test_only_committed_rows_of_an_unfinished_store_are_read(tmp_path: Path) -> None:
    size, random = store_size(TOY, 60, 16, 2), np.random.default_rng(0)
    store = planned_store(tmp_path / "run.zarr", size, ("heads",), random)
    first, second, *_ = store.unfinished()
    for unit in (second, first):
        opened = None if unit is second else hs.torch_dataset(tmp_path / "run.zarr", ("heads", "image"))
        moments = zero_moments(size)
        with store.begin(unit) as writer:
            for rows, arrays in unit_batches(unit, size, ("heads",), random):
                writer.put(rows, np.ones(len(rows), bool), arrays)
                add_moments(moments, arrays)
            writer.commit(moments, [])
        if opened is not None:
            # A copy in another process shows what this one shows, although more units are finished by then.
            assert len(pickle.loads(pickle.dumps(opened))) == len(opened) == 16
            assert (pickle.loads(pickle.dumps(opened))[3]["heads"] == opened[3]["heads"]).all()
    dataset = hs.torch_dataset(tmp_path / "run.zarr", ("heads", "image"))
    assert len(dataset) == 32
    assert bool(torch.isfinite(dataset[list(range(32))]["heads"]).all())


def test_a_missing_shard_reads_as_nan_like_the_store(tmp_path: Path) -> None:
    sparse_store(tmp_path / "run.zarr", store_size(TOY, 50, 8, 2), np.random.default_rng(0), bad_every=10)
    dataset = hs.torch_dataset(tmp_path / "run.zarr", ("heads", "embedding"))
    assert len(dataset) == 45
    assert bool(dataset[[1, 44]]["heads"].isnan().all())


def test_a_store_that_cannot_be_written_is_read(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run.zarr"
    shutil.copytree(path, copy)
    for each in (*copy.rglob("*"), copy):
        each.chmod(0o555 if each.is_dir() else 0o444)
    try:
        assert images_of(stream(copy, shuffle=False, arrays=("image",))) == list(range(ROWS - 29))
    finally:
        for each in (copy, *copy.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)


def test_chosen_images_keep_their_index_in_the_store(path: Path) -> None:
    mask = np.zeros(hs.open(path).images, bool)
    mask[[5, 9, 100]] = True
    for images in (mask, [100, 5, 9]):
        assert images_of(stream(path, images=images, shuffle=False, arrays=("image",))) == [5, 9, 100]
    assert images_of(stream(path, images=[], arrays=("image",))) == []


def test_labels_are_the_classes_of_the_samples(toy_run: ToyRun, tmp_path: Path) -> None:
    members = [(f"{row:03d}.{kind}", data) for row in range(5) for kind, data in _with_class(row)]
    write_tar(tmp_path / "a.tar", members)
    settings = {"model": str(toy_run.config), "pretrained": str(toy_run.weights), "layers": "all", "device": "cpu"}
    hs.precompute(str(tmp_path / "a.tar"), tmp_path / "run.zarr", **settings)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"1 image of 5 have no class"):
        hs.torch_dataset(tmp_path / "run.zarr", "label")
    dataset = hs.torch_dataset(tmp_path / "run.zarr", "label", images=[0, 1, 2, 4])
    assert dataset[[3, 0, 1]]["label"].tolist() == [12, 8, 9]


def _with_class(row: int) -> list[tuple[str, bytes]]:
    return [("png", encoded_image(row, kind="PNG")), *([("cls", b"%d" % (row + 8))] if row != 3 else [])]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arrays": ("maps",)}, "holds no array 'maps'; choose from embedding, norm, heads, patches"),
        ({"arrays": ()}, "name at least one array"),
        ({"layers": [0]}, "layer 0 is not stored"),
        ({"layers": []}, "no layer or no head is named"),
        ({"heads": [3]}, "head 3 does not exist"),
        ({"images": [999]}, "do not all exist"),
        ({"dtype": "int8"}, "dtype int8 is not offered"),
        ({"convention": "mine"}, "convention 'mine' is unknown"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"buffer_blocks": 0}, "both must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2"),
        ({"style": "other"}, "style 'other' is unknown"),
        ({"style": "map"}, "give shuffle=True to the DataLoader"),
    ],
)
def test_an_impossible_choice_is_refused_in_one_sentence(path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        hs.torch_dataset(path, **({"style": "iterable", "shuffle": True} | settings))


def test_no_store_at_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        hs.torch_dataset(tmp_path / "nothing.zarr")


def test_rows_are_read_ahead_from_the_places_where_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Sequence[int], int]] = []
    monkeypatch.setattr("headspan.store.mapped.read_ahead", lambda *call: asked.append(call))
    maps = hs.open(path).contents.maps("heads")
    first, end = 20, 31
    maps.read_ahead(first, end, np.arange(6))
    stored = np.asarray(zarr.open_group(path, mode="r")["heads"])[first:end]
    found = b"".join(Path(name).read_bytes()[start : start + size] for name, starts, size in asked for start in starts)
    assert sorted(found) == sorted(stored.tobytes())
    assert len({name for name, *_ in asked}) == 2


def test_importing_headspan_imports_no_torch() -> None:
    code = "import sys, headspan; headspan.open; assert 'torch' not in sys.modules; headspan.torch_dataset"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' in sys.modules"], check=True)


@pytest.mark.parametrize(("rows", "unit"), [(1, 1), (3, 2), (257, 64)])
def test_stores_of_awkward_sizes_are_read_one_image_at_a_time(rows: int, unit: int, tmp_path: Path) -> None:
    write_store(tmp_path / "run.zarr", store_size(TOY, rows, unit, 1), ("heads",), np.random.default_rng(0))
    found = list(stream(tmp_path / "run.zarr", batch_size=None))
    assert sorted(sample["image"].item() for sample in found) == list(range(rows))
    assert {tuple(sample["heads"].shape) for sample in found} == {(1, 3, 16)}
