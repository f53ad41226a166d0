"""Tests of verify: it finds disagreements and reports where they are."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

import headspan as hs
from headspan.cli.main import main
from headspan.errors import StoreError
from headspan.io.files import checksum
from headspan.run.verify import SUM_TOLERANCES, Verdict, verify
from tests.conftest import BROKEN_ROWS, ToyRun, image_members
from tests.engine.tars import tar_bytes
from tests.engine.troubled_driver import Troubled


def whats(verdict: Verdict) -> list[str]:
    return [problem.what for problem in verdict.problems]


def shard_of(store: hs.Store, array: str, unit: int) -> Path:
    return store.path / next(name for name in store.contents.records[unit].files if name.startswith(f"{array}/"))


def test_a_sound_store_has_no_problem_and_its_sums_are_close(toy_store: hs.Store) -> None:
    verdict = verify(toy_store)
    assert verdict.problems == ()
    assert verdict.images == 70 - len(BROKEN_ROWS)
    assert verdict.largest_error is not None
    assert 0 < verdict.largest_error < SUM_TOLERANCES["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_store_of_a_16_bit_pass_is_checked_with_the_tolerance_of_16_bits(
    precision: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(precision=precision))  # type: ignore[arg-type]
    verdict = verify(hs.open(tmp_path / "run.zarr"))
    assert verdict.problems == ()
    # The error is near the tolerance of this precision: the tolerance is not too wide.
    assert verdict.largest_error is not None
    assert SUM_TOLERANCES[precision] / 100 < verdict.largest_error < SUM_TOLERANCES[precision]


def test_a_flipped_bit_is_found_in_its_file_and_unit(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    path = shard_of(store, "heads", 1)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    (problem,) = verify(store).problems
    assert (problem.unit, problem.first_row, problem.rows) == (1, 32, 32)
    assert "heads/c/1/0/0/0 has changed since it was written" in problem.what


def test_truncated_and_missing_files_have_different_messages(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    cut, gone = shard_of(store, "norm", 0), shard_of(store, "embedding", 2)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    found = whats(verify(store))
    assert any("norm/c/0/0 has" in what and "its record says" in what for what in found)
    assert any(what == "embedding/c/2/0 is missing" for what in found)


def rewritten(toy_copy: Path, array: str, change: object) -> Verdict:
    """Verify after numbers in an array were changed and the records were updated to the changed files."""
    group = zarr.open_group(toy_copy, mode="r+")
    values = np.asarray(group[array][...])
    change(values)  # type: ignore[operator]
    group[array][...] = values
    store = hs.open(toy_copy, include_failed=True)
    for record in store.contents.records:
        for name in record.files:
            record.files[name] = checksum(toy_copy / name)
    commits = toy_copy / "records" / "commits"
    for name in ("planned.json", "complete.json"):
        files = json.loads((commits / name).read_text())
        (commits / name).write_text(json.dumps({file: checksum(toy_copy / file) for file in files}))
    return verify(store)


def test_a_row_that_no_longer_sums_to_its_embedding_is_named(toy_copy: Path) -> None:
    def change(heads: np.ndarray) -> None:
        heads[40, 1, 2] += 1

    assert any(
        what.startswith("row 40: contributions differ from the embedding by")
        for what in whats(rewritten(toy_copy, "heads", change))
    )


def test_moments_that_disagree_with_the_heads_are_found(toy_copy: Path) -> None:
    def change(total: np.ndarray) -> None:
        total[0, 1, 3] += 0.5

    assert whats(rewritten(toy_copy, "moments/sum", change)) == [
        "the moments differ from the sums of heads by more than rounding explains"
    ]


def test_a_row_that_only_the_array_marks_as_bad_is_found(toy_copy: Path) -> None:
    def change(ok: np.ndarray) -> None:
        ok[3] = 0

    assert any(what.startswith("ok marks") for what in whats(rewritten(toy_copy, "ok", change)))


@pytest.mark.parametrize("file", ["model/head_to_joint/c/0/0/0/0", "moments/gram/c/0/0/0/0", "records/shards.parquet"])
def test_files_outside_the_units_are_checked_too(file: str, toy_copy: Path) -> None:
    data = bytearray((toy_copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (toy_copy / file).write_bytes(data)
    (problem,) = verify(hs.open(toy_copy, include_failed=True)).problems
    assert problem.unit == -1
    assert problem.what.startswith(f"{file} has changed since it was written")


def test_a_missing_shard_of_ok_does_not_look_like_fewer_images(toy_copy: Path) -> None:
    (toy_copy / "ok" / "c" / "0").unlink()
    with pytest.raises(StoreError, match=r"ok marks .* images, but the commit records have 67; headspan verify says"):
        hs.open(toy_copy)
    assert "ok/c/0 is missing" in whats(verify(hs.open(toy_copy, include_failed=True)))


def test_without_all_terms_no_error_of_the_sums_is_reported(toy_run: ToyRun, tmp_path: Path) -> None:
    hs.precompute(out=tmp_path / "part.zarr", **toy_run.settings(layers="last1", emit=("heads",)))  # type: ignore[arg-type]
    verdict = verify(hs.open(tmp_path / "part.zarr"))
    assert verdict.problems == ()
    assert verdict.largest_error is None


def test_a_gzip_that_cannot_be_read_any_more_is_a_problem(toy_run: ToyRun, tmp_path: Path) -> None:
    tar = tmp_path / "a.tar.gz"
    tar.write_bytes(gzip.compress(tar_bytes(image_members(range(5)))))
    hs.precompute(out=tmp_path / "s.zarr", **toy_run.settings(shards=[str(tar)], emit=("heads",), unit_images=2))
    store, before = hs.open(tmp_path / "s.zarr", include_failed=True), tar.stat()
    assert hs.verify(store, sources=True).problems == ()
    data = bytearray(tar.read_bytes())
    data[20:84] = b"\xff" * 64
    tar.write_bytes(data)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    # One problem for the tar, and not one for each unit.
    (problem,) = hs.verify(store, sources=True).problems
    assert (problem.first_row, problem.rows, problem.of_source) == (0, 5, True)
    assert re.match(r"cannot be read again: .*a\.tar\.gz: reading failed after \d+ bytes", problem.what)
    assert main(["verify", str(store.path), "--sources"]) == 1


@pytest.mark.parametrize("place", ["open", "read"])
def test_a_driver_that_fails_to_read_is_a_problem(
    place: str, toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Troubled, "trouble", {})
    monkeypatch.setattr("tests.engine.troubled_driver.DATA", tar_bytes(image_members(range(3))))
    settings = toy_run.settings(shards=["troubled://b/a.tar"], emit=("heads",))
    hs.precompute(out=tmp_path / "s.zarr", **settings)
    store = hs.open(tmp_path / "s.zarr", include_failed=True)
    assert hs.verify(store, sources=True).problems == ()
    Troubled.trouble = {place: [KeyError("x")]}
    (problem,) = hs.verify(store, sources=True).problems
    assert problem.of_source
    assert problem.what.startswith("cannot be read again: troubled://b/a.tar: cannot be read (KeyError: 'x')")
