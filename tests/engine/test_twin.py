"""The second null of text spans: the same analysis on a store of the same images and architecture, untrained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.errors import NotSavedError, SettingsError, StoreError
from headspan.events import NOTE, Progress
from headspan.spans import over_store
from headspan.spans.saved import read_spans
from tests.conftest import ToyRun, relative_files
from tests.engine.test_textspan import TEXTS

GIVEN: dict[str, Any] = {"texts_per_head": 6, "draws": 20}


@pytest.fixture(scope="module")
def twin_run(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's images through its architecture with random weights."""
    path = tmp_path_factory.mktemp("twin") / "random.zarr"
    hs.precompute(out=path, **toy_run.settings(pretrained="random:3"))
    return path


@pytest.fixture
def twin_copy(twin_run: Path, tmp_path: Path) -> Path:
    """A copy of the twin, to be written into."""
    return Path(shutil.copytree(twin_run, tmp_path / "random.zarr"))


def test_a_twin_gets_the_spans_that_textspan_gives_it_alone(toy_run: ToyRun, twin_run: Path) -> None:
    store, twin = hs.open(toy_run.path), hs.open(twin_run)
    spans = hs.textspan(store, TEXTS, twin=twin, **GIVEN)
    own, alone = hs.textspan(store, TEXTS, **GIVEN), hs.textspan(twin, TEXTS, **GIVEN)
    assert spans.twin is not None
    assert (spans.indices == own.indices).all()
    assert (spans.twin.indices == alone.indices).all()
    assert (spans.twin.explained == alone.explained).all()
    # Its text vectors are those of its own text tower.
    assert (spans.twin.indices != spans.indices).any()
    beside = spans.beside_twin(5)
    assert (beside.texts, beside.own, beside.twin) == (5, own.above_chance(5), alone.above_chance(5))
    excesses = [
        np.array([each.chance(layer, head, 5).excess for layer in (0, 1, 2) for head in range(3)])
        for each in (own, alone)
    ]
    assert (beside.excess, beside.twin_excess) == pytest.approx([each.mean() for each in excesses], abs=1e-12)
    # Nine heads are fewer than 39, so the range is all of them.
    assert (beside.low, beside.high) == pytest.approx([excesses[1].min(), excesses[1].max()], abs=1e-12)
    assert beside.above == sum(excesses[0] > excesses[1].max())


def test_tables_have_the_twins_excess_beside_each_head(toy_run: ToyRun, twin_run: Path) -> None:
    spans = hs.textspan(hs.open(toy_run.path), TEXTS, twin=hs.open(twin_run), **GIVEN)
    frame, heads = spans.to_frame(), spans.by_head().to_frame()
    for count in (1, 5, 6):
        beside = spans.beside_twin(count)
        wanted = [beside.twin_excess, beside.low, beside.high]
        rows = frame[frame["number"] == count]
        for name, value in zip(("mean", "low", "high"), wanted, strict=True):
            assert (rows[f"twin_excess_{name}"] == value).all()
            assert (heads[f"twin_excess_{name}_{count}"] == value).all()
    assert "twin_excess_mean" not in hs.textspan(hs.open(toy_run.path), TEXTS, **GIVEN).to_frame()


def test_the_command_prints_both_nulls_and_saves_both_runs(
    toy_copy: Path, twin_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "mine.txt"
    pool.write_text("\n".join(TEXTS))
    command = ["textspan", str(toy_copy), "--texts", str(pool), "--texts-per-head", "6", "--draws", "20"]
    command += ["--twin", str(twin_copy), "--csv", str(tmp_path / "table.csv")]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    spans = hs.textspan(hs.open(toy_copy), pool, twin=hs.open(twin_copy), **GIVEN)
    beside = spans.beside_twin()
    low, high = 100 * beside.low, 100 * beside.high
    assert f"(p {spans.chance(0, 0).p:.3f}), twin's heads {low:+.1f} to {high:+.1f} points  " in lines[0]
    assert lines[-2] == (
        f"twin with random weights: {beside.twin.above} of 9 heads above chance; mean excess "
        f"{100 * beside.twin_excess:+.1f} points, here {100 * beside.excess:+.1f}; 95 % of its heads {low:+.1f} to "
        f"{high:+.1f} points, and {beside.above} of 9 heads here above"
    )
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["twin_excess_high"][4] == pytest.approx(spans.beside_twin(5).high)
    assert (read_spans(hs.open(twin_copy)).indices == spans.twin.indices).all()  # type: ignore[union-attr]
    # Both runs exist now, so the same command changes nothing and prints the same.
    before = [relative_files(path) for path in (toy_copy, twin_copy)]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert [relative_files(path) for path in (toy_copy, twin_copy)] == before


def test_without_a_name_nothing_is_written(toy_copy: Path, twin_copy: Path) -> None:
    before = [relative_files(path) for path in (toy_copy, twin_copy)]
    hs.textspan(hs.open(toy_copy), TEXTS, twin=hs.open(twin_copy), **GIVEN)
    assert [relative_files(path) for path in (toy_copy, twin_copy)] == before


def test_a_twin_that_can_only_be_read_is_compared_and_said_to_be_unsaved(
    toy_copy: Path, twin_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = over_store.save_result

    def refuse(store: hs.Store, kind: str, run: str, result: Any, *given: Any, **named: Any) -> Any:
        if store.path == twin_copy:
            raise NotSavedError(f"{store.path}: read-only file system", result, read_only=True)
        return save(store, kind, run, result, *given, **named)

    monkeypatch.setattr(over_store, "save_result", refuse)
    events: list[Progress] = []
    twin = hs.open(twin_copy)
    spans = hs.textspan(hs.open(toy_copy), TEXTS, run="own", twin=twin, on_progress=events.append, **GIVEN)
    assert spans.beside_twin().twin.heads == 9
    notes = [event.note for event in events if event.stage == NOTE]
    assert notes == [f"the twin's result was not saved: {twin_copy}: read-only file system"]


def test_a_run_without_a_twin_has_nothing_to_compare_with(toy_run: ToyRun) -> None:
    spans = hs.textspan(hs.open(toy_run.path), TEXTS, **GIVEN)
    with pytest.raises(SettingsError, match=r"was made without a twin; call textspan with twin="):
        spans.beside_twin()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"layers": "1-2"}, r"was made with layers 1-2, but .* with 0-2; a twin has the same architecture, layers and"),
        ({"image_size": 48}, r"was made with .*, but .*; a twin has the same architecture"),
        ({"shards": slice(0, 2)}, r"a number of images of \d+, but .* with 67; a twin has"),
        ({"shards": [1, 0, 2]}, r"the planned shard 001\.tar of 1 image .*, but .* with 000\.tar of 31 images"),
        (
            {"pretrained": None},
            r"has the weights .*toy\.safetensors, but a twin has random ones; make it with `headspan",
        ),
    ],
)
def test_other_stores_are_no_twins(
    changed: dict[str, Any], why: str, toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"pretrained": "random:3", **changed}
    if "shards" in changed:
        chosen, shards = changed["shards"], [str(shard) for shard in toy_run.shards]
        given["shards"] = shards[chosen] if isinstance(chosen, slice) else [shards[number] for number in chosen]
    if given["pretrained"] is None:
        del given["pretrained"]
    hs.precompute(out=tmp_path / "other.zarr", **toy_run.settings(**given))
    with pytest.raises(StoreError, match=why):
        hs.textspan(hs.open(toy_run.path), TEXTS, twin=hs.open(tmp_path / "other.zarr"), **GIVEN)


def test_a_store_is_not_its_own_twin_and_a_missing_one_is_made_by_the_command_that_is_named(
    toy_run: ToyRun, twin_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = hs.open(twin_run)
    with pytest.raises(
        StoreError, match="but a twin has others; make it with another seed, such as --pretrained random:1"
    ):
        hs.textspan(twin, TEXTS, twin=twin, **GIVEN)
    store = hs.open(toy_run.path)
    shutil.copytree(toy_run.path, tmp_path / "second.zarr")
    for further in ({"draws": 0}, {"also": [hs.open(tmp_path / "second.zarr")]}):
        with pytest.raises(SettingsError, match="a twin is compared with one store by the excess over chance"):
            hs.textspan(store, TEXTS, **{**GIVEN, **further}, twin=twin)
    missing = tmp_path / "none.zarr"
    assert main(["textspan", str(toy_run.path), "--twin", str(missing)]) == 2
    said = capsys.readouterr().err
    assert f"{missing}: there is no store; make the twin with `headspan precompute " in said
    assert "--pretrained random:0 " in said
    assert f"--out {missing}`" in said
    assert "safetensors" not in said
