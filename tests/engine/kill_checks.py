"""Places for stores in tests of kills, and the check of a run that is killed and resumed; on disk and in a bucket."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import headspan as hs
from tests.conftest import relative_files
from tests.s3_server import BUCKET, Server

IMAGES = 7


class KilledRuns:
    """The running program tests/killed_runs.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, out: Path | str, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"out": str(out), **order}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def killed_runs(settings: dict[str, Any]) -> Iterator[KilledRuns]:
    """Start the program, with the settings of its runs."""
    command = [sys.executable, "-m", "tests.killed_runs"]
    # Forked children do not have the threads of libraries, and would wait for them forever.
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        yield KilledRuns(process)
        process.stdin.close()
        assert process.wait() == 0


class Place(Protocol):
    """Where a test puts stores."""

    def new(self, name: str) -> Path | str:
        """A place for one store."""

    def files(self, out: Path | str) -> dict[str, bytes]:
        """The content of every file of a store, by its key."""

    def beside(self, out: Path | str) -> list[str]:
        """What there is in the store's parent, the store included."""

    def wait_for_death(self) -> None:
        """Let so much time pass that killed workers count as dead."""


@dataclass
class OnDisk:
    """Stores in folders below `folder`."""

    folder: Path

    def new(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name / "run.zarr"

    def files(self, out: Path | str) -> dict[str, bytes]:
        return relative_files(Path(out))

    def beside(self, out: Path | str) -> list[str]:
        return [entry.name for entry in Path(out).parent.iterdir()]

    def wait_for_death(self) -> None:
        # Locks tell at once.
        pass


@dataclass
class InBucket:
    """Stores in the bucket of `server`, below the folder `name`."""

    server: Server
    name: str

    def new(self, name: str) -> str:
        return f"s3://{BUCKET}/{self.name}/{name}/run.zarr"

    def files(self, out: Path | str) -> dict[str, bytes]:
        return self.server.keys(str(out).removeprefix(f"s3://{BUCKET}/") + "/")

    def beside(self, out: Path | str) -> list[str]:
        parent = str(out).removeprefix(f"s3://{BUCKET}/").rpartition("/")[0] + "/"
        unfinished = [f"{key} (an upload)" for key in self.server.uploads() if key.startswith(parent)]
        return [*{key.partition("/")[0] for key in self.server.keys(parent)}, *unfinished]

    def delete(self, out: Path | str) -> None:
        """Delete a store that has been checked."""
        self.server.delete(str(out).removeprefix(f"s3://{BUCKET}/") + "/")

    def wait_for_death(self) -> None:
        self.server.faults.ahead += 7200


def check_kill(
    runs: KilledRuns,
    out: Path | str,
    place: Place,
    order: dict[str, Any],
    wanted: dict[str, bytes],
    reference: dict[str, np.ndarray],
) -> bool:
    """Kill a run as `order` says, resume it, and compare the store with `wanted`. Returns whether it was killed.

    `reference` are the values of the row arrays. Committed rows are complete and correct before the run is resumed, and
    their images are not read again.
    """
    killed = runs.run(out, **order)
    # On a machine that has become faster, a run may end before the moment that was drawn for it.
    assert killed["status"] == -9 or "after" in order
    committed: set[int] = set()
    before = place.files(out)
    if "zarr.json" in before:
        store = hs.open(out, include_failed=True)
        committed = {
            row for record in store.contents.records for row in range(record.first_row, record.first_row + record.rows)
        }
        for name, array in store.contents.row_arrays():
            rows = sorted(committed)
            assert np.asarray(array[...])[rows].tobytes() == reference[name][rows].tobytes(), (order, name)
    place.wait_for_death()
    again = runs.run(out)
    assert again["status"] == 0, order
    files = place.files(out)
    assert files == wanted, (order, sorted(set(files) ^ set(wanted)))
    place.wait_for_death()
    assert not committed & set(again["rows"]), order
    assert sorted({*killed["rows"], *again["rows"]}) == list(range(IMAGES)), order
    assert len(set(again["rows"])) == len(again["rows"]), order
    return bool(killed["status"] == -9)


def chosen_kills(
    steps: Sequence[str], seconds: float, at_steps: int, at_random: int, before_steps: bool = True
) -> list[dict[str, Any]]:
    """Orders to kill a run: at the first and last of every kind of step, at others at random, and at random moments.

    Just before a step, the store is as it was after the step before: `before_steps` says whether to kill there too.
    """
    draw = random.Random(0)
    kinds = {kind for kind in steps if before_steps or not kind.startswith("before ")}
    first = {steps.index(kind) for kind in kinds}
    last = {len(steps) - 1 - steps[::-1].index(kind) for kind in kinds}
    chosen = sorted(first | last)
    chosen += draw.sample(sorted(set(range(len(steps))) - set(chosen)), max(0, at_steps - len(chosen)))
    orders: list[dict[str, Any]] = [{"last": step} for step in chosen]
    return orders + [{"after": draw.uniform(0, seconds)} for _ in range(at_random)]
