"""Magnitudes of heads against dense contributions, and the moments of embeddings in stores of every age."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

import headspan as hs
from headspan.cli.magnitudes import share_in_percent, variance_in_words
from headspan.cli.main import main
from headspan.decompose.moments import Moments
from headspan.errors import SettingsError, StoreError
from headspan.events import Progress
from headspan.model.load import load_model
from headspan.run.repair import repair
from headspan.run.verify import verify
from headspan.store import magnitudes
from headspan.store.contents import Contents
from headspan.store.magnitudes import Magnitudes
from headspan.store.moments_file import EmbeddingMoments, MergedMoments, pack, unpack
from tests import tolerances
from tests.conftest import TOY, ToyRun, encoded_image, randomise, relative_files, write_tar, zarr_array
from tests.oracle import Pool, decompose
from tests.tolerances import relative_error

COMMITS = Path("records") / "commits"
DATA = Path(__file__).resolve().parents[1] / "data"
EMBEDDING_FILES = ("moments/embedding_sum/c/0", "moments/embedding_gram/c/0/0")


def dense_magnitudes(heads: np.ndarray, embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """The shares of `heads` `[image, layer, head, joint]` in the unit `embeddings`, from dense contributions."""
    heads, embeddings = heads.astype(np.float64), embeddings.astype(np.float64)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    variance = (centred**2).sum(axis=1).mean()
    return {
        "variance_share": ((heads - heads.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0) / variance,
        "squared_length_share": (heads**2).sum(axis=-1).mean(axis=0),
        "covariance_share": (heads * centred[:, None, None]).sum(axis=-1).mean(axis=0) / variance,
    }


def largest_error(found: Magnitudes, wanted: dict[str, np.ndarray]) -> float:
    return max(relative_error(getattr(found, name), values) for name, values in wanted.items())


# The final norm comes before or after mean pooling; a class token is pooled in one way only.
@pytest.mark.parametrize(("pool", "norm_after"), [("tok", False), ("avg", False), ("avg", True)])
def test_magnitudes_are_those_of_the_oracles_contributions(pool: Pool, norm_after: bool, tmp_path: Path) -> None:
    vision = {**TOY["vision_cfg"], "pool_type": pool, "final_ln_after_pool": norm_after}
    config, weights = tmp_path / f"toy-{pool}-{norm_after}.json", tmp_path / "toy.safetensors"
    config.write_text(json.dumps({**TOY, "vision_cfg": vision}))
    visual = (clip := load_model(str(config), "random:0").clip).visual
    randomise(visual, 5)
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, weights)
    shard = write_tar(tmp_path / "0.tar", [(f"{row}.jpg", encoded_image(row)) for row in range(9)])
    made = {"model": str(config), "pretrained": str(weights), "device": "cpu", "decode": "exact", "batch_size": 4}
    hs.precompute(str(shard), tmp_path / "s.zarr", layers="all", **made)

    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    images = []
    for row in range(9):
        with Image.open(io.BytesIO(encoded_image(row))) as image:
            images.append(
                decompose(
                    {name: tensor.numpy() for name, tensor in visual.state_dict().items()},
                    heads=3,
                    patch_size=8,
                    activation="gelu",
                    pool=pool,
                    final_ln_after_pool=norm_after,
                    pixels=transform(image).numpy(),
                )
            )
    heads = np.stack([image.contributions("uniform", normalised=True).heads for image in images])
    wanted = dense_magnitudes(heads, np.stack([image.embedding for image in images]))
    store = hs.open(tmp_path / "s.zarr")
    found = store.magnitudes(covariance=True)
    assert (found.layers, found.images, found.term_covariance_share) == ((0, 1, 2), 9, None)
    # From the float32 numbers, before they are rounded for storage.
    exact = {name: wanted[name] for name in ("variance_share", "squared_length_share")}
    assert largest_error(store.magnitudes(), exact) < tolerances.SQUARES_FLOAT32
    assert largest_error(found, wanted) < tolerances.FLOAT16_STORE


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_magnitudes_are_those_of_the_stores_contributions_at_every_precision(
    precision: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(precision=precision))
    store = hs.open(tmp_path / "s.zarr")
    assert store.attributes["precision"] == precision
    found = store.magnitudes(covariance=True)
    assert found.images == store.images == 67
    # A rounding of 2⁻¹¹ in each of two factors.
    assert largest_error(found, dense_magnitudes(store.heads(), store.embedding)) < 2 * tolerances.FLOAT16_STORE
    assert found.covariance_share is not None
    assert found.term_covariance_share is not None
    total = found.covariance_share.sum() + found.term_covariance_share.sum()
    assert abs(total - 1) < 10 * tolerances.FLOAT16_STORE


def test_covariance_shares_of_all_components_are_dense_ones_and_sum_to_1(
    toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toy_store.magnitudes(covariance=True)
    unit = toy_store.embedding.astype(np.float64) / np.linalg.norm(toy_store.embedding, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    terms = (toy_store.mlps() * centred[:, None]).sum(axis=-1).mean(axis=0) / (centred**2).sum(axis=-1).mean()
    assert whole.term_covariance_share is not None
    assert whole.covariance_share is not None
    assert relative_error(whole.term_covariance_share, terms) < tolerances.FLOAT32_SUM
    assert abs(whole.covariance_share.sum() + terms.sum() - 1) < tolerances.FLOAT16_STORE
    # Variance shares have no such sum.
    assert abs(whole.variance_share.sum() - 1) > 0.01
    # In blocks of few rows, none of which is a whole number of batches or units.
    monkeypatch.setattr(magnitudes, "_BLOCK_ROWS", 13)
    monkeypatch.setattr(magnitudes, "_TERMS_BYTES", 4 * 4 * 24 * 3)
    blocks = toy_store.magnitudes(covariance=True)
    assert relative_error(blocks.covariance_share, whole.covariance_share) < tolerances.FLOAT32_SUM
    assert relative_error(blocks.term_covariance_share, terms) < tolerances.FLOAT32_SUM


def test_the_moments_of_embeddings_are_those_of_the_stored_embeddings(toy_run: ToyRun) -> None:
    # Bad images are NaN rows here, and count in neither.
    for store in (hs.open(toy_run.path), hs.open(toy_run.path, include_failed=True)):
        found = store.embedding_moments()
        good = np.isfinite(store.norm[:, 2])
        unit = store.embedding[good].astype(np.float64) / store.norm[good, 2:]
        assert found.count == len(unit) == 67
        assert relative_error(found.total, unit.sum(axis=0)) < tolerances.FLOAT64
        assert relative_error(found.gram, unit.T @ unit) < tolerances.FLOAT64
        assert abs(found.variance - unit.var(axis=0).sum()) < tolerances.FLOAT64
        assert abs(found.squared_length - 1) < tolerances.FLOAT32_SUM
    for name, values in (("sum", found.total), ("gram", found.gram)):
        stored = zarr_array(toy_run.path, f"moments/embedding_{name}")
        assert stored.dtype == np.float64
        np.testing.assert_array_equal(stored[...], values)


def test_images_that_are_not_good_add_nothing_to_the_moments_of_embeddings() -> None:
    random = np.random.default_rng(0)
    embedding = random.standard_normal((5, 7)).astype(np.float32)
    norm = np.abs(random.standard_normal((5, 3))).astype(np.float32)
    norm[:, 2] = np.linalg.norm(embedding, axis=1)
    embedding[1], embedding[3], norm[1] = np.nan, np.inf, np.nan
    good = np.array([True, False, True, False, True])
    moments = Moments.zeros(1, 1, 2, torch.device("cpu"), joint=7)
    for part in (slice(0, 2), slice(2, 5)):
        arrays = [torch.from_numpy(array[part]) for array in (norm, good, embedding)]
        moments.add(torch.zeros(len(arrays[0]), 1, 1, 2), *arrays)
    unit = embedding[good].astype(np.float64) / norm[good, 2:]
    found = moments.embedding_arrays()
    assert found is not None
    assert relative_error(found[0], unit.sum(axis=0)) < tolerances.FLOAT64
    assert relative_error(found[1], unit.T @ unit) < tolerances.FLOAT64
    assert Moments.zeros(1, 1, 2, torch.device("cpu")).embedding_arrays() is None


def test_a_single_image_has_squared_lengths_but_no_variance(toy_run: ToyRun, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", [("a.jpg", encoded_image(1))])
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=str(shard)))
    store = hs.open(tmp_path / "s.zarr")
    found = store.magnitudes(covariance=True)
    assert found.images == 1
    assert np.isnan(found.variance_share).all()
    assert found.covariance_share is not None
    assert np.isnan(found.covariance_share).all()
    wanted = (store.heads()[0].astype(np.float64) ** 2).sum(axis=-1)
    assert relative_error(found.squared_length_share, wanted) < 2 * tolerances.FLOAT16_STORE
    assert variance_in_words(found, 0, 0) == "- of the variance"


def without_embedding_moments(store: Path) -> Path:
    """Make the store one of an earlier version: no arrays, no metadata, and no moments of embeddings in any file."""
    for name in ("embedding_sum", "embedding_gram"):
        shutil.rmtree(store / "moments" / name)
    for name in ("complete.json", "planned.json"):
        if (path := store / COMMITS / name).exists():
            files = json.loads(path.read_text())
            kept = {file: found for file, found in files.items() if not file.startswith("moments/embedding_")}
            path.write_text(json.dumps(kept))
    for path in (store / COMMITS).glob("*.moments"):
        path.write_bytes(pack(replace(unpack(path.read_bytes(), path.name), embedding=None)))
    return store


def test_a_store_without_moments_of_embeddings_computes_them_once_and_writes_nothing(
    toy_store: hs.Store, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = relative_files(without_embedding_moments(toy_copy))
    monkeypatch.setattr(magnitudes, "_BLOCK_ROWS", 7)
    store = hs.open(toy_copy)
    assert store.moments().embedding is None
    found, wanted = store.embedding_moments(), toy_store.embedding_moments()
    assert found.count == wanted.count
    assert relative_error(found.total, wanted.total) < tolerances.FLOAT64
    assert relative_error(found.gram, wanted.gram) < tolerances.FLOAT64

    def refuse(self: Contents, *arguments: Any) -> np.ndarray:
        raise AssertionError("the embeddings are read again")

    monkeypatch.setattr(Contents, "outer", refuse)
    assert store.embedding_moments() is found
    again = store.magnitudes()
    assert relative_error(again.variance_share, toy_store.magnitudes().variance_share) < tolerances.FLOAT64
    assert relative_files(toy_copy) == before


class Stop(BaseException):
    """Ends a run as a kill would."""


def stopped(path: Path, toy_run: ToyRun, units: int) -> Path:
    """The toy store before its first unit of three is committed, or soon after."""

    def stop(event: Progress) -> None:
        if event.stage == "planned" if units == 0 else list((path / COMMITS).glob("unit-*.json")):
            raise Stop

    with pytest.raises(Stop):
        hs.precompute(out=path, on_progress=stop, **toy_run.settings())
    found = len(list((path / COMMITS).glob("unit-*.json")))
    assert found == 0 if units == 0 else 0 < found < 3
    return path


@pytest.fixture
def begun(toy_run: ToyRun, tmp_path: Path) -> Path:
    """The toy store after the commit of its first unit of three."""
    return stopped(tmp_path / "begun.zarr", toy_run, 1)


def test_a_resumed_run_gives_the_moments_of_an_uninterrupted_one(toy_run: ToyRun, begun: Path) -> None:
    store = hs.open(begun)
    assert not store.complete
    unit = store.embedding.astype(np.float64) / store.norm[:, 2:]
    assert relative_error(store.embedding_moments().gram, unit.T @ unit) < tolerances.FLOAT64
    heads = dense_magnitudes(store.heads(), store.embedding)
    assert largest_error(store.magnitudes(covariance=True), heads) < 2 * tolerances.FLOAT16_STORE
    hs.precompute(out=begun, **toy_run.settings())
    found, wanted = relative_files(begun), relative_files(toy_run.path)
    assert all(found[name] == wanted[name] for name in EMBEDDING_FILES)


@pytest.mark.parametrize("units", [0, 1])
def test_a_run_of_an_earlier_version_is_finished_without_moments_of_embeddings(
    units: int, toy_run: ToyRun, tmp_path: Path, toy_store: hs.Store
) -> None:
    begun = stopped(tmp_path / "begun.zarr", toy_run, units)
    hs.precompute(out=without_embedding_moments(begun), **toy_run.settings())
    assert sorted(path.name for path in (begun / "moments").iterdir()) == ["count", "gram", "sum", "zarr.json"]
    (group,) = (begun / COMMITS).glob("group-*.moments")
    assert unpack(group.read_bytes(), group.name).embedding is None
    store = hs.open(begun)
    assert store.complete
    assert verify(hs.open(begun, include_failed=True)).problems == ()
    assert relative_error(store.magnitudes().variance_share, toy_store.magnitudes().variance_share) < tolerances.FLOAT64
    # All other files are those that this version would have written.
    wanted = relative_files(toy_run.path)
    own = (*EMBEDDING_FILES, *(f"moments/embedding_{name}/zarr.json" for name in ("sum", "gram")))
    differing = {name for name, data in relative_files(begun).items() if wanted.get(name) != data}
    assert {*wanted} - {*relative_files(begun)} == {*own}
    # Only the lists of files, the group's moments, and what names the folder differ.
    allowed = {"zarr.json", "records/root.json", *(str(COMMITS / f"{name}.json") for name in ("planned", "complete"))}
    assert differing <= {*allowed, str(group.relative_to(begun))}


def test_units_that_an_earlier_version_computed_leave_the_arrays_unwritten(toy_run: ToyRun, begun: Path) -> None:
    (first, *_) = sorted((begun / COMMITS).glob("unit-*.moments"))
    first.write_bytes(pack(replace(unpack(first.read_bytes(), first.name), embedding=None)))
    # As of a finished store that lost its mark.
    for name in EMBEDDING_FILES:
        (begun / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / name).write_bytes(b"stale")
    hs.precompute(out=begun, **toy_run.settings())
    assert not any((begun / name).exists() for name in EMBEDDING_FILES)
    store = hs.open(begun)
    assert store.complete
    assert verify(hs.open(begun, include_failed=True)).problems == ()
    unit = store.embedding.astype(np.float64) / store.norm[:, 2:]
    assert relative_error(store.embedding_moments().gram, unit.T @ unit) < tolerances.FLOAT64


@pytest.mark.parametrize("name", ["format-1.zarr", "whole.zarr", "begun.zarr", "pooled.zarr"])
def test_stores_of_every_version_have_magnitudes_before_and_after_they_are_finished(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = "format-1.zip" if name == "format-1.zarr" else "commit-78a7b61.zip"
    with zipfile.ZipFile(DATA / archive) as files:
        files.extractall(tmp_path)
    for shard in tmp_path.glob("*.tar"):
        os.utime(shard, (1_700_000_000, 1_700_000_000))
    monkeypatch.chdir(tmp_path)
    before = relative_files(tmp_path / name)
    for finished in (False, True):
        store = hs.open(name)
        found = store.magnitudes(covariance=True)
        assert found.images == store.images > 2
        assert largest_error(found, dense_magnitudes(store.heads(), store.embedding)) < 2 * tolerances.FLOAT16_STORE
        if not finished:
            assert relative_files(tmp_path / name) == before
            repair(name, batch_size=2)
        if name == "begun.zarr" and not finished:
            model = {"model": "headspan-tiny-2.json", "pretrained": "random:0"}
            hs.precompute(["0.tar", "1.tar"], name, layers="all", emit="heads", device="cpu", batch_size=2, **model)
    assert hs.open(name).complete
    assert not Path(name, "moments", "embedding_gram").exists()
    assert verify(hs.open(name, include_failed=True)).problems == ()


def rewritten(store: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change an array of merged moments, and its checksum in the records, as a mistake in adding them would."""
    import google_crc32c
    import zarr

    array = zarr.open_group(store, mode="r+")[f"moments/{name}"]
    values = np.asarray(array[...])  # type: ignore[index]
    change(values)
    array[...] = values  # type: ignore[index]
    complete = store / COMMITS / "complete.json"
    files = json.loads(complete.read_text())
    for file in files:
        data = (store / file).read_bytes()
        files[file] = [len(data), google_crc32c.value(data)]
    complete.write_text(json.dumps(files))


def test_verify_compares_the_moments_of_embeddings_with_the_embeddings(toy_copy: Path) -> None:
    def shift(values: np.ndarray) -> None:
        values[3] += 1

    def scale(values: np.ndarray) -> None:
        values *= 1.001

    what = "the moments differ from those of the unit embeddings by more than rounding explains"
    for name, change in (("embedding_sum", shift), ("embedding_gram", scale)):
        changed = Path(shutil.copytree(toy_copy, toy_copy.with_name(f"{name}.zarr")))
        rewritten(changed, name, change)
        assert [problem.what for problem in verify(hs.open(changed, include_failed=True)).problems] == [what]
    rewritten(toy_copy, "embedding_sum", lambda values: None)
    assert verify(hs.open(toy_copy, include_failed=True)).problems == ()


@pytest.mark.parametrize("name", [*EMBEDDING_FILES, "moments/embedding_sum/zarr.json"])
def test_damaged_moments_of_embeddings_are_restored_to_the_same_bytes(
    name: str, toy_run: ToyRun, toy_copy: Path
) -> None:
    before = relative_files(toy_copy)
    (toy_copy / name).write_bytes(b"damaged")
    done = repair(toy_copy, batch_size=7)
    assert (done.units, done.verdict.problems) == ((), ())
    assert relative_files(toy_copy) == before


def test_a_file_of_moments_keeps_all_numbers_with_and_without_those_of_embeddings() -> None:
    random = np.random.default_rng(1)
    rows, units = random.standard_normal((257, 2, 3, 5)), random.standard_normal((257, 11))
    gram = np.einsum("ilhc,ilhd->lhcd", rows, rows)
    bare = MergedMoments(257, rows.sum(axis=0), gram)
    whole = replace(bare, embedding=EmbeddingMoments(257, units.sum(axis=0), units.T @ units))
    for moments in (bare, whole):
        found = unpack(pack(moments), "a file")
        np.testing.assert_array_equal(found.total, moments.total)
        np.testing.assert_allclose(found.gram, moments.gram, rtol=tolerances.FLOAT64)
        assert (found.embedding is None) == (moments.embedding is None)
        # It identifies the images for runs of every version.
        assert moments.sha256 == bare.sha256
    assert whole.embedding is not None
    assert found.embedding is not None
    assert found.embedding.count == 257
    np.testing.assert_array_equal(found.embedding.total, whole.embedding.total)
    np.testing.assert_allclose(found.embedding.gram, whole.embedding.gram, rtol=tolerances.FLOAT64)
    assert (whole + bare).embedding is None
    doubled = (whole + whole).embedding
    assert doubled is not None
    assert doubled.count == 514
    np.testing.assert_array_equal(doubled.gram, 2 * whole.embedding.gram)


def test_magnitudes_are_found_by_head_and_layer_and_as_a_frame(toy_store: hs.Store) -> None:
    found = toy_store.magnitudes()
    assert repr(found) == "Magnitudes(9 heads of layers 0-2, 67 images)"
    assert found.of(1, 2) == (found.variance_share[1, 2], found.squared_length_share[1, 2])
    for place, (layer, sums) in enumerate(found.by_layer().items()):
        assert layer == place
        assert sums == pytest.approx([sum(found.of(layer, head)[kind] for head in range(3)) for kind in range(2)])
    with pytest.raises(SettingsError, match="head 3 of layer 1 is not stored; stored are layers 0-2 with heads 0 to 2"):
        found.of(1, 3)
    with pytest.raises(SettingsError, match="head 0 of layer -1 is not stored"):
        found.of(-1, 0)
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "head", "variance_share", "squared_length_share"]
    row = frame[(frame["layer"] == 1) & (frame["head"] == 2)]
    assert isinstance(row, pd.DataFrame)
    assert row["variance_share"].item() == found.of(1, 2)[0]
    assert "covariance_share" in toy_store.magnitudes(covariance=True).to_frame().columns


def test_info_prints_the_magnitude_of_every_layer_and_head(
    toy_run: ToyRun, toy_store: hs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(toy_run.path), "--heads"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("  ")[0].strip(): line.split("  ", 1)[1].split(" %") for line in lines if " %" in line[:40]}
    found = toy_store.magnitudes()
    assert len(cells) == 3 + 9
    for name, (variance, squared_length, _) in cells.items():
        layer, _, head = name.removeprefix("L").partition(".H")
        wanted = found.of(int(layer), int(head)) if head else found.by_layer()[int(layer)]
        assert [float(variance), float(squared_length)] == [round(100 * share, 2) for share in wanted], name
    assert "need not sum to 100 %" in lines[-1]


def test_shares_are_printed_as_percentages() -> None:
    shares = (0.0, 1e-6, 0.00123, 0.25, 1.5, math.nan)
    assert list(map(share_in_percent, shares)) == ["0.00 %", "< 0.01 %", "0.12 %", "25.00 %", "150.00 %", "-"]


def test_a_store_without_a_finished_unit_has_no_magnitudes(toy_run: ToyRun, tmp_path: Path) -> None:
    stopped(tmp_path / "s.zarr", toy_run, 0)
    with pytest.raises(StoreError, match="no unit is finished yet"):
        hs.open(tmp_path / "s.zarr").magnitudes()


def test_a_store_whose_images_are_all_equal_has_no_variance(toy_run: ToyRun, tmp_path: Path) -> None:
    image = encoded_image(4)
    shard = write_tar(tmp_path / "0.tar", [(f"{row}.jpg", image) for row in range(3)])
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=str(shard), batch_size=3))
    assert np.isnan(hs.open(tmp_path / "s.zarr").magnitudes().variance_share).all()
