"""Write what a store holds beside the images' numbers: the model's matrices as safetensors, the tables as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from headspan.head_names import head_name
from headspan.store.export.choice import Head
from headspan.store.reader import Store
from headspan.store.tables import SAMPLES, notes_table, read_rows, shards_table

# Attributes of the store that a safetensors file has too.
_ATTRIBUTES = ("model", "pretrained", "weights_sha256")
# Rows of the table of samples that are in memory at a time.
_ROWS = 1 << 16


def write_safetensors(store: Store, heads: Sequence[Head], target: Path) -> None:
    """Write the folded matrices and biases, named by layer and head as in `head_to_joint.L10.H3`: `[head_dim, joint]`.

    Biases are those of the direct layers among the layers of `heads`. Other matrices are written whole.
    """
    # Takes longer to import than most commands.
    from safetensors.numpy import save

    folded, first = store.contents.folded, store.all_layers - store.direct_layers
    found: dict[str, np.ndarray] = {}
    for layer, head in heads:
        index = store.contents.layer_index(layer, head)
        found[f"head_to_joint.{head_name(layer, head)}"] = folded.head_to_joint[index, head]
        found[f"head_mean.{head_name(layer, head)}"] = folded.head_mean[index, head]
    for layer in dict.fromkeys(layer for layer, _ in heads):
        found[f"bias_to_joint.L{layer}"] = folded.bias_to_joint[layer - first]
        found[f"bias_mean.L{layer}"] = folded.bias_mean[layer - first : layer - first + 1]
    found |= {name: getattr(folded, name) for name in ("gain", "shift", "share_count")}
    about = {name: str(store.attributes[name]) for name in _ATTRIBUTES if store.attributes.get(name) is not None}
    # Not with `save_file`, whose errors do not say that a disk is full.
    target.write_bytes(save({name: np.ascontiguousarray(each) for name, each in found.items()}, about))


def write_csv(store: Store, folder: Path) -> list[str]:
    """Write the tables of samples, shards and notes in `folder`; return the names of the files."""
    with csv.CSVWriter(folder / "samples.csv", SAMPLES) as writer:
        for first in range(0, store.images, _ROWS):
            rows = store.rows[first : first + _ROWS]
            writer.write_table(read_rows(store.contents.storage, rows, store.contents.size.unit_images))
    others: dict[str, pa.Table] = {"shards.csv": shards_table(store.path), "notes.csv": notes_table(store.path)}
    for name, table in others.items():
        csv.write_csv(table, folder / name)
    return ["samples.csv", *others]
