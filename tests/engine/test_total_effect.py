"""The total effect over a store's images, and stores of a model without some heads, agree with pruned towers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import headspan as hs
from headspan.cli.main import main
from headspan.errors import HeadspanError, ModelError, SettingsError, SourceError, StoreError
from headspan.events import Progress
from headspan.explore.query.query_image import query_image
from headspan.head_names import Head, parse_heads
from headspan.io.locks import LockedLog
from headspan.model.convert import to_tower
from headspan.model.load import LoadedModel
from headspan.model.variants import embeddings_of_variants
from headspan.prune import total_effect
from headspan.run.repair import repair
from headspan.run.verify import verify
from tests.conftest import BROKEN_ROWS, TOY, ToyRun, image_members, relative_files, write_tar
from tests.engine.test_kept_runs import read_only
from tests.tolerances import FLOAT16_PASS, FLOAT32_SUM, ORACLE_FLOAT32, relative_error
from tests.warm_python import FORKED

# Forked children compute with one thread. With another number of threads, the last bits of sums differ.
pytestmark = pytest.mark.usefixtures("one_thread")
SETS: list[list[Head]] = [[], [(0, 1)], [(2, 0), (1, 2)], [(2, 0), (2, 1), (2, 2)], [(1, 2), (2, 0), (2, 0)]]


@pytest.fixture(scope="module")
def effect(toy_store: hs.Store) -> np.ndarray:
    return total_effect(toy_store, SETS)


def test_each_set_gives_the_embeddings_of_a_pruned_model_over_the_stores_images(
    effect: np.ndarray, toy_store: hs.Store, toy_run: ToyRun, toy_model: LoadedModel
) -> None:
    assert effect.shape == (5, 70 - len(BROKEN_ROWS), 24)
    assert effect.dtype == np.float32
    assert relative_error(effect[0], toy_store.embedding) < FLOAT32_SUM
    np.testing.assert_array_equal(effect[2], effect[4])
    # With open_clip's own transform and no store.
    wanted = embeddings_of_variants(to_tower(toy_model.clip.visual, "toy"), pixels_of(toy_run, toy_model), SETS)
    assert relative_error(effect, wanted) < ORACLE_FLOAT32
    for number in (1, 2, 3):
        assert relative_error(effect[number], effect[0]) > 1e-2


def pixels_of(run: ToyRun, model: LoadedModel) -> torch.Tensor:
    """The good images, read by tarfile and PIL, as open_clip's transform makes them the model's input."""
    transform, found = image_transform_v2(PreprocessCfg(**model.clip.visual.preprocess_cfg), is_train=False), []
    for shard in run.shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                if extension != "txt" and int(key) not in BROKEN_ROWS:
                    with Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                        found.append(transform(image))
    return torch.stack(found)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_store_made_without_heads_holds_the_total_effect_of_these_heads(
    decode: str, toy_run: ToyRun, toy_store: hs.Store, effect: np.ndarray, tmp_path: Path
) -> None:
    settings = toy_run.settings(emit=("heads", "mlps"), decode=decode)
    whole = hs.open(hs.precompute(out=tmp_path / "whole.zarr", **settings).path)
    hs.precompute(out=tmp_path / "without.zarr", without="L2.H0,L1.H2", **settings)
    store = hs.open(tmp_path / "without.zarr")
    assert store.attributes["without"] == ["L1.H2", "L2.H0"]
    found = total_effect(whole, SETS)
    assert relative_error(store.embedding, found[2]) < FLOAT32_SUM
    np.testing.assert_array_equal(whole.embedding, found[0])
    # The store's model lacks its heads in every set.
    both = total_effect(store, [[], [(0, 1)]])
    np.testing.assert_array_equal(both[0], store.embedding)
    assert relative_error(both[1], total_effect(whole, [[(0, 1), (1, 2), (2, 0)]])[0]) < FLOAT32_SUM
    assert verify(store).problems == ()
    # Heads that write nothing contribute their shares of the means and biases only.
    assert not store.head(2, 0, convention="per_term").any()
    assert store.head(2, 1, convention="per_term").all()
    assert store.heads(convention="per_term").sum(axis=(1, 2)).shape == (67, 24)
    total = store.heads(convention="per_term").sum(axis=(1, 2)) + store.mlps("per_term").sum(axis=1)
    total += store.biases().sum(axis=1)
    assert relative_error(total, store.embedding / store.norm[:, 2:]) < FLOAT16_PASS
    uniform = store.heads().sum(axis=(1, 2)) + store.mlps().sum(axis=1)
    assert relative_error(uniform, store.embedding / store.norm[:, 2:]) < FLOAT16_PASS


def test_a_run_without_heads_is_resumed_repaired_and_queried_without_them(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "without.zarr"
    run = [(2, 1), (0, 0)]
    hs.precompute(out=out, without=run, **toy_run.settings())
    before = relative_files(out)
    assert hs.precompute(out=out, without="L0.H0, L2.H1", **toy_run.settings()).skipped == 70
    for path in out.glob("embedding/c/*/*"):
        path.unlink()
    assert len(repair(out).units) == 3
    after = relative_files(out)
    assert {name for name in before if before[name] != after.get(name)} == set()
    store = hs.open(out)
    (tmp_path / "one.jpg").write_bytes(image_members([4])[0][1])
    found = query_image(store, tmp_path / "one.jpg")
    assert relative_error(found.embedding, store.embedding[4]) < ORACLE_FLOAT32
    # Another store of the same model, with all heads, does not get this answer from the cache.
    whole = query_image(hs.open(toy_run.path), tmp_path / "one.jpg")
    assert relative_error(whole.embedding, found.embedding) > 1e-2
    assert relative_error(whole.embedding, hs.open(toy_run.path).embedding[4]) < ORACLE_FLOAT32
    assert main(["info", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "without      L0.H0, L2.H1\n" in printed
    assert "--without L0.H0,L2.H1" in printed
    assert main(["info", str(toy_run.path)]) == 0
    assert "without" not in capsys.readouterr().out


def test_analyses_of_a_store_without_heads_go_on_with_the_others(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hs.precompute(out=tmp_path / "without.zarr", without=[(2, 0), (1, 2)], **toy_run.settings())
    store = hs.open(tmp_path / "without.zarr")
    texts = ["a cat", "a dog", "two red cars", "snow", "a road at night", "blue"]
    spans = hs.textspan(store, texts, texts_per_head=3)
    assert (spans.indices[spans.layers.index(2), 1] >= 0).all()
    found = hs.explore.spectra(store, pool=texts, count=2)
    assert len(found.heads) == 7
    assert not {(2, 0), (1, 2)} & set(found.heads)
    assert np.isfinite(found.share).all()
    with pytest.raises(
        SettingsError, match=r"was made without L2\.H0, so its directions are zero; choose another head$"
    ):
        hs.explore.spectra(store, [(2, 1), (2, 0)], pool=texts, count=2)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    flags = ["--texts", str(tmp_path / "texts.txt"), "--texts-per-direction", "2"]
    assert main(["spectra", str(store.path), *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.count("its directions cover") == 7
    assert "nan" not in printed


@pytest.mark.parametrize(
    ("pooling", "heads"),
    [
        ({"pool_type": "avg"}, [(0, 1), (2, 2)]),
        ({"pool_type": "avg", "final_ln_after_pool": True}, [(0, 1), (2, 2)]),
        ({"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 1}, [(0, 1), (3, 3)]),
    ],
)
def test_models_of_other_poolings_are_pruned_over_stores_too(
    pooling: dict[str, Any], heads: list[Head], tmp_path: Path
) -> None:
    config = tmp_path / "headspan-toy-pooled.json"
    config.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], **pooling}}))
    shard = str(write_tar(tmp_path / "a.tar", image_members(range(9))))
    run: dict[str, Any] = {"model": str(config), "pretrained": "random:0", "device": "cpu", "layers": "all"}
    emit = ("heads", "mlps", "through_pool") if "attentional_pool" in pooling else ("heads", "mlps")
    hs.precompute(shard, tmp_path / "whole.zarr", emit=emit, **run)
    hs.precompute(shard, tmp_path / "without.zarr", emit=emit, without=heads, **run)
    whole, without = hs.open(tmp_path / "whole.zarr"), hs.open(tmp_path / "without.zarr")
    found = total_effect(whole, [[], heads])
    assert relative_error(found[0], whole.embedding) < FLOAT32_SUM
    assert relative_error(found[1], without.embedding) < FLOAT32_SUM
    assert relative_error(found[1], found[0]) > 1e-3
    assert verify(without).problems == ()
    if without.through_pool_layers:
        assert not without.through_pool(0, 1).any()
        assert without.through_pool(0, 0).any()


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        ("", "L2.H1", "was made with --without none, but this run asks for L2.H1"),
        ("L2.H1", "", "was made with --without L2.H1, but this run asks for none"),
        ("L2.H1", "L2.H1,L2.H0", "was made with --without L2.H1, but this run asks for L2.H0,L2.H1"),
    ],
)
def test_a_run_that_asks_for_other_heads_is_refused(
    made: str, asked: str, said: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    hs.precompute(out=out, without=made, **toy_run.settings())
    with pytest.raises(StoreError, match=f"{said}; use the same settings to continue, or choose another --out$"):
        hs.precompute(out=out, without=asked, **toy_run.settings())


def test_a_store_of_a_version_that_did_not_know_the_setting_has_all_heads(toy_copy: Path, toy_run: ToyRun) -> None:
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    del metadata["attributes"]["headspan"]["without"]
    (toy_copy / "zarr.json").write_text(json.dumps(metadata, indent=2))
    assert hs.precompute(out=toy_copy, **toy_run.settings()).skipped == 70
    with pytest.raises(StoreError, match=r"was made with --without none, but this run asks for L0\.H0"):
        hs.precompute(out=toy_copy, without="L0.H0", **toy_run.settings())
    assert relative_error(total_effect(hs.open(toy_copy), [[]])[0], hs.open(toy_copy).embedding) < FLOAT32_SUM


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--without", "L9.H0"], "L9.H0 is not a head of the model: it has layers 0 to 2; choose another head"),
        (["--without", "L2.H3"], "L2.H3 is not a head of the model: layer 2 has heads 0 to 2; choose another head"),
        (["--without", "L2H1"], "--without L2H1: L2H1 is no head; write L22.H13, for example"),
        (["--without", "L2.H1,"], "--without L2.H1,: an empty name is no head; write L22.H13, for example"),
    ],
)
def test_flags_that_name_no_head_are_refused_in_one_line(
    given: list[str], said: str, toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["precompute", *map(str, toy_run.shards), "--model", str(toy_run.config), "--layers", "all"]
    out = tmp_path / "run.zarr"
    assert main([*run, "--pretrained", str(toy_run.weights), "--out", str(out), *given]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
    assert not out.exists()


def test_the_flag_may_be_repeated_and_name_several_heads(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["precompute", str(toy_run.shards[0]), "--model", str(toy_run.config), "--pretrained", str(toy_run.weights)]
    flags = ["--without", "L2.H1,L0.H2", "--without", "L0.H0", "--out", str(tmp_path / "run.zarr"), "--layers", "all"]
    assert main([*run, *flags]) == 0
    assert hs.open(tmp_path / "run.zarr").attributes["without"] == ["L0.H0", "L0.H2", "L2.H1"]
    with pytest.raises(SettingsError, match=r"--without \(1, 2, 3\): is no head; give \(layer, head\)"):
        parse_heads([(1, 2, 3)], "--without")  # type: ignore[list-item]


def test_some_images_are_computed_in_the_order_of_the_store(effect: np.ndarray, toy_store: hs.Store) -> None:
    chosen = [66, 3, 30, 31]
    events: list[Progress] = []
    found = total_effect(toy_store, SETS[:3], events.append, images=chosen)
    assert relative_error(found, effect[:3, sorted(chosen)]) < FLOAT32_SUM
    counts = [(event.done, event.total) for event in events if event.stage == "images"]
    assert counts == [(0, 4), (2, 4), (3, 4), (4, 4)]
    mask = np.zeros(67, bool)
    mask[chosen] = True
    np.testing.assert_array_equal(total_effect(toy_store, SETS[:3], images=mask), found)
    assert total_effect(toy_store, [], images=chosen, keep="not made").shape == (0, 4, 24)
    with pytest.raises(StoreError, match=r"toy\.zarr: none of 0 images could be used or is finished$"):
        total_effect(toy_store, SETS, images=[])
    with pytest.raises(SettingsError, match="do not all exist; count from 0 to 66"):
        total_effect(toy_store, SETS, images=[67])


def test_images_that_could_not_be_used_are_nan_rows_if_the_store_shows_them(
    effect: np.ndarray, toy_run: ToyRun
) -> None:
    found = total_effect(hs.open(toy_run.path, include_failed=True), SETS[:2])
    assert found.shape == (2, 70, 24)
    assert np.flatnonzero(np.isnan(found).any(axis=(0, 2))).tolist() == list(BROKEN_ROWS)
    good = [row for row in range(70) if row not in BROKEN_ROWS]
    np.testing.assert_array_equal(found[:, good], effect[:2])


def test_numbers_of_another_batch_size_differ_by_rounding_only(effect: np.ndarray, toy_store: hs.Store) -> None:
    assert relative_error(total_effect(toy_store, SETS, batch_size=64), effect) < FLOAT32_SUM
    with pytest.raises(SettingsError, match="--batch-size 0 is too small"):
        total_effect(toy_store, SETS, batch_size=0)
    with pytest.raises(SettingsError, match="--device tpu: tpu is unknown"):
        total_effect(toy_store, SETS, device="tpu")
    with pytest.raises(SettingsError, match=r"^L3\.H0 is not a head of the model: it has layers 0 to 2"):
        total_effect(toy_store, [[], [(3, 0)]])
    with pytest.raises(ModelError, match="nowhere"):
        total_effect(toy_store, SETS, weights="nowhere")


# Makes a call in one child process after the other. Each kills itself with SIGKILL after so many steps.
_KILLED = """
import os, signal, sys
import headspan as hs
import headspan.model.load, headspan.run.precompute
from headspan.prune import total_effect
from headspan.prune.total.kept_embeddings import KeptEmbeddings
finish, put, left = KeptEmbeddings.finish, KeptEmbeddings.put, [0]
def counted(step):
    def call(self, *given):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *given)
    return call
KeptEmbeddings.finish, KeptEmbeddings.put = counted(finish), counted(put)
for steps in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        left[0] = steps
        total_effect(hs.open(sys.argv[1]), [[], [(0, 1)], [(2, 0), (1, 2)]], keep=sys.argv[2])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_killed_call_continues_to_the_same_bytes(toy_run: ToyRun, tmp_path: Path) -> None:
    store = hs.open(toy_run.path)
    whole = total_effect(store, SETS[:3], keep=tmp_path / "whole")
    assert isinstance(whole, np.memmap)
    assert not whole.flags.writeable
    before = relative_files(toy_run.path)
    # Fourteen steps: eleven batches, and three ends of units.
    command = [sys.executable, "-c", FORKED + _KILLED, str(toy_run.path), str(tmp_path / "kept"), "3", "2", "9"]
    # Forked children do not have the threads of libraries.
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=alone, check=True, capture_output=True, text=True).stdout.split()
    assert ended == [str(-signal.SIGKILL)] * 3
    events: list[Progress] = []
    found = total_effect(store, SETS[:3], events.append, keep=tmp_path / "kept")
    np.testing.assert_array_equal(found, whole)
    done = [event.done for event in events if event.stage == "images"]
    assert done[0] == 31
    assert done[-1] == 67
    names = ("embeddings.npy", "settings.json")
    assert all((tmp_path / "kept" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    # All units are finished, so no shard is needed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headspan.originals.unchanged.UnchangedShards", None)
        np.testing.assert_array_equal(total_effect(store, SETS[:3], keep=tmp_path / "kept"), whole)
    assert relative_files(toy_run.path) == before


def test_embeddings_that_were_damaged_after_they_were_kept_are_computed_again(
    toy_store: hs.Store, tmp_path: Path
) -> None:
    whole = np.array(total_effect(toy_store, SETS[:2], keep=tmp_path / "kept"))
    path = tmp_path / "kept" / "embeddings.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with (tmp_path / "kept" / "units.log").open("a") as log:
        log.write("2")
    events: list[Progress] = []
    np.testing.assert_array_equal(total_effect(toy_store, SETS[:2], events.append, keep=tmp_path / "kept"), whole)
    assert [event.done for event in events if event.stage == "images"] == [62, 67]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sets": [[], [(0, 2)]]}, "sets of heads"),
        ({"images": [3, 4]}, "images"),
        ({"batch_size": 5}, "batch sizes"),
    ],
)
def test_a_folder_of_another_call_is_refused(
    change: dict[str, Any], what: str, toy_store: hs.Store, tmp_path: Path
) -> None:
    total_effect(toy_store, SETS[:2], keep=tmp_path / "kept")
    call: dict[str, Any] = {"sets": SETS[:2], **change}
    said = f"kept: holds the embeddings of a call with other {what}; repeat that call, or name another folder$"
    with pytest.raises(StoreError, match=said):
        total_effect(toy_store, **call, keep=tmp_path / "kept")


def test_a_folder_that_is_not_of_kept_embeddings_is_refused(toy_store: hs.Store, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"holds photo\.jpg and no embeddings of a call; name a new folder$"):
        total_effect(toy_store, SETS, keep=tmp_path)
    with pytest.raises(
        SettingsError, match=r"is in the store, which is not written to; give keep a folder of its own$"
    ):
        total_effect(toy_store, SETS, keep=toy_store.path / "kept")
    with pytest.raises(StoreError, match=r"photo\.jpg.*: cannot be written"):
        total_effect(toy_store, SETS, keep=tmp_path / "photo.jpg")
    kept = tmp_path / "kept"
    total_effect(toy_store, SETS[:1], keep=kept)
    (kept / "settings.json").write_text("{")
    with pytest.raises(StoreError, match=r"settings\.json: cannot be read \(.*\); delete the folder to begin again$"):
        total_effect(toy_store, SETS[:1], keep=kept)


def test_a_second_process_waits_for_the_first_and_uses_what_it_kept(toy_store: hs.Store, tmp_path: Path) -> None:
    whole = total_effect(toy_store, SETS[:1], keep=tmp_path / "kept")
    log = LockedLog(tmp_path / "kept" / "units.log")
    log.open()
    events: list[Progress] = []
    waited = threading.Event()

    def note(event: Progress) -> None:
        events.append(event)
        if "waiting for it to end" in event.note:
            waited.set()

    def release() -> None:
        assert waited.wait(30)
        log.close(delete=False)

    thread = threading.Thread(target=release)
    thread.start()
    np.testing.assert_array_equal(total_effect(toy_store, SETS[:1], note, keep=tmp_path / "kept"), whole)
    thread.join()
    assert waited.is_set()
    assert not [event for event in events if event.stage == "images"]


@pytest.fixture
def moved(toy_run: ToyRun, tmp_path: Path) -> hs.Store:
    """A store beside its shards, which have the same bytes and other times of modification."""
    shards = [shutil.copy2(shard, tmp_path) for shard in toy_run.shards]
    hs.precompute(out=tmp_path / "run.zarr", **{**toy_run.settings(emit=("heads",)), "shards": list(map(str, shards))})
    for shard in shards:
        os.utime(shard, (1, 1))
    return hs.open(tmp_path / "run.zarr")


def test_shards_with_other_times_are_used_if_their_images_have_not_changed(moved: hs.Store) -> None:
    np.testing.assert_array_equal(total_effect(moved, [[]])[0], moved.embedding)
    assert relative_error(total_effect(moved, [[]], images=[40])[0], moved.embedding[[40]]) < FLOAT32_SUM


def test_shards_that_have_changed_are_refused(moved: hs.Store) -> None:
    shard = moved.path.parent / "000.tar"
    data = bytearray(shard.read_bytes())
    offset = int(moved.samples([7])["offset"].to_pylist()[0])
    data[offset + 300] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        SourceError, match=r"the images in .*000\.tar.* have changed since the unit was computed; restore the shards$"
    ):
        total_effect(moved, [[]])
    # The images of the last unit are in another shard.
    assert total_effect(moved, [[]], images=[66]).shape == (1, 1, 24)
    data[offset + 300] ^= 1
    shard.write_bytes(data[:-512])
    with pytest.raises(SourceError, match=r"000\.tar: has changed since precompute read it; restore the shard$"):
        total_effect(moved, [[]])
    shard.unlink()
    with pytest.raises(SourceError, match=r"1 of 3 shards was not found: .*; say with shards= where all of them are$"):
        total_effect(moved, [[]])
    assert total_effect(moved, [[]], images=[66]).shape == (1, 1, 24)


def test_commands_and_addresses_that_only_the_store_names_are_not_used(toy_run: ToyRun, tmp_path: Path) -> None:
    shard = str(toy_run.shards[1])
    settings = {**toy_run.settings(emit=("heads",)), "shards": [f"pipe:cat {shard}"], "allow_pipe": True}
    hs.precompute(out=tmp_path / "run.zarr", **settings)
    store = hs.open(tmp_path / "run.zarr")
    with pytest.raises(SourceError, match="is a command, which is not run to read images; name shards that are files"):
        total_effect(store, [[]])
    np.testing.assert_array_equal(total_effect(store, [[]], shards=[shard])[0], store.embedding)


def test_a_store_that_may_only_be_read_is_enough(toy_copy: Path, effect: np.ndarray) -> None:
    with read_only(toy_copy):
        np.testing.assert_array_equal(total_effect(hs.open(toy_copy), SETS), effect)


def test_a_16_bit_store_is_computed_in_float32_on_a_cpu(toy_run: ToyRun, effect: np.ndarray, tmp_path: Path) -> None:
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(precision="fp16", emit=("heads",)))
    found = total_effect(hs.open(tmp_path / "run.zarr"), SETS)
    assert relative_error(found, effect) < FLOAT32_SUM


def test_an_unfinished_store_gives_the_images_that_are_finished(toy_copy: Path, effect: np.ndarray) -> None:
    for path in (toy_copy / "records" / "commits").rglob("*"):
        if path.is_file() and path.name != "planned.json":
            path.unlink()
    with pytest.raises(HeadspanError, match="none of 0 images could be used or is finished"):
        total_effect(hs.open(toy_copy), SETS)
