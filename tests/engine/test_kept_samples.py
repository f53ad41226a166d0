"""Samples of a few images are the same with and without kept columns, and what is kept stays within its bound."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.shards.samples import Sample
from headspan.store.kept_samples import KeptSamples
from headspan.store.tables import SAMPLES, read_rows
from headspan.store.write.sample_tables import write_samples

ROWS, UNIT = 257, 50


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A plan of samples, some of whose values are missing."""
    write_samples(
        tmp_path,
        (
            Sample(
                *(row, f"key {row % 100}", f"{row // 90}.tar", f"{row}.jpg", 512 * row, row or None),
                caption=None if row % 3 == 0 else f"ein Bär {row}",
                label=None if row % 5 == 0 else row % 7,
                metadata=None if row % 2 else '{"a": 1}',
            )
            for row in range(ROWS)
        ),
        UNIT,
    )
    return tmp_path


@pytest.mark.parametrize("columns", [SAMPLES.names, ["caption"], ["label", "key", "row"]])
def test_kept_samples_equal_the_table_in_any_order(root: Path, columns: list[str]) -> None:
    kept = KeptSamples(root, UNIT, 1 << 20)
    for rows in ([0], [256, 3, 3, 51, 149, 150], [], list(range(ROWS))[::-3]):
        for _ in range(2):
            assert kept.rows(np.array(rows, np.int64), columns).equals(
                read_rows(root, np.array(rows, np.int64), UNIT, columns)
            )


def test_what_is_kept_stays_within_its_bound_and_is_read_again_when_it_is_dropped(root: Path) -> None:
    whole = KeptSamples(root, UNIT, 1 << 20)
    whole.rows(np.arange(ROWS), SAMPLES.names)
    bound = whole.bytes // 3
    kept = KeptSamples(root, UNIT, bound)
    for first in (0, 100, 250, 0):
        rows = np.array([first, first + 2])
        assert kept.rows(rows, SAMPLES.names).equals(read_rows(root, rows, UNIT))
        assert 0 < kept.bytes <= bound
    assert kept.bytes == sum(column.nbytes for column in kept._columns.values())


def test_columns_that_are_kept_are_not_read_again(root: Path) -> None:
    kept, rows = KeptSamples(root, UNIT, 1 << 20), np.array([7, 208])
    wanted = kept.rows(rows, ["key", "caption"])
    shutil.rmtree(root / "records")
    assert kept.rows(rows, ["caption", "key"]).equals(wanted.select(["caption", "key"]))


def test_threads_that_ask_at_once_get_the_same_samples(root: Path) -> None:
    kept, wrong = KeptSamples(root, UNIT, 4000), []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            rows = random.integers(0, ROWS, 5)
            if kept.rows(rows, ["row"])["row"].to_pylist() != rows.tolist():
                wrong.append(rows)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept.bytes == sum(column.nbytes for column in kept._columns.values()) <= 4000


def test_an_open_store_answers_the_same_with_kept_samples(toy_store: hs.Store) -> None:
    store = hs.open(toy_store.path)
    images = [3, 0, store.images - 1]
    plain = store.samples(images)
    store.keep_samples(1 << 20)
    assert store.samples(images).equals(plain)
    assert store.samples(np.array(images), ["key"]).equals(plain.select(["key"]))
    with pytest.raises(SettingsError, match="do not all exist"):
        store.samples([store.images])
