"""Mean ablation of sets of heads, of MLPs and of layers that are not stored, against the oracle's contributions."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import headspan as hs
from headspan.errors import SettingsError, StoreError
from headspan.model.load import LoadedModel
from headspan.prune import direct_effect, mean_ablated
from headspan.prune.direct import head_changes
from headspan.store.head_space import Head, stored_heads
from tests.conftest import BROKEN_ROWS, ToyRun, encoded_image, relative_files, write_tar
from tests.oracle import Contributions, decompose
from tests.tolerances import FLOAT16_STORE, FLOAT32_SUM, relative_error

IMAGES = 9
SETS: list[list[Head]] = [[(2, 1)], [], [(2, 0), (2, 2)], [(2, 1), (2, 0), (2, 1)], [(2, 2), (2, 1), (2, 0)]]
ALL_SETS: list[list[Head]] = [*SETS, [(0, 1), (2, 0)], [(layer, head) for layer in range(3) for head in range(3)]]


@dataclass(frozen=True)
class Made:
    """Stores of the same images, and their contributions by the oracle in both conventions, divided by the norm."""

    every: hs.Store
    last: hs.Store
    last_with_mlps: hs.Store
    uniform: list[Contributions]
    per_term: list[Contributions]

    def wanted(
        self, heads: Sequence[Head], stored: Sequence[int], mlps: bool, earlier: bool, convention: str = "uniform"
    ) -> np.ndarray:
        """The unit embeddings with heads, MLPs and the attention of the layers not in `stored` at their means."""
        images = getattr(self, convention)
        found = np.stack([image.total() for image in images])
        gone = {*heads, *((layer, head) for layer in range(3) for head in range(3) if earlier and layer not in stored)}
        terms = [np.stack([image.heads[head] for image in images]) for head in gone]
        if mlps:
            terms.append(np.stack([image.mlps.sum(axis=0) for image in images]))
        for term in terms:
            found -= term - term.mean(axis=0)
        return found


@pytest.fixture(scope="module")
def made(toy_config: Path, toy_weights: Path, toy_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("direct")
    shard = write_tar(folder / "0.tar", [(f"{row}.jpg", encoded_image(row)) for row in range(IMAGES)])
    settings: dict[str, Any] = {"model": str(toy_config), "pretrained": str(toy_weights), "device": "cpu"}
    stores: list[hs.Store] = []
    for layers, emit in (("all", ("heads",)), ("last1", ("heads",)), ("last1", ("heads", "mlps"))):
        path = folder / f"{len(stores)}.zarr"
        hs.precompute(str(shard), path, **settings, decode="exact", batch_size=4, layers=layers, emit=emit)
        stores.append(hs.open(path))
    visual = toy_model.clip.visual
    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    images = []
    for row in range(IMAGES):
        with Image.open(io.BytesIO(encoded_image(row))) as image:
            images.append(
                decompose(
                    {name: tensor.numpy() for name, tensor in visual.state_dict().items()},
                    heads=3,
                    patch_size=8,
                    activation="gelu",
                    pool="tok",
                    final_ln_after_pool=False,
                    pixels=transform(image).numpy(),
                )
            )
    uniform = [image.contributions("uniform", normalised=True) for image in images]
    per_term = [image.contributions("per_term", normalised=True) for image in images]
    every, last, last_with_mlps = stores
    return Made(every, last, last_with_mlps, uniform, per_term)


def error(found: np.ndarray, wanted: np.ndarray, whole: np.ndarray) -> float:
    """The relative error of what ablation moved."""
    return relative_error(found - whole, wanted - whole)


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", ["every", "last", "last_with_mlps"])
def test_direct_effects_are_those_of_the_oracles_contributions(
    name: str, mlps: bool, earlier: bool, made: Made
) -> None:
    store: hs.Store = getattr(made, name)
    if name == "last" and mlps != earlier:
        with pytest.raises(SettingsError, match=r"layers 2 of 3 and no mlps, so .* precompute with --emit heads,mlps"):
            direct_effect(store, SETS, mlps=mlps, earlier=earlier)
        return
    sets = ALL_SETS if name == "every" else SETS
    whole = np.stack([image.total() for image in made.uniform])
    found = list(direct_effect(store, sets, mlps=mlps, earlier=earlier))
    assert len(found) == len(sets)
    for heads, embeddings in zip(sets, found, strict=True):
        wanted = made.wanted(heads, store.layers, mlps, earlier)
        assert embeddings.dtype == np.float32
        if relative_error(wanted, whole) < 1e-12:
            assert relative_error(embeddings, whole) < FLOAT32_SUM
        else:
            assert error(embeddings, wanted, whole) < FLOAT16_STORE
        np.testing.assert_array_equal(mean_ablated(store, heads, mlps=mlps, earlier=earlier), embeddings)


def test_conventions_agree_on_the_ablation_of_everything_and_nearly_on_that_of_a_head(made: Made) -> None:
    # A head's part of the image's mean and of the biases varies with the image's `1/s`, so the parts are not equal.
    uniform, per_term = (made.wanted([(2, 1)], (0, 1, 2), False, False, name) for name in ("uniform", "per_term"))
    whole = np.stack([image.total() for image in made.uniform])
    assert 1e-6 < error(per_term, uniform, whole) < 0.2
    everything = made.wanted(ALL_SETS[-1], (0, 1, 2), True, False)
    assert relative_error(everything, np.tile(whole.mean(axis=0), (IMAGES, 1))) < FLOAT32_SUM


@pytest.mark.parametrize("block_rows", [1, 3, 257])
def test_results_depend_neither_on_blocks_nor_on_how_many_sets_are_computed_together(
    block_rows: int, toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(direct_effect(toy_store, ALL_SETS))
    monkeypatch.setattr(head_changes, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(head_changes, "_TOGETHER_BYTES", 1)
    for found, each in zip(direct_effect(toy_store, ALL_SETS), wanted, strict=True):
        assert relative_error(found, each) < FLOAT32_SUM


def test_sets_share_one_reading_of_each_head(toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = head_changes.picked_rows

    def counted(contents: Any, name: str, rows: Any, chosen: Any, dtype: Any) -> np.ndarray:
        read.append(len(rows) * len(chosen[0]) * len(chosen[1]))
        return plain(contents, name, rows, chosen, dtype)

    monkeypatch.setattr(head_changes, "picked_rows", counted)
    list(direct_effect(toy_store, ALL_SETS))
    assert sum(read) == toy_store.images * 9


@pytest.mark.parametrize("images", [[4], [60, 2, 2, 31], np.arange(67) % 5 == 1])
@pytest.mark.parametrize("earlier", [False, True])
def test_some_images_have_the_numbers_that_they_have_among_all(images: Any, earlier: bool, toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    flags = {"mlps": earlier, "earlier": earlier}
    whole = mean_ablated(store, [(1, 1), (2, 0)], **flags)
    found = mean_ablated(store, [(1, 1), (2, 0)], images, **flags)
    chosen = np.flatnonzero(images) if isinstance(images, np.ndarray) else sorted(set(images))
    assert relative_error(found, whole[chosen]) < FLOAT32_SUM


def test_failed_images_stay_nan_and_change_no_mean(toy_run: ToyRun) -> None:
    shown, every = hs.open(toy_run.path), hs.open(toy_run.path, include_failed=True)
    for flags in ({}, {"mlps": True}, {"mlps": True, "earlier": True}):
        found = mean_ablated(every, [(1, 1)], **flags)
        assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == list(BROKEN_ROWS)
        assert relative_error(found[shown.rows], mean_ablated(shown, [(1, 1)], **flags)) < FLOAT32_SUM


def test_mlps_of_a_store_that_holds_them_are_the_rest_of_its_heads(made: Made) -> None:
    # The store of all layers holds no mlps; there, everything that is not a head is the rest.
    both = [mean_ablated(store, [], mlps=True, earlier=False) for store in (made.every, made.last_with_mlps)]
    whole = mean_ablated(made.every, [])
    assert error(both[0], both[1], whole) < FLOAT16_STORE * 3


def test_heads_and_images_that_do_not_exist_are_refused(toy_store: hs.Store) -> None:
    with pytest.raises(SettingsError, match="head 3 does not exist; a layer's heads are 0 to 2"):
        direct_effect(toy_store, [[(1, 1)], [(1, 3)]])
    with pytest.raises(SettingsError, match="layer 3 is not stored"):
        mean_ablated(toy_store, [(3, 0)])
    with pytest.raises(SettingsError, match="images 67 to 67 do not all exist"):
        mean_ablated(toy_store, [(1, 1)], [67])


def test_ablation_writes_nothing_and_needs_a_finished_unit(toy_copy: Path, tmp_path: Path) -> None:
    before = relative_files(toy_copy)
    list(direct_effect(hs.open(toy_copy), ALL_SETS, mlps=True, earlier=True))
    assert relative_files(toy_copy) == before
    for record in (toy_copy / "records" / "commits").iterdir():
        record.unlink()
    shutil.rmtree(toy_copy / "moments")
    empty = hs.open(toy_copy)
    with pytest.raises(StoreError, match="no unit is finished yet"):
        mean_ablated(empty, [(1, 1)])
    assert mean_ablated(empty, []).shape == (0, empty.joint)
    assert stored_heads(empty)
