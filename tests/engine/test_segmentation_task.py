"""The segmentation table: scenes with known masks, compared with dense contributions, torch and scikit-learn."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import headspan as hs
from headspan.errors import SettingsError, SourceError
from headspan.originals.masks import read_masks
from headspan.store.head_space import Head, stored_heads
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.segmentation import Segmentation
from headspan.tasks.task import Task
from headspan.world import scene, write_world_shards
from headspan.world.drawing import render
from headspan.world.factors import COLOURS, SHAPES
from tests.conftest import ToyRun, write_tar
from tests.tolerances import FLOAT32_SUM

SEED, SCENES = 11, 40
TASK = Task(
    "objects",
    "segmentation",
    classes=tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    templates=("a {c}", "a picture of a {c}"),
)
# An ablated set with repeats, a whole layer, every head, and none.
SETS: tuple[tuple[Head, ...], ...] = (
    (),
    ((5, 0), (2, 3), (5, 0)),
    tuple((5, head) for head in range(6)),
    tuple((layer, head) for layer in range(6) for head in range(6)),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Scenes of the image world with their masks, by the trained reference model, with patches."""
    folder = tmp_path_factory.mktemp("scenes")
    shards = write_world_shards(folder / "shards", SCENES, SEED, images_per_shard=23)
    settings = {"model": "reference", "layers": "all", "emit": ("heads", "patches"), "device": "cpu"}
    hs.precompute([shards], out=folder / "run.zarr", decode="exact", **settings)
    return hs.open(folder / "run.zarr")


@pytest.fixture(scope="module")
def evaluation(store: hs.Store) -> Segmentation:
    """The task on these scenes."""
    found = evaluation_of(TASK, store)
    assert isinstance(found, Segmentation)
    return found


def by_brute_force(store: hs.Store, images: Sequence[int], vectors: np.ndarray, heads: Sequence[Head]) -> np.ndarray:
    """Correct pixels, intersections, unions and average precisions from dense contributions of every patch."""
    every = stored_heads(store)
    dense = {layer: np.stack([store.patches(i, layer) for i in range(store.images)]) for layer in store.layers}
    embeddings = store.embedding.astype(np.float64) / store.norm[:, 2:]
    for layer, head in set(heads):
        own = store.head(layer, head).astype(np.float64)
        embeddings += own.mean(axis=0) - own
        dense[layer][:, :, head] = dense[layer][:, :, head].mean(axis=0, dtype=np.float64)
    total = sum(dense[layer][:, store.prefix_tokens :, head].astype(np.float64) for layer, head in every)
    maps = np.asarray(total) @ vectors.T.astype(np.float64)
    scores = embeddings @ vectors.T
    _, masks = render([scene(SEED, "train", index) for index in range(SCENES)], 64, masks=True)
    rows = []
    for image in images:
        chosen = maps[image, :, scores[image].argmax()] - maps[image].mean(axis=1)
        square = torch.from_numpy(chosen).reshape(1, 1, 8, 8)
        pixels = torch.nn.functional.interpolate(square, scale_factor=8, mode="bilinear")[0, 0].clip(0).numpy()
        spread = np.ptp(pixels)
        # Pixels beyond the centres of a map's outer patches are equal, up to the last bits of torch's interpolation.
        pixels = np.round((pixels - pixels.min()) / spread, 12) if spread else np.zeros((64, 64))
        named, mask = pixels > pixels.mean(), masks[image] > 0
        both = np.concatenate([mask.ravel(), ~mask.ravel()])
        rows.append(
            [
                (named == mask).sum(),
                (named & mask).sum(),
                (named | mask).sum(),
                (~named & ~mask).sum(),
                (~named | ~mask).sum(),
                average_precision_score(
                    both, np.concatenate([pixels.ravel(), 1 - pixels.ravel()]) if spread else both * 0
                ),
            ]
        )
    return np.array(rows, np.float64)


def test_outcomes_equal_brute_force_whole_and_without_heads(store: hs.Store, evaluation: Segmentation) -> None:
    found = evaluation.outcomes_of(SETS)
    assert found.shape == (len(SETS), SCENES, 7)
    for heads, outcomes in zip(SETS, found, strict=True):
        wanted = by_brute_force(store, range(SCENES), evaluation.classes.vectors, heads)
        # A pixel at the threshold may fall on either side of it in float32.
        assert np.abs(outcomes[:, [0, 2, 3, 4, 5]] - wanted[:, :5]).max() <= 2
        np.testing.assert_allclose(outcomes[:, 6], wanted[:, 5], atol=1e-4)
        assert (outcomes[:, 1] == 64 * 64).all()
        np.testing.assert_allclose(evaluation.outcomes_without(heads), outcomes, rtol=FLOAT32_SUM, atol=2)


def test_the_trained_models_maps_find_the_objects(evaluation: Segmentation) -> None:
    figures = evaluation.figures(evaluation.outcomes_without([]))
    assert next(iter(figures)) == evaluation.headline == "miou"
    assert figures["miou"] > figures["chance"] + 0.1
    assert figures["pixel_accuracy"] > 0.75
    assert figures["map"] > 0.85
    every_head_ablated = evaluation.figures(evaluation.outcomes_without(SETS[-1]))
    assert every_head_ablated["miou"] < figures["miou"] - 0.1


def test_figures_are_global_sums_and_resampling_repeats_images(evaluation: Segmentation) -> None:
    outcomes = evaluation.outcomes_without([])
    counts = np.random.default_rng(0).multinomial(SCENES, np.full(SCENES, 1 / SCENES), size=4).astype(np.float32)
    _, masks = render([scene(SEED, "train", index) for index in range(SCENES)], 64, masks=True)
    objects = (masks > 0).mean()
    figures = evaluation.figures(outcomes)
    assert figures["chance"] == pytest.approx(max(objects, 1 - objects) / 2)
    assert figures["pixel_accuracy"] == pytest.approx(outcomes[:, 0].sum() / (SCENES * 64 * 64))
    assert evaluation.resampled(outcomes, np.ones((1, SCENES), np.float32))[0] == pytest.approx(figures["miou"])
    for draw, found in zip(counts, evaluation.resampled(outcomes, counts), strict=True):
        repeated = np.repeat(outcomes, draw.astype(int), axis=0)
        assert found == pytest.approx(evaluation.figures(repeated)["miou"])
    assert evaluation.correct(outcomes) is None


def test_some_images_are_scored_alone(store: hs.Store, evaluation: Segmentation) -> None:
    some = evaluation_of(TASK, store, images=[2, 30])
    assert isinstance(some, Segmentation)
    assert repr(some) == f"Segmentation(objects: 2 images, {len(TASK.classes)} classes)"
    np.testing.assert_allclose(
        some.outcomes_without(SETS[1]), evaluation.outcomes_without(SETS[1])[[2, 30]], rtol=FLOAT32_SUM, atol=2
    )


def test_masks_are_those_of_the_scenes(store: hs.Store) -> None:
    _, wanted = render([scene(SEED, "train", index) for index in range(SCENES)], 64, masks=True)
    found = dict(read_masks(store, range(SCENES)))
    assert sorted(found) == list(range(SCENES))
    for image, mask in found.items():
        np.testing.assert_array_equal(mask, wanted[image] > 0)


def test_a_head_that_is_not_stored_is_refused(evaluation: Segmentation) -> None:
    with pytest.raises(SettingsError, match="head 6 does not exist; a layer's heads are 0 to 5"):
        evaluation.outcomes_without([(5, 6)])


def test_a_store_without_patches_or_masks_is_refused(
    store: hs.Store, toy_store: hs.Store, tmp_path: Path, toy_run: ToyRun
) -> None:
    with pytest.raises(SettingsError, match=r"needs masks, and none of 67 images has one; put KEY.mask.png beside"):
        evaluation_of(TASK, toy_store)
    hs.precompute(out=tmp_path / "heads.zarr", **toy_run.settings(emit=("heads",)))
    with pytest.raises(
        SettingsError, match=r"needs patches, which are not stored; precompute with --emit heads,patches"
    ):
        evaluation_of(TASK, hs.open(tmp_path / "heads.zarr"))


def picture(height: int, width: int, kind: str, seed: int = 0) -> bytes:
    """Random pixels."""
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    """An encoded image."""
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return encoded.getvalue()


def block(height: int, width: int) -> np.ndarray:
    """A mask whose object is a rectangle away from the middle."""
    mask = np.zeros((height, width), bool)
    mask[: height // 2, width // 3 :] = True
    return mask


def as_seen(mask: np.ndarray) -> np.ndarray:
    """The mask resized with its short side to 32 and cropped in the middle, by nearest neighbour written out."""
    height, width = mask.shape
    scale = min(height, width) / 32
    rows, columns = int(height / scale), int(width / scale)
    at = [
        np.minimum(((np.arange(count) + 0.5) * size / count).astype(int), size - 1)
        for count, size in ((rows, height), (columns, width))
    ]
    resized = mask[np.ix_(*at)]
    top, left = round((rows - 32) / 2), round((columns - 32) / 2)
    return resized[top : top + 32, left : left + 32]


def test_masks_of_all_kinds_are_read_as_the_model_saw_their_images(tmp_path: Path, toy_run: ToyRun) -> None:
    tall, wide = block(80, 40), block(33, 70)
    palette = Image.fromarray(tall.astype(np.uint8) * 3, "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 7, 7, 7, 5, 5, 5])
    colour = np.zeros((33, 70, 4), np.uint8)
    colour[..., 3] = 255
    colour[wide, 2] = 40
    members = [
        ("a/0.jpg", picture(80, 40, "JPEG")),
        ("a/0.mask.png", saved(palette)),
        ("a/1.png", picture(33, 70, "PNG")),
        ("a/1.mask.bmp", saved(Image.fromarray(colour[..., :3]), "BMP")),
        ("a/2.jpg", picture(40, 40, "JPEG")),
        ("a/2.txt", b"an image without a mask"),
        ("a/3.left.png", picture(33, 70, "PNG")),
        ("a/3.right.png", picture(33, 70, "PNG")),
        ("a/3.left.mask.png", saved(Image.fromarray(colour))),
        ("a/3.mask.png", saved(Image.fromarray(~wide))),
    ]
    shard = write_tar(tmp_path / "masks.tar", members)
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(shards=[str(shard)]))
    store = hs.open(tmp_path / "run.zarr")
    assert store.samples(columns=["member"])["member"].to_pylist() == [
        "a/0.jpg",
        "a/1.png",
        "a/2.jpg",
        "a/3.left.png",
        "a/3.right.png",
    ]
    found = dict(read_masks(store, np.arange(store.images)))
    wanted = {0: as_seen(tall), 1: as_seen(wide), 3: as_seen(wide), 4: as_seen(~wide)}
    assert sorted(found) == sorted(wanted)
    for image, mask in wanted.items():
        np.testing.assert_array_equal(found[image], mask)
    notes: list[str] = []
    evaluation = evaluation_of(TASK, store, lambda event: notes.append(event.note))
    assert evaluation.items == 4  # type: ignore[union-attr]
    assert "task objects: 1 image without a mask left out" in notes


def test_masks_in_a_packed_tar_that_come_before_their_images_are_read(tmp_path: Path, toy_run: ToyRun) -> None:
    masks = [block(33, 70), ~block(33, 70), block(33, 70)[::-1]]
    members = [("3.png", picture(40, 40, "PNG"))]
    for number, mask in enumerate(masks):
        members += [(f"{number}.mask.png", saved(Image.fromarray(mask))), (f"{number}.png", picture(33, 70, "PNG"))]
    packed = tmp_path / "masks.tar.gz"
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "masks.tar", members).read_bytes()))
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(shards=[str(packed)]))
    found = dict(read_masks(hs.open(tmp_path / "run.zarr"), [3, 1, 2, 0]))
    assert sorted(found) == [1, 2, 3]
    for number, mask in enumerate(masks, 1):
        np.testing.assert_array_equal(found[number], as_seen(mask))


def test_masks_beside_listed_files_are_read(tmp_path: Path, toy_run: ToyRun) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "b.jpg").write_bytes(picture(33, 70, "JPEG"))
    (images / "b.mask.png").write_bytes(saved(Image.fromarray(block(33, 70))))
    (images / "c.jpg").write_bytes(picture(40, 40, "JPEG"))
    (tmp_path / "list.txt").write_text("images/b.jpg\nimages/c.jpg\n")
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(shards=[str(tmp_path / "list.txt")]))
    found = dict(read_masks(hs.open(tmp_path / "run.zarr"), [0, 1]))
    assert list(found) == [0]
    np.testing.assert_array_equal(found[0], as_seen(block(33, 70)))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (saved(Image.fromarray(block(40, 40))), "has 40 x 40 pixels, but its image 70 x 33; write masks as large as"),
        (b"no image", "not an image, or its header is broken"),
        (saved(Image.fromarray(block(33, 70)))[:60], "cannot be decoded"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named(mask: bytes, sentence: str, tmp_path: Path, toy_run: ToyRun) -> None:
    shard = write_tar(tmp_path / "bad.tar", [("0.png", picture(33, 70, "PNG")), ("0.mask.png", mask)])
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(shards=[str(shard)]))
    with pytest.raises(SourceError, match=f"bad.tar: the mask of 0.png: {sentence}"):
        list(read_masks(hs.open(tmp_path / "run.zarr"), [0]))


def test_some_stored_layers_are_said(store: hs.Store, tmp_path: Path) -> None:
    shards = [shard.url for shard in store.shards()]
    settings = {"model": "reference", "layers": "last2", "emit": ("heads", "patches"), "device": "cpu"}
    hs.precompute(shards[:1], out=tmp_path / "part.zarr", **settings)
    notes: list[str] = []
    evaluation_of(TASK, hs.open(tmp_path / "part.zarr"), lambda event: notes.append(event.note))
    assert "task objects: maps are through the 2 stored of 6 layers; published ones are through all" in notes


def test_maps_without_positive_values_name_every_pixel_background(evaluation: Segmentation) -> None:
    # One class alone minus the mean over all classes is nothing.
    alone = replace(evaluation, along=np.zeros_like(evaluation.along))
    outcomes = alone.outcomes_without([])
    assert (outcomes[:, 2] == 0).all()
    np.testing.assert_allclose(outcomes[:, 6], 0.5)


def test_a_store_that_has_moved_with_its_shards_finds_its_masks(store: hs.Store, tmp_path: Path) -> None:
    shutil.copytree(store.path.parent, tmp_path / "moved")
    moved = hs.open(tmp_path / "moved" / "run.zarr")
    assert len(dict(read_masks(moved, [0, 39]))) == 2
