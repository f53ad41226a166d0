"""Zero-shot classification: a folder of CLIP-benchmark unchanged, compared with open_clip, and figures by hand."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from PIL import Image

import headspan as hs
from headspan.errors import SettingsError
from headspan.model.load import load_model
from headspan.tasks.classification import Classification, task_classes
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task
from headspan.tasks.truths import class_truths
from headspan.tasks.zero_shot import Classes
from headspan.world import scene
from headspan.world.drawing import render
from tests.conftest import encoded_image, write_tar
from tests.engine.benchmark_folder import TEMPLATES, write_benchmark_folder

IMAGES = 131


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in CLIP-benchmark's layout: the colours of scenes of the image world, in three tars."""
    path = tmp_path_factory.mktemp("sets") / "wds_world-colours"
    write_benchmark_folder(path, [scene(3, "train", index) for index in range(IMAGES)], 50)
    return path


@pytest.fixture(scope="module")
def store(folder: Path) -> hs.Store:
    """The images of that folder by the trained reference model."""
    out = folder.parent / "colours.zarr"
    hs.precompute([f"{folder}/test/{{0..2}}.tar"], out=out, model="reference", device="cpu", decode="exact")
    return hs.open(out)


@pytest.fixture(scope="module")
def open_clips_logits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits and true classes by open_clip alone: tarfile, PIL, open_clip's transform, tokenizer and classifier."""
    loaded = load_model("reference", None)
    names = (folder / "classnames.txt").read_text().splitlines()
    templates = [line.replace("{c}", "{}").format for line in TEMPLATES]
    vectors = build_zero_shot_classifier(loaded.clip, loaded.tokenizer(), names, templates)
    transform = image_transform_v2(PreprocessCfg(**loaded.clip.visual.preprocess_cfg), is_train=False)
    pixels, truths = [], []
    for path in sorted((folder / "test").glob("*.tar")):
        with tarfile.open(path) as tar:
            data = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in sorted(data):
            if name.endswith(".webp"):
                pixels.append(transform(Image.open(io.BytesIO(data[name]))))
            else:
                truths.append(int(data[name]))
    with torch.no_grad():
        embeddings = loaded.clip.encode_image(torch.stack(pixels), normalize=True)
        return (100 * embeddings @ vectors).numpy(), np.array(truths)


def test_a_folder_of_clip_benchmark_gives_the_accuracy_that_open_clip_computes(
    folder: Path, store: hs.Store, open_clips_logits: tuple[np.ndarray, np.ndarray]
) -> None:
    logits, truths = open_clips_logits
    task = read_task(folder)
    assert (task.name, task.metric, task.templates) == ("world-colours", "accuracy", TEMPLATES)
    evaluation = evaluation_of(task, store)
    assert isinstance(evaluation, Classification)
    np.testing.assert_array_equal(evaluation.truths, truths)
    outcomes = evaluation.outcomes(store.embedding)
    np.testing.assert_array_equal(outcomes, logits.argmax(axis=1))
    figures = evaluation.figures(outcomes)
    assert figures["accuracy"] == pytest.approx((logits.argmax(axis=1) == truths).mean())
    assert figures["accuracy"] > figures["chance"] + 0.3
    assert figures["chance"] == pytest.approx(max(np.bincount(truths)) / IMAGES)
    recalls = [(logits.argmax(axis=1) == truths)[truths == number].mean() for number in np.unique(truths)]
    assert figures["mean_per_class"] == pytest.approx(np.mean(recalls))
    assert next(iter(figures)) == evaluation.headline == "accuracy"


def test_an_evaluation_of_some_images_takes_the_embeddings_of_these(folder: Path, store: hs.Store) -> None:
    some = [3, 40, 41, 130]
    whole, part = (evaluation_of(read_task(folder), store, images=each) for each in (None, some))
    assert isinstance(part, Classification)
    assert len(part.truths) == 4
    np.testing.assert_array_equal(part.outcomes(store.embedding[some]), whole.outcomes(store.embedding)[some])


def test_class_vectors_are_unit_means_of_unit_prompts_also_if_names_repeat(store: hs.Store) -> None:
    task = Task("birds", "accuracy", classes=("crane", "ring", "crane"), templates=("a {c}", "{c} or {c}"))
    found = task_classes(task, store)
    prompts = hs.text_vectors(store, ["a crane", "crane or crane", "a ring", "ring or ring"]).astype(np.float64)
    wanted = prompts.reshape(2, 2, -1).mean(axis=1)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors, wanted[[0, 1, 0]], atol=1e-6)
    assert found.names == task.classes
    with pytest.raises(SettingsError, match="task birds: has no templates"):
        task_classes(replace(task, templates=()), store)


@pytest.mark.parametrize("images", [1, 3, 257])
def test_a_resampled_accuracy_is_that_of_the_repeated_images(images: int) -> None:
    random = np.random.default_rng(images)
    names = ("a", "b", "c")
    truths = random.integers(-1, 3, images + 1)
    truths[-1] = 1
    evaluation = Classification(
        Task("t", "accuracy", classes=names), Classes(names, np.eye(3, 4, dtype=np.float32)), truths
    )
    embeddings = random.standard_normal((len(truths), 4)).astype(np.float32)
    outcomes = evaluation.outcomes(embeddings)
    known = np.flatnonzero(truths >= 0)
    np.testing.assert_array_equal(outcomes, [int(np.argmax(embeddings[image, :3])) for image in known])
    counts = random.multinomial(len(known), np.full(len(known), 1 / len(known)), size=5).astype(np.float32)
    for draw, found in zip(counts, evaluation.resampled(outcomes, counts), strict=True):
        drawn = np.repeat(outcomes == truths[known], draw.astype(int))
        assert found == pytest.approx(drawn.mean())
    assert evaluation.figures(outcomes)["accuracy"] == pytest.approx(np.mean(outcomes == truths[known]))


def test_a_class_without_images_has_no_accuracy_and_does_not_count_in_the_mean() -> None:
    names = ("a", "b", "c")
    evaluation = Classification(
        Task("t", "accuracy", classes=names), Classes(names, np.eye(3, dtype=np.float32)), np.array([0, 0, 0, 2])
    )
    outcomes = evaluation.outcomes(np.eye(3, dtype=np.float32)[[0, 0, 1, 2]])
    np.testing.assert_allclose(evaluation.per_class(outcomes), [2 / 3, np.nan, 1])
    assert evaluation.figures(outcomes) == {"accuracy": 0.75, "mean_per_class": pytest.approx(5 / 6), "chance": 0.75}
    np.testing.assert_array_equal(evaluation.correct(outcomes), [True, True, False, True])


def labelled_store(
    tmp_path: Path, toy_config: Path, companions: dict[int, dict[str, bytes]], images: int = 6
) -> hs.Store:
    """A store of random images, each with the companions that `companions` gives it."""
    members = []
    for row in range(images):
        members.append((f"{row}.png", encoded_image(row, kind="PNG")))
        members += [(f"{row}.{extension}", data) for extension, data in companions.get(row, {}).items()]
    shard = write_tar(tmp_path / "some.tar", members)
    hs.precompute(
        [str(shard)],
        out=tmp_path / "some.zarr",
        model=str(toy_config),
        pretrained="random:0",
        device="cpu",
        layers="all",
    )
    return hs.open(tmp_path / "some.zarr")


TASK = Task("pets", "accuracy", classes=("Maine Coon", "dog", "bird"), templates=("a {c}",))


def test_classes_come_from_numbers_then_from_names_in_the_metadata(tmp_path: Path, toy_config: Path) -> None:
    store = labelled_store(
        tmp_path,
        toy_config,
        {
            0: {"cls": b"1", "json": b'{"class_name": "bird"}'},
            1: {"json": b'{"class_name": "maine_coon", "species": 2, "tame": true}'},
            2: {"json": b'{"class_name": "2"}'},
            3: {"cls": b"-1", "json": b"[3]"},
            4: {"json": b'{"species": "dog", "tame": false}'},
        },
    )
    notes: list[str] = []
    truths = class_truths(store, TASK, lambda event: notes.append(event.note))
    np.testing.assert_array_equal(truths, [1, 0, 2, -1, -1, -1])
    assert notes == ["task pets: 3 images without a class left out"]
    by_key = replace(TASK, settings={"class_key": "species"})
    np.testing.assert_array_equal(class_truths(store, by_key), [-1, 2, -1, -1, 1, -1])
    np.testing.assert_array_equal(
        class_truths(store, replace(TASK, settings={"class_key": "tame"})), [-1, 1, -1, -1, 0, -1]
    )
    np.testing.assert_array_equal(class_truths(store, TASK, images=[1, 2]), [0, 2])
    with pytest.raises(SettingsError, match=r"none of 6 images has one \(the key 'genus' of the metadata\)"):
        class_truths(store, replace(TASK, settings={"class_key": "genus"}))


def test_classes_without_names_are_refused(tmp_path: Path, toy_config: Path) -> None:
    store = labelled_store(tmp_path, toy_config, {0: {"cls": b"0"}, 1: {"cls": b"7"}, 2: {"cls": b"3"}})
    sentence = "2 images of class 7, but task pets names classes 0 to 2; add the missing names"
    with pytest.raises(SettingsError, match=sentence):
        evaluation_of(TASK, store)


def test_a_class_name_that_the_task_does_not_have_is_refused(tmp_path: Path, toy_config: Path) -> None:
    store = labelled_store(tmp_path, toy_config, {0: {"json": b'{"class_name": "cow"}'}, 1: {"cls": b"1"}})
    with pytest.raises(SettingsError, match=r"1 class name of images \(first: 'cow'\) is not among the 3 classes of"):
        evaluation_of(TASK, store)


def test_names_without_images_are_a_note(tmp_path: Path, toy_config: Path) -> None:
    store = labelled_store(tmp_path, toy_config, {row: {"cls": b"1"} for row in range(6)})
    notes: list[str] = []
    evaluation = evaluation_of(TASK, store, lambda event: notes.append(event.note))
    assert "task pets: no image of 2 classes (Maine Coon, bird)" in notes
    assert isinstance(evaluation, Classification)
    assert repr(evaluation) == "Classification(pets: 6 images, 3 classes)"


def test_a_store_without_classes_is_refused(toy_store: hs.Store) -> None:
    with pytest.raises(
        SettingsError, match=r"needs classes of images, but none of 67 images has one \(`.cls` members with"
    ):
        evaluation_of(TASK, toy_store)


def test_an_unknown_metric_is_refused(toy_store: hs.Store) -> None:
    task = replace(TASK)
    # Type checks of the tests let no other way.
    object.__setattr__(task, "metric", "recall")
    with pytest.raises(SettingsError, match="task pets: metric 'recall' does not exist; metrics: accuracy"):
        evaluation_of(task, toy_store)


def test_a_read_only_store_is_evaluated(folder: Path, store: hs.Store, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "copy.zarr"))
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    found = hs.open(copy)
    before = sorted(copy.rglob("*"))
    evaluation_of(read_task(folder), found).outcomes(found.embedding)
    assert sorted(copy.rglob("*")) == before


def test_a_retrieval_folder_of_clip_benchmark_is_asked_with_every_caption(tmp_path: Path) -> None:
    folder = tmp_path / "wds_flickr8k"
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    members = []
    for index, image in enumerate(render([scene(5, "train", index) for index in range(7)], 64)):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "webp", lossless=True)
        captions = f"a picture of scene {index}\nscene {index}, drawn"
        members += [(f"s{index:07d}.txt", captions.encode()), (f"s{index:07d}.webp", encoded.getvalue())]
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    hs.precompute([f"{folder}/test/0.tar"], out=tmp_path / "run.zarr", model="reference", device="cpu")
    store = hs.open(tmp_path / "run.zarr")
    task = read_task(folder)
    outcomes = evaluation_of(task, store).outcomes(store.embedding)  # type: ignore[union-attr]
    images = store.embedding / np.linalg.norm(store.embedding, axis=1, keepdims=True)
    texts = [line for name, data in members if name.endswith("txt") for line in data.decode().splitlines()]
    scores = hs.text_vectors(store, texts) @ images.T
    wanted = [(scores[query] > scores[query, query // 2] + 1e-6).sum() for query in range(14)]
    np.testing.assert_array_equal(outcomes[:, 0], wanted)


def test_images_that_could_not_be_used_have_no_class(tmp_path: Path, toy_config: Path) -> None:
    members = [(f"{row}.png", encoded_image(row, kind="PNG")[: 40 if row == 1 else None]) for row in range(4)]
    members += [(f"{row}.cls", b"2") for row in range(4)]
    shard = write_tar(tmp_path / "some.tar", sorted(members))
    settings = {"model": str(toy_config), "pretrained": "random:0", "device": "cpu", "layers": "all"}
    hs.precompute([str(shard)], out=tmp_path / "some.zarr", **settings)
    store = hs.open(tmp_path / "some.zarr", include_failed=True)
    np.testing.assert_array_equal(class_truths(store, TASK), [2, -1, 2, 2])
