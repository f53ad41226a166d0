"""Maps of texts, contrasts and their pictures, against definitions in float64 and against decoded images."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import headspan as hs
from headspan.cli.main import main
from headspan.config import Preprocess
from headspan.decode.exact import preprocess_image
from headspan.errors import HeadspanError, SettingsError
from headspan.events import Progress
from headspan.explore.maps.map_result import TextMaps
from headspan.explore.maps.segmentation import resized, text_maps
from headspan.explore.maps.segments import contrast, segment
from headspan.explore.query.whole_pictures import WholePicture, whole_pictures
from headspan.originals.seen_part import Box, seen_part
from headspan.plots.colours import AGAINST, FOR, map_colours
from headspan.plots.overlays import Style, overlay
from tests.conftest import ToyRun, relative_files
from tests.engine.test_query_image import encoded_of, key_of, refuse_the_model
from tests.tolerances import FLOAT16_STORE, FLOAT32_SUM, relative_error

SOME_HEADS = [(0, 2), (2, 0), (1, 1)]


@pytest.fixture
def vectors(toy_store: hs.Store) -> np.ndarray:
    found = np.random.default_rng(3).standard_normal((5, toy_store.joint)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def dense_map(store: hs.Store, image: int, vector: np.ndarray, heads: list[tuple[int, int]]) -> np.ndarray:
    """METHODS: the contributions of each patch in joint space, summed over heads, times the text; all in float64."""
    total = np.zeros((store.tokens - store.prefix_tokens, store.joint))
    folded, mean_and_bias = store.contents.folded, store.norm[image].astype(np.float64)
    mean, s, length = mean_and_bias
    terms = 2 * store.all_layers + 1
    for layer, head in heads:
        place = store.layers.index(layer)
        own = store.patch_coordinates(image, layer)[store.prefix_tokens :, head].astype(np.float64)
        total += own @ folded.head_to_joint[place, head].astype(np.float64) / s
        share = folded.bias_to_joint[layer].astype(np.float64) / store.heads_per_layer / s
        share -= mean / s * folded.gain.astype(np.float64) / (terms * store.heads_per_layer)
        share += folded.shift.astype(np.float64) / (terms * store.heads_per_layer)
        total += share / store.tokens
    return (total @ vector.astype(np.float64) / length).reshape(4, 4)


@pytest.mark.parametrize("heads", [[(1, 2)], SOME_HEADS, None])
def test_a_map_is_the_dense_contribution_of_each_patch_times_the_text(
    toy_store: hs.Store, vectors: np.ndarray, heads: list[tuple[int, int]] | None
) -> None:
    every = [(layer, head) for layer in range(3) for head in range(3)]
    maps = segment(toy_store, [7, 0], vectors, heads)
    assert maps.maps.shape == (2, 5, 4, 4)
    assert maps.heads == tuple(heads or every)
    for place, image in enumerate((7, 0)):
        for number, vector in enumerate(vectors):
            wanted = dense_map(toy_store, image, vector, heads or every)
            assert relative_error(maps.maps[place, number], wanted) < FLOAT32_SUM * 10
    difference = contrast(toy_store, [7], vectors[0], vectors[3], heads)
    wanted = dense_map(toy_store, 7, vectors[0] - vectors[3], heads or every)
    assert relative_error(difference.maps[0, 0], wanted) < FLOAT32_SUM * 10


def test_a_map_of_all_heads_and_tokens_sums_to_the_heads_part_of_the_similarity(
    toy_store: hs.Store, vectors: np.ndarray
) -> None:
    # The class token is no patch: its part is added here.
    found = segment(toy_store, 3, vectors[0], [(2, 1)]).maps.sum()
    class_token = toy_store.patches(3, 2)[0, 1] @ vectors[0]
    assert found + class_token == pytest.approx(float(toy_store.head(2, 1)[3] @ vectors[0]), abs=2e-3)


def test_a_contrast_is_antisymmetric_to_the_bit(toy_store: hs.Store, vectors: np.ndarray) -> None:
    for first in range(5):
        for second in range(5):
            forth = contrast(toy_store, [0, 9], vectors[first], vectors[second], SOME_HEADS).maps
            back = contrast(toy_store, [0, 9], vectors[second], vectors[first], SOME_HEADS).maps
            assert (forth == -back).all()
            each = [text_maps(toy_store, image, vectors[[first]], SOME_HEADS) for image in (0, 9)]
            other = [text_maps(toy_store, image, vectors[[second]], SOME_HEADS) for image in (0, 9)]
            np.testing.assert_array_equal(forth, np.stack(each) - np.stack(other))
            if first == second:
                assert not np.signbit(forth).any()
    texts = "a cat", "two dogs in the rain, a long sentence"
    forth, back = (contrast(toy_store, 4, *each).maps for each in (texts, texts[::-1]))
    assert np.abs(forth).max() > 0
    assert (forth == -back).all()


def test_a_texts_map_does_not_depend_on_the_other_texts(toy_store: hs.Store, vectors: np.ndarray) -> None:
    together = text_maps(toy_store, 4, vectors, SOME_HEADS)
    for number in range(5):
        np.testing.assert_array_equal(text_maps(toy_store, 4, vectors[[number]], SOME_HEADS)[0], together[number])


def test_a_file_has_the_map_of_the_stored_image(toy_run: ToyRun, toy_store: hs.Store, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded_of(toy_run.shards, key_of(toy_store, 4)))
    maps = segment(toy_store, [4, path, hs.explore.query_image(toy_store, 4)], ["a cat", "red"], SOME_HEADS)
    assert (maps.images, maps.texts) == ((4, None, 4), ("a cat", "red"))
    assert maps.names == (key_of(toy_store, 4), "photo.jpg", key_of(toy_store, 4))
    assert relative_error(maps.maps[1], maps.maps[0]) < FLOAT16_STORE
    np.testing.assert_array_equal(maps.maps[2], maps.maps[0])
    centred = hs.explore.head_maps(toy_store, "a cat", (1, 1), [4, path])
    assert centred.images == (4, None)
    assert relative_error(centred.deviations[1], centred.deviations[0]) < FLOAT16_STORE


def test_maps_without_stored_patches_agree_with_those_of_stored_ones(
    toy_run: ToyRun, toy_store: hs.Store, tmp_path: Path
) -> None:
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(emit=("heads",)))
    bare = hs.open(tmp_path / "run.zarr")
    before = relative_files(tmp_path / "run.zarr")
    wanted = segment(toy_store, range(5), ["a cat", "red"])
    found = segment(bare, range(5), ["a cat", "red"])
    assert relative_error(found.maps, wanted.maps) < FLOAT16_STORE
    events: list[Progress] = []
    centred = hs.explore.head_maps(bare, "a cat", (2, 0), [3], events.append)
    assert [(event.done, event.total) for event in events if event.stage == "maps"] == [(n, 67) for n in range(1, 68)]
    assert relative_error(centred.deviations, hs.explore.head_maps(toy_store, "a cat", (2, 0), [3]).deviations) < 0.01
    assert relative_files(tmp_path / "run.zarr") == before


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"images": []}, "the list of images is empty"),
        ({"images": 67}, "image 67 does not exist"),
        ({"texts": []}, "the list of texts is empty"),
        ({"texts": np.ones(5, np.float32)}, r"vectors of shape \(1, 5\): give \[text, 24\]"),
        ({"heads": []}, "the list of heads is empty"),
        ({"heads": [(0, 7)]}, "head 7 does not exist"),
        ({"heads": [(9, 0)]}, "layer 9 is not stored"),
    ],
)
def test_maps_that_cannot_be_made_are_refused(toy_store: hs.Store, changed: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        segment(toy_store, **{"images": 0, "texts": np.ones(24, np.float32), **changed})  # type: ignore[arg-type]


def test_maps_are_a_table_with_a_row_for_every_patch(toy_store: hs.Store, vectors: np.ndarray, tmp_path: Path) -> None:
    maps = segment(toy_store, [7, 2], ["a cat", vectors[1]], [(1, 2)])
    frame = maps.to_frame()
    assert list(frame.columns) == ["image", "name", "text", "row", "column", "value"]
    assert len(frame) == 2 * 2 * 16
    row = frame[(frame["image"] == 2) & (frame["text"] == "a cat") & (frame["row"] == 3) & (frame["column"] == 1)]
    assert row["value"].tolist() == [pytest.approx(float(maps.maps[1, 0, 3, 1]))]
    assert repr(maps) == "TextMaps(“a cat”, a vector through L1.H2: 2 images, 4 × 4 patches)"
    against = contrast(toy_store, 7, "a cat", "a dog")
    assert repr(against) == "TextMaps(“a cat” against “a dog” through all 9 stored heads: 1 image, 4 × 4 patches)"
    assert list(against.to_frame().columns) == ["image", "name", "text", "against", "row", "column", "value"]
    against.to_json(tmp_path / "maps.json")
    assert json.loads((tmp_path / "maps.json").read_text())[0]["against"] == "a dog"


# Resizing and cropping, as open_clip does them, and pictures of every orientation; "longest" pads.
GEOMETRIES = [
    (mode, size, picture)
    for mode in ("shortest", "longest", "squash")
    for size in ((32, 32), (32, 48))
    for picture in ((150, 480), (480, 150), (129, 131), (257, 257), (31, 40))
]


@pytest.mark.parametrize(("mode", "size", "picture"), GEOMETRIES)
def test_a_patchs_colour_lands_on_the_pixels_that_the_model_saw_in_that_patch(
    mode: str, size: tuple[int, int], picture: tuple[int, int]
) -> None:
    preprocess = Preprocess(size=size, interpolation="bilinear", resize_mode=mode, fill_color=0)
    height, width = picture
    patch = 8
    rows, columns = size[0] // patch, size[1] // patch
    seen = seen_part(height, width, preprocess)
    for row, column in ((0, 0), (rows - 1, columns - 1), (1, 2), (rows // 2, columns // 2)):
        values = np.zeros((rows, columns), np.float32)
        values[row, column] = 1
        drawn = overlay(
            np.zeros((height, width, 3), np.uint8), seen, values, Style(full=1.0, opacity=1.0, squares=True)
        )
        bright = (drawn == np.array(FOR)).all(axis=2)
        # What the model sees of a picture that is white there and black elsewhere: the patch, and nothing else.
        encoded = io.BytesIO()
        Image.fromarray(np.where(bright, 255, 0).astype(np.uint8)).convert("RGB").save(encoded, "PNG")
        pixels = preprocess_image(encoded.getvalue(), preprocess)[..., 0] / 255
        share = pixels.reshape(rows, patch, columns, patch).mean(axis=(1, 3))
        if not bright.any():
            # Padding lies outside the picture.
            assert mode == "longest"
            continue
        assert np.unravel_index(share.argmax(), share.shape) == (row, column)
        others = np.delete(share.ravel(), row * columns + column)
        # A patch's border may lie within a pixel of the picture, which is then in two patches.
        border = 2 * max(1, max(size) / min(height, width)) / patch
        assert others.max() < 0.1 + border / 2
        if mode != "longest":
            assert share[row, column] > 0.9 - border


def test_the_seen_part_is_the_centre_of_a_wide_picture() -> None:
    preprocess = Preprocess(size=(224, 224), interpolation="bicubic", resize_mode="shortest", fill_color=0)
    assert seen_part(480, 640, preprocess) == pytest.approx(Box(80, 0, 560, 480), abs=640 / 224)
    assert seen_part(640, 480, preprocess) == pytest.approx(Box(0, 80, 480, 560), abs=640 / 224)
    assert seen_part(300, 300, preprocess) == Box(0, 0, 300, 300)


def test_colours_are_symmetric_and_zero_has_none() -> None:
    grey = np.full((40, 80, 3), 77, np.uint8)
    style = Style(full=2.0, squares=True)
    values = np.array([[-2, -1, 0, 1]], np.float32)
    drawn = overlay(grey, (0.0, 0.0, 80.0, 40.0), values, style)[20].astype(float)
    turned = overlay(grey, (0.0, 0.0, 80.0, 40.0), -values, style)[20].astype(float)
    plain = overlay(grey, (0.0, 0.0, 80.0, 40.0), np.zeros((1, 4), np.float32), style)[20].astype(float)
    assert (drawn[50] == plain[50]).all()
    for place, colour in ((10, AGAINST), (30, AGAINST), (70, FOR)):
        opacity = style.opacity * (1.0 if place == 10 else 0.5)
        # Opacity has 8 bits.
        np.testing.assert_allclose(drawn[place], plain[place] + opacity * (np.array(colour) - plain[place]), atol=1.1)
    np.testing.assert_allclose(turned[70], plain[70] + 0.5 * style.opacity * (np.array(AGAINST) - plain[70]), atol=1.1)
    hidden = overlay(grey, (0.0, 0.0, 80.0, 40.0), values, Style(full=2.0, threshold=1.5, squares=True))[20]
    assert (hidden[30] == plain[30]).all()
    assert (hidden[10] == drawn[10]).all()


def test_smooth_maps_are_bilinear_between_the_patches_centres() -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    enlarged = resized(values, (48, 80))
    drawn = overlay(np.zeros((48, 80, 3), np.uint8), (0.0, 0.0, 80.0, 48.0), values, Style(full=5.0, opacity=1.0))
    squares = np.where(enlarged[..., None] >= 0, np.array(FOR), np.array(AGAINST)) * np.abs(enlarged)[..., None] / 5
    under = (1 - np.abs(enlarged)[..., None] / 5) * 127.5
    np.testing.assert_allclose(drawn, squares + under, atol=2.5)


def test_what_the_model_does_not_see_is_paler_and_has_no_colour() -> None:
    picture = np.full((50, 100, 3), 10, np.uint8)
    drawn = overlay(picture, (25.0, 0.0, 75.0, 50.0), np.ones((2, 2), np.float32), Style(full=1.0, opacity=1.0))
    coloured = (drawn == np.array(FOR)).all(axis=2)
    assert coloured[:, 25:75].all()
    assert not coloured[:, :25].any()
    assert not coloured[:, 75:].any()
    assert (drawn[:, :25] > 200).all()


def test_a_drawing_has_a_row_for_each_image_and_a_column_for_each_text(
    toy_store: hs.Store, toy_run: ToyRun, tmp_path: Path
) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (300, 100), (200, 30, 30)).save(path)
    maps = segment(toy_store, [7, path], ["a cat", "red"], SOME_HEADS)
    pictures = whole_pictures(toy_store, [7, path])
    assert [None if each is None else each.pixels.shape[:2] for each in pictures][1] == (100, 300)
    wide = pictures[1]
    assert wide is not None
    assert wide.seen == Box(100, 0, 200, 100)
    assert (wide.seen_pixels() == (200, 30, 30)).all()
    drawn = maps.draw(pictures, side=60)
    assert drawn.width > 3 * 60
    assert drawn.height > 60 + 20
    # The picture itself is in the first column, in colour.
    assert (np.asarray(drawn) == (200, 30, 30)).all(axis=2).sum() == 60 * 20
    maps.to_png(tmp_path / "map.png", pictures, side=60)
    with Image.open(tmp_path / "map.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(drawn))
    assert maps.draw(side=60).height > 60
    with pytest.raises(SettingsError, match="1 picture for 2 images: give one for each"):
        maps.draw(pictures[:1])
    for wrong, complaint in (
        ({"full": 0.0}, "full colour at 0.0: give a number above 0"),
        ({"threshold": -1.0}, "threshold -1.0: give"),
        ({"opacity": 1.5}, "opacity 1.5: give"),
        ({"side": 3}, "pictures of 3 pixels: give"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            maps.draw(**wrong)  # type: ignore[arg-type]
    with pytest.raises(HeadspanError, match="the picture cannot be written there"):
        maps.to_png(path / "map.png")


def test_maps_are_plotted_with_one_axes_each(toy_store: hs.Store) -> None:
    maps = segment(toy_store, [7, 2, 3], ["a cat", "red"])
    shown = maps.plot(whole_pictures(toy_store, [7, 2, 3]))
    assert len(shown) == 6
    bare = maps.plot(colorbar=False)
    assert [ax.get_title()[:5] for ax in bare] == [key_of(toy_store, image) for image in (7, 7, 2, 2, 3, 3)]
    for ax, values in zip(shown, maps.maps.reshape(6, 4, 4), strict=True):
        _, drawn = ax.images
        np.testing.assert_array_equal(drawn.get_array(), map_colours(values, 0.0, maps.full, 0.0))


def test_a_map_is_drawn_without_the_picture_of_a_shard_that_is_gone(toy_copy: Path, toy_run: ToyRun) -> None:
    store = hs.open(toy_copy)
    shard = toy_run.shards[0]
    away = shard.rename(shard.with_name("away"))
    events: list[Progress] = []
    try:
        maps = segment(store, [0, 40], np.ones(24, np.float32))
        pictures = whole_pictures(store, [0, 40], events.append)
    finally:
        away.rename(shard)
    assert [type(each) for each in pictures] == [type(None), WholePicture]
    assert [event.note.partition(":")[0] for event in events] == ["a map is drawn without its picture"]
    assert maps.draw(pictures, side=64).width > 2 * 64


@pytest.fixture
def read_only(toy_copy: Path) -> Path:
    for path in [toy_copy, *toy_copy.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return toy_copy


def test_the_commands_write_pictures_and_tables_of_a_read_only_store(
    read_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = relative_files(read_only)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 60), (0, 200, 0)).save(photo)
    out = [str(tmp_path / name) for name in ("map.png", "map.csv", "map.parquet")]
    command = ["segment", str(read_only), "--image", "4", "--image", str(photo), "--text", "a cat", "--text", "red"]
    assert main([*command, "--head", "L1.H2", "--out", out[0], "--csv", out[1], "--parquet", out[2]]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "through L1.H2"
    assert len(printed.out.splitlines()) == 5
    assert printed.out.splitlines()[4].startswith("photo.png, “red”: patches sum to ")
    assert f"picture written to {out[0]}" in printed.err
    with Image.open(out[0]) as image:
        assert image.format == "PNG"
    table = pq.read_table(out[2])
    assert table.num_rows == 2 * 2 * 16
    store = hs.open(read_only)
    wanted = segment(store, [4, photo], ["a cat", "red"], [(1, 2)])
    np.testing.assert_allclose(table["value"].to_numpy(), wanted.maps.ravel(), rtol=1e-6)
    command = ["contrast", str(read_only), "--image", str(photo), "--text", "a cat", "--against", "red"]
    assert main([*command, "--json", "-", "--squares", "--threshold", "0.001", "--out", out[0]]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["name"], row["text"], row["against"]) for row in rows} == {("photo.png", "a cat", "red")}
    assert relative_files(read_only) == before


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--image", "4", "--head", "L9.H0"], "--head L9.H0: there is no such head"),
        (["--image", "4", "--label", "dogs"], "holds no labels; run headspan textspan and headspan label"),
        (["--image", "no-such-file"], "--image no-such-file: is neither an index"),
        (["--image", os.devnull], "neither an index"),
        (["--image", __file__], "is no image that headspan can use"),
        (["--image", "4", "--out", f"{__file__}/map.png"], "the picture cannot be written there"),
        (["--image", "4", "--opacity", "2"], "--opacity 2 is out of range; give one above 0 and up to 1"),
        (["--image", "4", "--image", __file__], "is no image that headspan can use"),
    ],
)
def test_the_command_refuses_what_it_cannot_map_before_it_loads_the_model(
    toy_run: ToyRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    complaint: str,
) -> None:
    refuse_the_model(monkeypatch)
    for command in (
        ["segment", "--text", "never embedded"],
        ["contrast", "--text", "never embedded", "--against", "x"],
    ):
        assert main([command[0], str(toy_run.path), *command[1:], *given]) == 2
        (last,) = capsys.readouterr().err.splitlines()
        assert complaint in last


def test_maps_of_one_head_refuse_images_before_the_model_is_loaded(
    toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_the_model(monkeypatch)
    for images, complaint in ((99, "image 99 does not exist"), ([0, __file__], "is no image that headspan can use")):
        with pytest.raises(HeadspanError, match=complaint):
            hs.explore.head_maps(toy_store, "never embedded", (1, 2), images)
    with pytest.raises(SettingsError, match="layer 9"):
        hs.explore.head_maps(toy_store, "never embedded", (9, 0), 0)


def test_a_result_is_frozen(toy_store: hs.Store) -> None:
    maps = segment(toy_store, 0, np.ones(24, np.float32))
    assert isinstance(maps, TextMaps)
    with pytest.raises(AttributeError):
        maps.names = ()  # type: ignore[misc]
