"""Files of tensors in the format safetensors, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from headspan.errors import StoreError, one_line
from headspan.io.files import write_atomically


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    whole = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    write_atomically(path, [save(whole, dict(metadata) if metadata else None)])


def read_tensors(path: Path, todo: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. Raises StoreError, which says what to do, if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read ({one_line(error)}); {todo}") from error
