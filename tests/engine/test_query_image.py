"""One image as a query: what the store's model computes from a file agrees with the store's row of the same image."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headspan as hs
from headspan.errors import HeadspanError, SettingsError, SourceError
from headspan.events import Progress
from headspan.explore.query.image_cache import images_folder
from headspan.explore.query.query_image import QueryImage, listed, query_image
from headspan.run.image_encoder import forget_models
from tests.conftest import BROKEN_ROWS, ToyRun, encoded_image, relative_files, write_tar
from tests.engine.test_network_sources import Server, server
from tests.tolerances import BFLOAT16_PASS, FLOAT16_PASS, FLOAT16_STORE, ORACLE_FLOAT32, relative_error

__all__ = ["server"]

ARRAYS = ("norm", "embedding", "heads", "patches")


def encoded_of(shards: Sequence[Path], key: str) -> bytes:
    """An image's bytes, as tarfile reads them."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.startswith(f"{key}.") and not member.name.endswith(".txt"):
                    file = tar.extractfile(member)
                    assert file is not None
                    return file.read()
    raise KeyError(key)


def key_of(store: hs.Store, image: int) -> str:
    return str(store.samples([image])["key"].to_pylist()[0])


@pytest.fixture
def photograph(toy_run: ToyRun, toy_store: hs.Store, tmp_path: Path) -> Path:
    """A file with the bytes of the toy store's image 4, which is a JPEG."""
    path = tmp_path / "a photograph"
    path.write_bytes(encoded_of(toy_run.shards, key_of(toy_store, 4)))
    return path


def refuse_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_models()
    monkeypatch.setattr("headspan.model.load.load_stored_model", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.parametrize("image", [0, 4, 5, 66])
def test_a_file_has_the_numbers_that_the_store_holds_of_the_same_image(
    toy_run: ToyRun, toy_store: hs.Store, toy_exact: dict[str, np.ndarray], tmp_path: Path, image: int
) -> None:
    path = tmp_path / "some photograph"
    path.write_bytes(encoded_of(toy_run.shards, key_of(toy_store, image)))
    stored = query_image(toy_store, image, with_patches=True)
    found = query_image(toy_store, path, with_patches=True)
    assert (stored.name, stored.image) == (key_of(toy_store, image), image)
    assert (found.name, found.image) == ("some photograph", None)
    for name in ARRAYS:
        got, wanted = getattr(found, name), getattr(stored, name)
        assert relative_error(got, wanted) < FLOAT16_STORE, name
    # The numbers of a new image are not rounded to 16 bits.
    for name in ("norm", "embedding", "heads"):
        assert relative_error(getattr(found, name), toy_exact[name][image]) < ORACLE_FLOAT32, name
    assert query_image(toy_store, image).patches is None
    assert query_image(toy_store, image - 67).image == image


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", BFLOAT16_PASS), ("fp16", FLOAT16_PASS)])
def test_a_file_agrees_with_a_store_of_another_precision_within_that_precision(
    toy_run: ToyRun, tmp_path: Path, precision: str, tolerance: float
) -> None:
    path = tmp_path / "run.zarr"
    settings = toy_run.settings(precision=precision, layers="1-2", emit=("heads", "patches"), decode="fast")
    hs.precompute(out=path, **{**settings, "shards": [str(toy_run.shards[1])]})
    store = hs.open(path)
    image = tmp_path / "image.jpg"
    image.write_bytes(encoded_of(toy_run.shards, key_of(store, 0)))
    stored, found = query_image(store, 0, with_patches=True), query_image(store, image, with_patches=True)
    for name in ARRAYS:
        assert 0 < relative_error(getattr(found, name), getattr(stored, name)) < tolerance, name


def test_pixels_of_an_image_give_the_numbers_of_its_file(toy_store: hs.Store, photograph: Path) -> None:
    by_file = query_image(toy_store, photograph)
    with Image.open(photograph) as opened:
        by_picture = query_image(toy_store, opened)
        by_pixels = query_image(toy_store, np.asarray(opened.convert("RGB")))
    grey = query_image(toy_store, np.full((40, 50), 90, np.uint8))
    colours = query_image(toy_store, np.full((40, 50, 3), 90, np.uint8))
    assert (by_picture.name, by_pixels.name) == ("a photograph", "pixels")
    # The toy store decodes by PIL, as pixels are resized.
    for found in (by_picture, by_pixels):
        np.testing.assert_array_equal(found.heads, by_file.heads)
    np.testing.assert_allclose(grey.heads, colours.heads, rtol=1e-5, atol=1e-6)
    assert relative_error(grey.heads, by_file.heads) > 0.01


def test_a_file_passes_the_model_once_whatever_is_asked(
    toy_store: hs.Store, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = query_image(toy_store, photograph, with_patches=True)
    refuse_the_model(monkeypatch)
    again = query_image(toy_store, photograph)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    other = photograph.with_name("other")
    other.write_bytes(encoded_image(99))
    with pytest.raises(pytest.fail.Exception, match="the model was loaded"):
        query_image(toy_store, other)


def test_patches_are_added_to_a_file_that_was_asked_for_without_them(toy_store: hs.Store, photograph: Path) -> None:
    assert query_image(toy_store, photograph).patches is None
    found = query_image(toy_store, photograph, with_patches=True)
    assert found.patches is not None
    assert relative_error(found.patches.astype(np.float64).sum(axis=1), found.heads) < FLOAT16_STORE
    assert query_image(toy_store, found, with_patches=True) is found


def test_the_model_stays_loaded_for_the_next_image_and_for_texts(
    toy_store: hs.Store, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_image(toy_store, photograph)
    monkeypatch.setattr("headspan.model.load.load_stored_model", lambda *_: pytest.fail("the model was loaded"))
    other = photograph.with_name("other")
    other.write_bytes(encoded_image(98))
    assert query_image(toy_store, other).image is None
    assert hs.text_vectors(toy_store, ["a text of its own"]).shape == (1, 24)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"photo\.jpg: is no image that headspan can use \(empty \(0 bytes\)\); give a JPEG"),
        (b"no image at all", "not an image, or its header is broken"),
        (encoded_image(0)[:200], "cannot be (opened|decoded)"),
        (encoded_image(0, kind="PNG")[:120], "cannot be decoded"),
    ],
)
def test_a_file_that_is_no_image_is_refused_with_the_reason(
    toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    refuse_the_model(monkeypatch)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        query_image(toy_store, path)


def test_a_picture_that_cannot_be_read_to_its_end_is_refused(toy_store: hs.Store, photograph: Path) -> None:
    photograph.write_bytes(photograph.read_bytes()[:-150])
    with Image.open(photograph) as opened, pytest.raises(SourceError, match="a photograph: is no image that headspan"):
        query_image(toy_store, opened)


def test_missing_and_huge_files_are_refused_before_they_are_read(toy_store: hs.Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.jpg: cannot be read \(No such file or directory\); give the path"):
        query_image(toy_store, tmp_path / "nowhere.jpg")
    with pytest.raises(SourceError, match=r"cannot be read \(Is a directory\)"):
        query_image(toy_store, tmp_path)
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(SourceError, match=r"is no image: it has 5\.4 GB"):
        query_image(toy_store, str(huge))
    # A file of some kilobytes that would take gigabytes of pixels.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(SourceError, match=r"bomb\.png: .*more than 178,956,970 pixels"):
        query_image(toy_store, tmp_path / "bomb.png")
    with pytest.raises(SourceError, match="too long and narrow: 1x200000"):
        query_image(toy_store, np.zeros((200_000, 1), np.uint8))


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_arrays_that_are_no_pixels_are_refused(toy_store: hs.Store, pixels: np.ndarray) -> None:
    with pytest.raises(SettingsError, match=r"pixels of shape \(.*: give uint8 \[height, width, 3\]"):
        query_image(toy_store, pixels)


def test_images_that_the_store_cannot_answer_for_are_refused(toy_run: ToyRun, toy_store: hs.Store) -> None:
    with pytest.raises(SettingsError, match="image 67 does not exist; images count from 0 to 66"):
        query_image(toy_store, 67)
    every = hs.open(toy_run.path, include_failed=True)
    with pytest.raises(SettingsError, match=r"image 5 \(00005\) could not be used by precompute"):
        query_image(every, BROKEN_ROWS[0])
    with pytest.raises(SettingsError, match="the list of images is empty"):
        listed(every, [])
    assert listed(every, np.array([3, 1])) == [3, 1]
    bare = QueryImage("x", None, np.ones(3, np.float32), np.ones(24, np.float32), np.ones((3, 3, 16), np.float32), None)
    with pytest.raises(SettingsError, match="x: has no patches; ask for them with query_image"):
        query_image(toy_store, bare, with_patches=True)
    program = "import sys, headspan as hs; hs.explore.query_image(hs.open(sys.argv[1]), [1.5])"
    command = [sys.executable, "-c", program, str(toy_run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "image [1.5]: give an index of the store, a file, a PIL image or uint8 pixels" in done.stderr


def test_a_query_leaves_the_store_as_it_was(toy_copy: Path, photograph: Path) -> None:
    before = relative_files(toy_copy)
    query_image(hs.open(toy_copy), photograph, with_patches=True)
    query_image(hs.open(toy_copy), 4, with_patches=True)
    assert relative_files(toy_copy) == before


@pytest.fixture(scope="module")
def without_patches(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the toy's images without patches, of layers 0 and 2, with shards of its own beside it."""
    folder = tmp_path_factory.mktemp("without")
    shards = [folder / shard.name for shard in toy_run.shards]
    for shard, copy in zip(toy_run.shards, shards, strict=True):
        copy.write_bytes(shard.read_bytes())
    settings = toy_run.settings(emit=("heads",), layers="0,2")
    hs.precompute(out=folder / "run.zarr", **{**settings, "shards": [str(shard) for shard in shards]})
    return folder / "run.zarr"


@pytest.mark.parametrize("image", [0, 31, 66])
def test_patches_that_are_not_stored_are_computed_from_the_shard(
    toy_store: hs.Store, without_patches: Path, monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    store = hs.open(without_patches)
    found = query_image(store, image, with_patches=True)
    stored = query_image(toy_store, image, with_patches=True)
    assert (found.name, found.image) == (stored.name, image)
    assert stored.patches is not None
    assert found.patches is not None
    assert relative_error(found.patches, stored.patches[[0, 2]]) < FLOAT16_STORE
    np.testing.assert_array_equal(found.heads, stored.heads[[0, 2]])
    # The second question needs neither model nor shard.
    refuse_the_model(monkeypatch)
    monkeypatch.setattr(
        "headspan.explore.query.computed_image.encoded_image", lambda *_: pytest.fail("the shard was read")
    )
    np.testing.assert_array_equal(query_image(store, image, with_patches=True).patches, found.patches)


def test_a_shard_that_is_gone_leaves_what_needs_only_the_store(
    toy_store: hs.Store, without_patches: Path, tmp_path: Path
) -> None:
    store = hs.open(without_patches)
    kept = query_image(store, 1, with_patches=True)
    shard = without_patches.with_name("000.tar")
    moved = shard.rename(tmp_path / "000.tar")
    try:
        with pytest.raises(
            SourceError,
            match=r"holds no patches, and image 0 \(00000\) cannot be read again for its map \(.*000\.tar.*No such file"
            r".*name its shards with --shards; queries for neighbours and scores need only the store$",
        ):
            query_image(store, 0, with_patches=True)
        np.testing.assert_array_equal(query_image(store, 0).heads, query_image(toy_store, 0).heads[[0, 2]])
        np.testing.assert_array_equal(query_image(store, 1, with_patches=True).patches, kept.patches)
        shards = [str(moved), *(str(without_patches.with_name(f"00{number}.tar")) for number in (1, 2))]
        assert query_image(store, 0, with_patches=True, shards=shards).patches is not None
        with pytest.raises(SourceError, match="1 shard is named, but the store was planned over 3"):
            query_image(store, 2, with_patches=True, shards=shards[:1])
    finally:
        moved.rename(shard)


def test_a_remote_shard_that_is_gone_is_refused_before_the_model_is_loaded(
    toy_run: ToyRun, without_patches: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in toy_run.shards[1:]:
        (server.folder / shard.name).write_bytes(shard.read_bytes())
    shards = [server.url(shard.name) for shard in toy_run.shards]
    store, events = hs.open(without_patches), list[Progress]()
    refuse_the_model(monkeypatch)
    for images in (2, [66, 2]):
        with pytest.raises(
            SourceError,
            match=r"holds no patches, and image 2 \(00002\) cannot be read again for its map \(http://127\.0\.0\.1:\d+/"
            r"000\.tar\?…: .*\); correct --shards; queries for neighbours and scores need only the store$",
        ):
            hs.explore.segment(store, images, "never embedded", shards=shards)
    # What the other shards hold is shown.
    pictures = hs.explore.whole_pictures(store, [2, 66], events.append, shards=shards)
    assert [picture is None for picture in pictures] == [True, False]
    (event,) = events
    assert event.note.startswith("a map is drawn without its picture: http://127.0.0.1:")
    # Servers and commands that only the store names are not asked.
    refused = r"image 2 .*\(pipe:.* is a command, which is not run to read images; name shards that are files\)"
    with pytest.raises(SourceError, match=refused):
        hs.explore.segment(store, 2, "never embedded", shards=[f"pipe:curl {url}" for url in shards])


def test_a_shard_with_another_image_at_the_place_is_not_believed(without_patches: Path, tmp_path: Path) -> None:
    store = hs.open(without_patches)
    shard = without_patches.with_name("001.tar")
    original = shard.read_bytes()
    with tarfile.open(shard) as tar:
        (name, size, offset) = next((m.name, m.size, m.offset_data) for m in tar if not m.name.endswith("txt"))
    # Padded to the length of the image that was there.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    other = tmp_path / "other.jpg"
    noise.save(other, quality=30)
    data = other.read_bytes()
    assert len(data) <= size
    shard.write_bytes(original[:offset] + data + bytes(size - len(data)) + original[offset + size :])
    image = store.samples()["key"].to_pylist().index(name.partition(".")[0])
    try:
        with pytest.raises(SourceError, match=r"is another image in its shard now, since its embedding differs by \d"):
            query_image(store, image, with_patches=True)
    finally:
        shard.write_bytes(original)


def test_commands_and_servers_that_a_store_names_are_not_asked_for_images(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_tar(tmp_path / "a.tar", [("0.jpg", encoded_image(0))])
    proof = tmp_path / "ran"
    settings = toy_run.settings(emit=("heads",), shards=[f"pipe:cat {shard}"], allow_pipe=True)
    hs.precompute(out=tmp_path / "run.zarr", **settings)
    store = hs.open(tmp_path / "run.zarr")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: proof.touch())
    with pytest.raises(SourceError, match=r"pipe:cat .*: is a command, which is not run to read images"):
        query_image(store, 0, with_patches=True)
    assert not proof.exists()
    assert query_image(store, 0, with_patches=True, shards=[str(shard)]).patches is not None


def test_images_of_a_folder_are_read_again_one_by_one(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encoded_image(number))
    settings = toy_run.settings(emit=("heads",), shards=[str(folder)])
    hs.precompute(out=tmp_path / "run.zarr", **settings)
    store = hs.open(tmp_path / "run.zarr")
    # To measure the folder would take as long as to list a million files.
    monkeypatch.setattr("headspan.originals.find_shards.describe", lambda *_: pytest.fail("the folder was listed"))
    assert query_image(store, 1, with_patches=True).patches is not None
    (folder / "2.jpg").write_bytes(encoded_image(7))
    with pytest.raises(SourceError, match=r"2\.jpg.*(changed|modified)"):
        query_image(store, 2, with_patches=True)


def test_reading_a_stored_image_needs_no_torch(toy_run: ToyRun) -> None:
    program = (
        "import sys, headspan as hs; hs.explore.query_image(hs.open(sys.argv[1]), 0, with_patches=True); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(toy_run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_image_is_computed_where_its_cache_cannot_be_written(
    toy_store: hs.Store, photograph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = query_image(toy_store, photograph).heads
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    np.testing.assert_array_equal(query_image(toy_store, photograph).heads, wanted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images_folder().mkdir(parents=True)
    images_folder().chmod(0o500)
    np.testing.assert_array_equal(query_image(toy_store, photograph).heads, wanted)
    images_folder().chmod(0o700)


def test_errors_of_images_are_one_line(toy_store: hs.Store, tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.jpg"
    path.write_bytes(b"?")
    with pytest.raises(HeadspanError) as raised:
        query_image(toy_store, path)
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert os.sep not in str(raised.value).partition(":")[0]
