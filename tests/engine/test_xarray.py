"""A store as an xarray Dataset: the numbers of the store by name, read only where they are used."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import headspan as hs
from headspan.errors import HeadspanError
from headspan.events import Progress
from headspan.store import contents
from headspan.store.contents import Contents
from tests.conftest import ToyRun, zarr_array


def test_the_dataset_has_the_stores_numbers_under_their_names(toy_store: hs.Store) -> None:
    data = toy_store.to_xarray()
    keys = toy_store.samples()["key"].to_pylist()
    assert data.sizes["image"] == toy_store.images
    assert data["image"].values.tolist() == keys
    assert data["row"].values.tolist() == toy_store.rows.tolist()
    assert data["layer"].values.tolist() == [0, 1, 2]
    assert data["heads"].dims == ("image", "layer", "head", "head_dim")
    np.testing.assert_array_equal(data["heads"].sel(layer=2, head=1), toy_store.head_coordinates(2, 1, np.float16))
    np.testing.assert_array_equal(
        data["patches"].isel(image=[5, 3]).sel(layer=1)[0].transpose("token", "head", "head_dim"),
        toy_store.patch_coordinates(5, 1, np.float16),
    )
    np.testing.assert_array_equal(data["norm"].sel(image=keys[7], statistic="length"), toy_store.norm[7, 2])
    np.testing.assert_array_equal(data["embedding"].isel(image=slice(None, None, -3)), toy_store.embedding[::-3])
    np.testing.assert_array_equal(data["ok"], np.ones(toy_store.images, np.uint8))
    backwards = data["heads"].isel(layer=slice(None, None, -1), image=[2])
    np.testing.assert_array_equal(backwards[0, 0, 1], toy_store.head_coordinates(2, 1, np.float16)[2])
    assert data["embedding"].isel(image=4).values.shape == (toy_store.joint,)
    assert data.attrs["format"] == 1


@pytest.mark.parametrize("block_bytes", [1, 3000, 64 << 20])
def test_any_selection_has_the_numbers_of_the_whole_array(
    block_bytes: int, toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_BLOCK_BYTES", block_bytes)
    data = hs.open(toy_run.path, include_failed=True).to_xarray()["heads"]
    whole = zarr_array(toy_run.path, "heads")[...]
    np.testing.assert_array_equal(data.values, whole)
    picked = data.isel(image=[69, 3, 3, 40], layer=[2, 0], head=-1, head_dim=slice(10, None, -3))
    np.testing.assert_array_equal(picked.values, whole[np.ix_([69, 3, 3, 40], [2, 0], [2], [10, 7, 4, 1])][:, :, 0])
    assert data.isel(image=7, layer=1, head=0, head_dim=-1).values == whole[7, 1, 0, -1]
    np.testing.assert_array_equal(data[::9, 1:, [], 0].values, whole[::9, 1:, [], 0])


def test_only_the_values_that_are_used_are_read(toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    outer = Contents.outer

    def noted(self: Contents, name: str, rows: np.ndarray, *index: Any) -> np.ndarray:
        asked.append((name, len(rows)))
        return outer(self, name, rows, *index)

    monkeypatch.setattr(Contents, "outer", noted)
    chosen = toy_store.to_xarray()["heads"].sel(layer=1).isel(image=slice(2, 5))
    assert asked == []
    assert chosen.values.shape == (3, 3, toy_store.head_dim)
    assert asked == [("heads", 3)]


def sum_of_head(data: xr.DataArray) -> float:
    """The sum of the numbers of one head, in another process."""
    return float(data.sel(layer=2, head=1).astype("float64").sum())


def test_a_dataset_is_pickled_without_its_numbers_and_read_in_another_process(toy_store: hs.Store) -> None:
    data = toy_store.to_xarray()
    data["heads"].isel(image=0).load()
    # Fewer bytes than the keys, captions and rows would take with the numbers of any array.
    assert len(pickle.dumps(data)) < data["embedding"].nbytes + 5000 < data.nbytes
    wanted = toy_store.head_coordinates(2, 1).astype(np.float64).sum()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(sum_of_head, data["heads"]).result() == pytest.approx(wanted, abs=1e-12)


def test_rows_of_failed_and_unfinished_images_are_nan(toy_run: ToyRun, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "images" and progress.done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hs.precompute(out=tmp_path / "s.zarr", on_progress=interrupt, **toy_run.settings())
    store = hs.open(tmp_path / "s.zarr", include_failed=True)
    assert not store.complete
    found = store.to_xarray()["embedding"].values
    np.testing.assert_array_equal(found, store.embedding)
    assert np.isnan(found).any()


def test_a_store_without_a_finished_unit_and_an_empty_selection_have_no_images(
    toy_store: hs.Store, toy_copy: Path
) -> None:
    assert toy_store.to_xarray()["heads"].isel(image=slice(0, 0)).values.shape == (0, 3, 3, toy_store.head_dim)
    for path in (toy_copy / "records" / "commits").iterdir():
        path.unlink()
    data = hs.open(toy_copy).to_xarray()
    assert data.sizes["image"] == 0
    assert data["embedding"].values.shape == (0, toy_store.joint)
    assert np.isnan(hs.open(toy_copy, include_failed=True).to_xarray()["norm"].values).all()


def test_without_xarray_the_error_names_the_extra(toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(HeadspanError, match=r"to_xarray needs xarray, .*; pip install 'headspan\[xarray\]'"):
        toy_store.to_xarray()
