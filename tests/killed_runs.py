"""A program that runs precompute in forked children and kills them with SIGKILL at a chosen step, or after a time.

Libraries and model are loaded once, before any store is opened, so that a run costs what its images cost. Reads the
run's settings and then one order a line, as JSON; answers each with how the child ended, its steps and what it read.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from headspan.config import PrecomputeSettings
from headspan.decode import choice
from headspan.decode.in_flight import UnitsInFlight
from headspan.io import object_store, staged_upload
from headspan.io.files import StagedFile
from headspan.io.local import LocalStorage
from headspan.io.object_store import ObjectStorage
from headspan.io.staged_upload import StagedUpload
from headspan.io.stores import is_object_store
from headspan.run import precompute as pipeline
from headspan.shards.samples import SampleSpan
from headspan.store import commit_records
from headspan.store.write.commits import Commits
from headspan.store.write.unit import StoreWriter
from tests.unsynced import do_not_sync
from tests.warm_python import be_warm, ended

# The operations that change a store on disk.
STEPS: tuple[tuple[type, str], ...] = (
    (StagedFile, "write"),
    (StagedFile, "finish"),
    (LocalStorage, "stage"),
    (LocalStorage, "put"),
    (LocalStorage, "put_if_absent"),
    (LocalStorage, "publish"),
    (LocalStorage, "delete"),
    (LocalStorage, "move_folder"),
    (Commits, "_merge_group"),
    (StoreWriter, "write_moments"),
)


# The same in a bucket; `_copy` is a part of `publish`.
BUCKET_STEPS: tuple[tuple[type, str], ...] = (
    (StagedUpload, "write"),
    (StagedUpload, "finish"),
    *((ObjectStorage, name) for name in ("stage", "put", "put_if_absent", "publish", "_copy", "delete")),
    (Commits, "_merge_group"),
    (StoreWriter, "write_moments"),
)
# So small that the larger files of the toy's plan are sent in several parts, and the larger shards of its units.
PART_BYTES, UNIT_PART_BYTES = 4096, 64


class Steps:
    """Counts and logs the moments before, during and after each step, and kills the process at one of them."""

    def __init__(self, log: Path, last: int | None) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._left = last
        # The files of a plan are sent by several threads.
        self._lock = threading.Lock()

    def note(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())

    def pass_by(self, name: str) -> None:
        self.note(f"step {name}")
        with self._lock:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(f"before {name}")
            if name == "write":
                file, part = args
                action(file, part[: len(part) // 2])
                self.pass_by(f"amid {name}")
                args = (file, part[len(part) // 2 :])
            result = action(*args, **kwargs)
            self.pass_by(f"after {name}")
            return result

        return watched


def part_of_toy(upload: StagedUpload) -> np.ndarray:
    """Memory for a part of a file."""
    return np.empty(UNIT_PART_BYTES if upload._key.startswith(("heads/c", "mlps/c")) else PART_BYTES, np.uint8)


def run(settings: PrecomputeSettings, log: Path, last: int | None, processes: bool, whole: bool) -> None:
    """Run precompute in the child, with its steps counted; decode in processes, and send files whole, if asked."""
    choice.uses_processes = lambda device: processes
    steps = Steps(log, last)
    if not whole:
        staged_upload.PART_BYTES = object_store.PART_BYTES = PART_BYTES
        StagedUpload._new_part = part_of_toy  # type: ignore[method-assign]
    for owner, name in BUCKET_STEPS if is_object_store(settings.out) else STEPS:
        setattr(owner, name, steps.around(name, getattr(owner, name)))
    spans = UnitsInFlight.spans

    def noted(self: UnitsInFlight) -> Iterator[SampleSpan]:
        for span in spans(self):
            for row in span.rows.tolist():
                steps.note(f"row {row}")
            yield span

    UnitsInFlight.spans = noted  # type: ignore[method-assign]
    pipeline.precompute(settings)


def start(settings: PrecomputeSettings, log: Path, last: int | None, processes: bool, whole: bool) -> int:
    """Start a child. Returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            if processes and (program := be_warm([])) is not None:
                ended(program)
            run(settings, log, last, processes, whole)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(2)
        os._exit(0)
    return child


def main() -> None:
    """Carry out orders until the input ends."""
    given: dict[str, Any] = json.loads(sys.stdin.readline())
    commit_records.GROUP_UNITS = 2
    # The system has the files of a killed process, on its disk or not.
    do_not_sync()
    encoder = pipeline.prepare(PrecomputeSettings.from_dict({**given, "out": "none"}))
    # Threads compute the checksums, and a forked child has none of them.
    _ = encoder.model.weights_sha256, encoder.model.text_sha256
    pipeline.prepare = lambda *arguments: encoder
    # A child would import both when it reads its first samples and opens its first image.
    pa.array([""])
    Image.init()
    # Or each child would copy the memory of all libraries when it first collects garbage.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        log = Path(tempfile.mkstemp()[1])
        settings = PrecomputeSettings.from_dict({**given, **order.get("settings", {}), "out": order["out"]})
        began = time.monotonic()
        processes = order.get("processes", False)
        whole = order.get("whole", False)
        children = [start(settings, log, order.get("last"), processes, whole) for _ in range(order.get("writers", 1))]
        if "after" in order:
            time.sleep(order["after"])
            os.kill(children[0], signal.SIGKILL)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        lines = [each.split(" ", 1) for each in log.read_text().splitlines()]
        log.unlink()
        answer = {
            "status": next(filter(None, statuses), 0),
            "steps": [what for kind, what in lines if kind == "step"],
            "rows": [int(what) for kind, what in lines if kind == "row"],
            "seconds": time.monotonic() - began,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
