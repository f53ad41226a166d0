"""Declarations of tasks: those that ship, files of users, folders of CLIP-benchmark, and sentences about faults."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from headspan.errors import SettingsError
from headspan.tasks.clip_benchmark import read_benchmark
from headspan.tasks.task_file import read_task, shipped_tasks

# Names and sizes that the data sets' publications state.
CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "country211": 211,
    "food101": 101,
    "imagenet": 1000,
    "imagenet-a": 200,
    "imagenet-r": 200,
    "imagenet-segmentation": 1000,
    "oxford-pets": 37,
    "waterbirds": 2,
}
WITHOUT_CLASSES = {"fairface": "skew", "msr-vtt": "retrieval", "msvd": "retrieval", "didemo": "retrieval"}
VALID = 'metric = "accuracy"\nclasses = ["cat", "dog"]\ntemplates = ["a {c}"]\n'


def write(tmp_path: Path, text: str, name: str = "pets.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def benchmark(tmp_path: Path, classes: str | None = "cat\ndog\n", templates: str | None = "a {c}\n") -> Path:
    """A folder in CLIP-benchmark's layout, without images."""
    folder = tmp_path / "wds_pets"
    folder.mkdir()
    if classes is not None:
        (folder / "classnames.txt").write_text(classes)
    if templates is not None:
        (folder / "zeroshot_classification_templates.txt").write_text(templates)
    return folder


def test_every_shipped_declaration_is_complete() -> None:
    assert set(shipped_tasks()) == {*CLASSES, *WITHOUT_CLASSES}
    for name in shipped_tasks():
        task = read_task(name)
        assert (task.name, len(task.classes)) == (name, CLASSES.get(name, 0))
        assert task.metric == WITHOUT_CLASSES.get(name, task.metric)
        assert task.title
        assert task.source.startswith("https://")
        assert "headspan precompute" in task.layout or ".cls" in task.layout
        assert task.published
        assert task.published_note.endswith(".")
        assert all("whole" in figures for figures in task.published.values())
        assert not any("_" in each for each in (*task.classes, *task.templates))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "food101"])
def test_classes_are_in_the_order_of_folders_named_by_them(name: str) -> None:
    names = [each.replace(" ", "_") for each in read_task(name).classes]
    assert names == sorted(names)


def test_pets_are_in_alphabetical_order_of_small_letters() -> None:
    names = read_task("oxford-pets").classes
    assert list(names) == sorted(names, key=str.lower)
    assert {len(each) for each in read_task("oxford-pets").concepts.values()} == {12, 25, 37}


def test_imagenet_and_its_subsets_have_open_clips_names_and_prompts() -> None:
    task = read_task("imagenet")
    assert task.classes == tuple(IMAGENET_CLASSNAMES)
    assert task.templates == tuple(template("{c}") for template in OPENAI_IMAGENET_TEMPLATES)
    # "missile" occurs twice, and only the first one is in ImageNet-R.
    places = {name: place for place, name in reversed(list(enumerate(IMAGENET_CLASSNAMES)))}
    for name, first, last in (("imagenet-a", "stingray", "rapeseed"), ("imagenet-r", "goldfish", "acorn")):
        classes = read_task(name).classes
        assert (classes[0], len(set(classes))) == (first, 200)
        assert last in classes
        numbers = [places[each] for each in classes]
        assert numbers == sorted(numbers)


def test_groups_of_classes_divide_imagenet_a_and_r_by_animals_and_objects() -> None:
    imagenet = read_task("imagenet")
    animals = set(imagenet.classes[:398])
    for name in ("imagenet-a", "imagenet-r"):
        task = read_task(name)
        assert set(task.concepts["animals"]) == animals & set(task.classes)
        assert (*task.concepts["animals"], *task.concepts["objects"]) == task.classes


def test_published_values_that_are_known_to_matter_are_those_of_the_papers() -> None:
    assert read_task("imagenet-a").published["ViT-L-14 laion2b_s32b_b82k"] == {
        "whole": 53.8,
        "high": 42.44,
        "low": 52.93,
    }
    assert read_task("imagenet-segmentation").published["ViT-L-14 laion2b_s32b_b82k"]["map: whole"] == 81.61
    assert "Not comparable" in read_task("oxford-pets").published_note


def test_reading_a_task_and_importing_tasks_imports_no_torch() -> None:
    code = (
        "import sys, headspan.prune; from headspan.tasks import classification, evaluations, segmentation; "
        "from headspan.tasks.task_file import read_task; read_task('imagenet-a'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_file_gives_every_field_of_a_task(tmp_path: Path) -> None:
    text = """
        title = "Pets: cats and dogs"
        source = "my camera"
        metric = "worst_group"
        classes = ["cat", "dog", "fish"]
        templates = ["a {c}", "  many   {c} "]
        groups = ["place"]
        [settings]
        class_key = "animal"
        [concepts]
        furry = ["cat", "dog"]
        wet = "2"
        animals = "all"
        first = "0-1"
        [published."ViT-B-32 openai"]
        whole = 75
    """
    task = read_task(write(tmp_path, text, "My Pets.toml"))
    assert (task.name, task.title, task.source, task.metric) == (
        "My Pets",
        "Pets: cats and dogs",
        "my camera",
        "worst_group",
    )
    assert task.templates == ("a {c}", "many {c}")
    assert task.concepts == {
        "furry": ("cat", "dog"),
        "wet": ("fish",),
        "animals": ("cat", "dog", "fish"),
        "first": ("cat", "dog"),
    }
    assert task.groups == ("place",)
    assert (task.settings, task.published) == ({"class_key": "animal"}, {"ViT-B-32 openai": {"whole": 75.0}})


def test_groups_of_images_are_merged_where_a_task_has_groups(tmp_path: Path) -> None:
    text = 'metric = "skew"\ngroups = ["place"]\n[merged]\nland = ["field", "road"]'
    assert read_task(write(tmp_path, text)).merged == {"land": ("field", "road")}
    groups = text.partition("\n")[2]
    of_groups = read_task(write(tmp_path, VALID.replace("accuracy", "worst_group") + groups))
    assert of_groups.merged == {"land": ("field", "road")}
    with pytest.raises(SettingsError, match="metric accuracy has no use for merged; remove the field"):
        read_task(write(tmp_path, VALID + groups.partition("\n")[2]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("metric =", "pets.toml: is not TOML ("),
        (VALID.replace("metric", "metrics"), "unknown field metrics; a task's fields are name, metric, "),
        (VALID.partition("\n")[2], "the field metric is missing; give one of accuracy, worst_group, "),
        (VALID.replace("accuracy", "recall"), "metric 'recall' does not exist; give one of accuracy, "),
        (VALID.replace('"accuracy"', "3"), 'metric must be a text, such as metric = "…"; it is 3'),
        (VALID.replace('"a {c}"', '"a {}"'), "template 'a {}' has no {c}, the place of a class's name; write it"),
        (VALID.replace('["a {c}"]', "[]"), "metric accuracy needs the field templates, or a folder in CLIP-benchmark"),
        (VALID.replace('["cat", "dog"]', "[]"), "metric accuracy needs the field classes, or a folder"),
        (VALID.replace('"dog"', "3"), "classes must be a list of texts or \"imagenet\"; it is ['cat', 3]"),
        (VALID.replace('"dog"', '" "'), "classes must be a list of texts"),
        (VALID.replace('"dog"', '"cat"'), "class 'cat' occurs twice; give every class a name of its own"),
        (VALID + 'groups = ["race"]', "metric accuracy has no use for groups; remove the field"),
        (VALID + 'folder = "wds_pets"', "has classes and a folder, which gives them too; remove one of the two"),
        (VALID + 'classes_at = "0"', 'classes_at picks from classes = "imagenet"; name the classes themselves'),
        (VALID.replace('["cat", "dog"]', '"imagenet"') + 'classes_at = "7-3"', "classes_at '7-3': write places from"),
        (VALID + '[concepts]\nwet = ["fish"]', "group wet has 'fish', which is not a class; correct the name"),
        (VALID + '[concepts]\nwet = "2"', "group wet '2': write places from 0 to 1, such as 0-9, 12"),
        (VALID + "[concepts]\nwet = []", "group wet has no classes; name at least one"),
        (VALID + "concepts = 3", "concepts must be a table of groups of classes; it is 3"),
        (VALID + "[settings]\nk = 3", "unknown setting k of metric accuracy; settings: class_key"),
        (VALID + "[settings]\nclass_key = []", "settings must be a table of numbers, texts and booleans"),
        (VALID + '[published]\n"ViT-B-32 openai" = 3', "published must hold numbers, as in [published."),
        ('metric = "skew"', "metric skew needs the field groups"),
        ('metric = "skew"\ngroups = ["race"]\ntemplates = ["a {c}"]', "template 'a {c}' has no {p}, the place of a"),
        ('metric = "retrieval"\nclasses = ["a"]', "metric retrieval has no use for classes; remove the field"),
        (VALID.replace("accuracy", "worst_group"), "metric worst_group needs the field groups"),
    ],
)
def test_a_fault_of_a_file_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read_task(write(tmp_path, text))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "pets.toml"))


def test_a_name_that_is_nothing_lists_the_shipped_tasks(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"'cifar' is not a task: name a TOML file, a folder with a classnames\.txt, or"
    ):
        read_task("cifar")
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    with pytest.raises(SettingsError, match="byte 9 is not UTF-8; name a TOML file with a task"):
        read_task(tmp_path / "latin.toml")
    with (tmp_path / "images.tar").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(SettingsError, match=r"images.tar: is too large for a declaration; name a TOML file"):
        read_task(tmp_path / "images.tar")


def test_a_folder_gives_classes_and_templates_as_clip_benchmark_reads_them(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, " cat \r\n\r\nIcelandic sheepdog\n\n", "a {c}\n{c}, a type of pet.\n")
    (folder / "test").mkdir()
    for number in range(3):
        (folder / "test" / f"{number}.tar").touch()
    (folder / "test" / "nshards.txt").write_text("3\n")
    task = read_task(folder)
    assert (task.name, task.metric) == ("pets", "accuracy")
    # An empty line is a class with an empty name, as one of the public sets has, unless it is at the end.
    assert task.classes == ("cat", "", "Icelandic sheepdog")
    assert task.templates == ("a {c}", "{c}, a type of pet.")
    assert f"headspan precompute '{folder}/test/{{0..2}}.tar'" in task.layout


def test_a_retrieval_folder_asks_with_all_captions(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, None, None)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    task = read_benchmark(folder)
    assert (task.metric, task.classes, task.settings) == ("retrieval", (), {"captions": "all"})
    (folder / "dataset_type.txt").write_text("multilabel\n")
    with pytest.raises(SettingsError, match="says 'multilabel', but headspan scores classification with one class"):
        read_task(folder)


@pytest.mark.parametrize(
    ("classes", "templates", "sentence"),
    [
        (None, "a {c}", r"wds_pets: has no classnames.txt, which names the classes of CLIP-benchmark's data sets"),
        ("cat", None, r"wds_pets: has no zeroshot_classification_templates.txt; write one, such as the line"),
        ("\n\n", "a {c}", r"classnames.txt: is empty; write the name of each class on a line"),
        ("cat", "\n", r"templates.txt: is empty; write a prompt a line, such as: a photo of a \{c\}."),
        ("cat", "a {c}\na {}", r"'a \{\}' has no \{c\}, the place of a class's name; write it, as in: a photo of a"),
    ],
)
def test_a_fault_of_a_folder_is_one_sentence(
    classes: str | None, templates: str | None, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read_task(benchmark(tmp_path, classes, templates))


def test_tars_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    (folder / "test").mkdir()
    (folder / "test" / "0.tar").touch()
    (folder / "test" / "nshards.txt").write_text("4")
    with pytest.raises(SettingsError, match=r"test: 3 tars of 4 missing \(first: 1.tar\); download again"):
        read_task(folder)
    (folder / "test" / "nshards.txt").write_text("many")
    with pytest.raises(SettingsError, match=r"nshards.txt: says 'many'; write the number of tars beside it"):
        read_task(folder)
    # Whoever has precomputed the images may delete the tars.
    (folder / "test" / "0.tar").unlink()
    assert read_task(folder).classes == ("cat", "dog")


def test_a_declaration_takes_the_classes_of_a_folder(tmp_path: Path) -> None:
    names = list(reversed(read_task("cifar10").classes))
    folder = benchmark(tmp_path, "\n".join(names), "one {c}")
    task = read_task(f"cifar10@{folder}")
    assert (task.name, task.classes, task.templates) == ("cifar10", tuple(names), ("one {c}",))
    assert task.concepts["animals"] == read_task("cifar10").concepts["animals"]
    assert task.published == read_task("cifar10").published
    # A group of all classes is then all of the folder's.
    assert read_task(f"country211@{folder}").concepts == {"locations": tuple(names)}
    file = write(tmp_path, f'metric = "accuracy"\nfolder = "{folder.name}"\n[concepts]\nfirst = "0-1"', "own.toml")
    assert read_task(file).concepts == {"first": ("truck", "ship")}
    with pytest.raises(SettingsError, match="has no class 'Abyssinian', which a group of oxford-pets names"):
        read_task(f"oxford-pets@{folder}")
    with pytest.raises(SettingsError, match=r"metric retrieval takes no classes from .*wds_pets, which is of accuracy"):
        read_task(f"msvd@{folder}")
    with pytest.raises(SettingsError, match=r"nowhere: not a folder; name one with a classnames\.txt"):
        read_task(f"cifar10@{tmp_path / 'nowhere'}")


def test_declarations_are_files_of_the_package() -> None:
    folder = files("headspan.tasks") / "declarations"
    assert sorted(each.name for each in folder.iterdir()) == sorted(f"{name}.toml" for name in shipped_tasks())
