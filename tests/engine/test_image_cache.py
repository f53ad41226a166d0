"""The cache of what models have computed from images: bounded, shared by processes, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headspan.explore.query import image_cache
from headspan.explore.query.image_cache import find_image, images_folder, keep_image
from tests.warm_python import FORKED

ARRAYS = {"norm": np.arange(3, dtype=np.float32), "patches": np.arange(12, dtype=np.float16).reshape(3, 4)}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}


def files() -> list[str]:
    return sorted(path.name for path in images_folder().iterdir())


def test_arrays_are_found_again_as_they_were() -> None:
    assert find_image("a", SHAPES) is None
    keep_image("a", ARRAYS)
    found = find_image("a", SHAPES)
    assert found is not None
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert find_image("b", SHAPES) is None
    assert find_image("a", {**SHAPES, "norm": (4,)}) is None
    assert find_image("a", {**SHAPES, "heads": (4,)}) is None
    keep_image("a", {"norm": ARRAYS["norm"] + 1})
    assert find_image("a", {"norm": (3,)}) is not None
    assert files() == ["a.npz"]


@pytest.mark.parametrize("place", range(0, 400, 13))
def test_a_file_with_a_changed_byte_is_never_believed(place: int) -> None:
    keep_image("a", ARRAYS)
    path = images_folder() / "a.npz"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    found = find_image("a", SHAPES)
    if found is None:
        assert not path.exists() or place
        keep_image("a", ARRAYS)
        assert find_image("a", SHAPES) is not None
    else:
        # Times and flags of the zip file say nothing about the numbers.
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04"])
def test_a_file_that_is_cut_is_deleted(content: bytes) -> None:
    keep_image("a", ARRAYS)
    (images_folder() / "a.npz").write_bytes(content)
    assert find_image("a", SHAPES) is None
    assert files() == []


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    images_folder().mkdir(parents=True, exist_ok=True)
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(proof),))

    array = np.array([Evil(), 1, 2], dtype=object)
    np.savez(images_folder() / "a.npz", allow_pickle=True, norm=array)
    assert find_image("a", {"norm": (3,)}) is None
    assert not proof.exists()


def test_the_files_used_longest_ago_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_image("size", ARRAYS)
    size = (images_folder() / "size.npz").stat().st_size
    monkeypatch.setattr(image_cache, "_MOST_BYTES", 3 * size + size // 2)
    for age, key in ((50, "a"), (40, "b"), (30, "size")):
        keep_image(key, ARRAYS)
        before = time.time() - age
        os.utime(images_folder() / f"{key}.npz", (before, before))
    # What a killed process left is a file like any other.
    (images_folder() / ".c.npz.12345678.tmp").write_bytes(bytes(size // 4))
    os.utime(images_folder() / ".c.npz.12345678.tmp", (1, 1))
    assert find_image("a", SHAPES) is not None
    keep_image("d", ARRAYS)
    assert files() == ["a.npz", "d.npz", "size.npz"]
    # Its limit holds whatever one image takes.
    keep_image("large", {"norm": np.zeros(size, np.float32)})
    assert files() == []


def test_several_processes_share_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import sys, numpy as np
from headspan.explore.query import image_cache
image_cache._MOST_BYTES = 40_000
random = np.random.default_rng(int(sys.argv[1]))
for turn in range(150):
    key = str(random.integers(12))
    found = image_cache.find_image(key, {"x": (1000,)})
    assert found is None or (found["x"] == int(key)).all()
    image_cache.keep_image(key, {"x": np.full(1000, int(key), np.float32)})
"""
    running = [subprocess.Popen([sys.executable, "-c", FORKED + program, str(seed)]) for seed in range(3)]
    assert [each.wait() for each in running] == [0, 0, 0]
    assert sum(path.stat().st_size for path in images_folder().iterdir()) <= 40_000
    assert all(name.endswith(".npz") for name in files())


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    keep_image("a", ARRAYS)
    assert find_image("a", SHAPES) is None
