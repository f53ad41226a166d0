"""Write the chosen arrays of a store as `.npy` files, which NumPy maps into memory, with samples and axes beside them.

Files are written from the first byte to the last, not through a memory map: on a full disk that is an error, where a
map would end the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from headspan.events import Listener, Progress
from headspan.store.export.choice import Choice, blocks, values
from headspan.store.export.parquet import samples_writer
from headspan.store.reader import Store
from headspan.store.tables import SAMPLES, read_rows

SAMPLES_FILE = "samples.parquet"


def write_npy(store: Store, choices: Sequence[Choice], folder: Path, on_progress: Listener) -> dict[str, Any]:
    """Write the files in `folder`; return file, shape, type and axes of each array. A block is in memory at a time."""
    shapes = [(store.images, *_shape(choice)) for choice in choices]
    with ExitStack() as stack:
        samples = stack.enter_context(samples_writer(folder / SAMPLES_FILE, SAMPLES))
        files = [stack.enter_context((folder / f"{choice.array}.npy").open("wb")) for choice in choices]
        for choice, shape, file in zip(choices, shapes, files, strict=True):
            about = {"descr": np.lib.format.dtype_to_descr(_dtype(choice)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
        done = 0
        for rows in blocks(store, choices):
            samples.write_table(read_rows(store.contents.storage, rows, store.contents.size.unit_images))
            for choice, file in zip(choices, files, strict=True):
                block = np.empty((len(rows), len(choice.series), *choice.series[0].shape), _dtype(choice))
                for place, series in enumerate(choice.series):
                    block[:, place] = values(series, rows)
                file.write(block.reshape(-1).view(np.uint8).data)
            done += len(rows)
            on_progress(Progress("export", done, store.images))
    return {choice.array: _about(choice, shape) for choice, shape in zip(choices, shapes, strict=True)}


def _shape(choice: Choice) -> tuple[int, ...]:
    return (*(len(known) for _, known in choice.places), *choice.series[0].shape)


def _dtype(choice: Choice) -> np.dtype[np.generic]:
    return choice.series[0].dtype


def _about(choice: Choice, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what `export.json` says about an array."""
    axes: list[dict[str, Any]] = [{"name": "image", "values": SAMPLES_FILE}]
    axes += [{"name": axis, "values": known} for axis, known in choice.places]
    axes += [{"name": axis} for axis in choice.series[0].axes]
    return {"file": f"{choice.array}.npy", "shape": list(shape), "dtype": str(_dtype(choice)), "axes": axes}
