"""One image as a query: what the store's model computes from a file agrees with the store's row of the same image."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.explore.query_image import query_image
from tests.conftest import ToyRun
from tests.tolerances import FLOAT16_STORE, ORACLE_FLOAT32, relative_error


def encoded_of(run: ToyRun, key: str) -> bytes:
    """An image's bytes, as tarfile reads them."""
    for shard in run.shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.startswith(f"{key}.") and not member.name.endswith(".txt"):
                    file = tar.extractfile(member)
                    assert file is not None
                    return file.read()
    raise KeyError(key)


def key_of(store: hs.Store, image: int) -> str:
    return str(store.samples([image])["key"].to_pylist()[0])


@pytest.mark.parametrize("image", [0, 4, 5, 66])
def test_a_file_has_the_numbers_that_the_store_holds_of_the_same_image(
    toy_run: ToyRun, toy_store: hs.Store, toy_exact: dict[str, np.ndarray], tmp_path: Path, image: int
) -> None:
    path = tmp_path / "some photograph"
    path.write_bytes(encoded_of(toy_run, key_of(toy_store, image)))
    stored = query_image(toy_store, image, with_patches=True)
    found = query_image(toy_store, path, with_patches=True)
    assert (stored.name, stored.image) == (key_of(toy_store, image), image)
    assert (found.name, found.image) == ("some photograph", None)
    for name in ("norm", "embedding", "heads", "patches"):
        got, wanted = getattr(found, name), getattr(stored, name)
        assert relative_error(got, wanted) < FLOAT16_STORE
    assert relative_error(found.heads, toy_exact["heads"][image]) < ORACLE_FLOAT32
    assert relative_error(found.embedding, toy_exact["embedding"][image]) < ORACLE_FLOAT32
