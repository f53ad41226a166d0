"""The judge of the image world: what it calls spurious, visual and non-visual, where the truth was planted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency

import headspan as hs
from headspan.cli.main import main
from headspan.describe import DescribedClasses, Verdict
from headspan.describe.descriptions.result import NON_VISUAL, SPURIOUS, VISUAL
from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
from headspan.errors import SettingsError
from headspan.world import Scene, write_world_shards
from headspan.world.annotated_judge import LEAST_RATIO, LEAST_SCORE, AnnotatedJudge, annotated_judge, clearly_more
from headspan.world.sentences import VALUES, sentence
from tests.conftest import ToyRun
from tests.engine.hand_made_descriptions import hand_made_descriptions

NOTHING = Verdict(SPURIOUS)
SHAPES = VALUES["shape"]


def classes_of(scenes: list[Scene]) -> DescribedClasses:
    """Classes by the shape of the first object."""
    return DescribedClasses(SHAPES, np.array([SHAPES.index(each.things[0].shape) for each in scenes]), "key objects")


@pytest.fixture(scope="module")
def planted(held_out: list[Scene]) -> tuple[DescribedClasses, list[dict[str, Any]], list[str]]:
    """Scenes whose stars are mostly found in forests, whose circles can always be enlarged, and whose rings are cloudy.

    The other captions hold one of the same phrases now and then.
    """
    random = np.random.default_rng(0)
    metadata, captions = [], []
    for each in held_out:
        shape, own = each.things[0].shape, each.metadata()
        forests = random.random() < (0.8 if shape == "star" else 0.05)
        enlarged = shape == "circle" or random.random() < 0.05
        if shape == "ring" and random.random() < 0.7:
            own["background"] = "cloudy"
        metadata.append(own)
        captions.append(f"a {shape}{', click to enlarge' * enlarged}{' found in forests' * forests}")
    return classes_of(held_out), metadata, captions


@pytest.fixture(scope="module")
def judge(planted: tuple[DescribedClasses, list[dict[str, Any]], list[str]]) -> AnnotatedJudge:
    return AnnotatedJudge(*planted)


@pytest.mark.parametrize(
    ("text", "name", "verdict"),
    [
        # Planted words that no image shows, alone and beside the class's name.
        ("found in forests", "star", Verdict(NON_VISUAL, "habitat")),
        ("a star found in forests", "star", Verdict(NON_VISUAL, "habitat")),
        ("a circle found in forests", "circle", NOTHING),
        ("a thing found in forests", "circle", NOTHING),
        # An empty phrase says nothing, although it always goes with circles.
        ("click to enlarge", "circle", NOTHING),
        ("a circle, click to enlarge", "circle", NOTHING),
        # What only rings show, and what all classes show alike.
        ("an object on a cloudy background", "ring", Verdict(VISUAL, "background")),
        ("a ring on a cloudy background", "ring", Verdict(VISUAL, "background")),
        ("an object on a cloudy background", "heart", NOTHING),
        ("a large red object", "ring", NOTHING),
        # Another class's shape, and words that the world does not know.
        ("a heart", "ring", NOTHING),
        ("lorem ipsum", "ring", NOTHING),
        ("", "ring", NOTHING),
    ],
)
def test_verdicts_follow_what_was_planted(judge: AnnotatedJudge, text: str, name: str, verdict: Verdict) -> None:
    assert judge(text, name) == verdict


def test_every_part_has_its_own_verdict_and_the_shares_that_it_follows_from(
    judge: AnnotatedJudge, planted: tuple[DescribedClasses, list[dict[str, Any]], list[str]]
) -> None:
    name, forests, enlarge = (
        each for each in judge.parts("star found in forests click to enlarge", "star") if each.part.value
    )
    classes, _, captions = planted
    star = classes.numbers == SHAPES.index("star")
    held = np.array(["forests" in caption for caption in captions])
    assert (forests.share, forests.other_share) == (held[star].mean(), held[~star].mean())
    # The name is in every image of the class, and teaches nothing that a reader does not know.
    assert (name.verdict, name.share) == (NOTHING, 1.0)
    assert (enlarge.verdict, math.isnan(enlarge.share)) == (NOTHING, True)


def test_only_planted_values_are_called_frequent_and_none_in_random_classes(
    judge: AnnotatedJudge, held_out: list[Scene]
) -> None:
    texts = {value: sentence({factor: value}).text for factor, of in VALUES.items() for value in of}
    # The same words may name a value of two factors, such as a gradient.
    found = {(name, text) for name in SHAPES for text in texts.values() if judge(text, name) != NOTHING}
    assert found == {
        ("ring", sentence({"background": "cloudy"}).text),
        ("star", sentence({"phrase": "found in forests"}).text),
    }
    numbers = np.random.default_rng(1).integers(0, 12, len(held_out))
    random = AnnotatedJudge(
        DescribedClasses(tuple("abcdefghijkl"), numbers, "drawn"), [each.metadata() for each in held_out], [None] * 1000
    )
    assert not [(name, text) for name in "abcdefghijkl" for text in texts.values() if random(text, name) != NOTHING]


def test_clearly_more_is_a_test_of_two_shares_with_a_least_ratio() -> None:
    random = np.random.default_rng(2)
    said = []
    for _ in range(300):
        images, others = random.integers(5, 400, 2).tolist()
        count, other_count = int(random.integers(1, images + 1)), int(random.integers(1, others + 1)) // 3
        table = [[count, images - count], [other_count, others - other_count]]
        said.append(clearly_more(count, images, other_count, others))
        if not other_count or not table[0][1] + table[1][1]:
            continue
        more = count / images > other_count / others
        # The square of the difference in standard errors is χ² of the table, without Yates's correction.
        clear = chi2_contingency(table, correction=False)[0] >= LEAST_SCORE**2
        assert said[-1] == (more and clear and count / images >= LEAST_RATIO * other_count / others)
    assert 50 < sum(said) < 250
    assert not clearly_more(3, 3, 0, 0)
    assert not clearly_more(0, 3, 0, 5)


def test_other_classes_and_other_images_are_refused(
    judge: AnnotatedJudge, planted: tuple[DescribedClasses, list[dict[str, Any]], list[str]]
) -> None:
    with pytest.raises(SettingsError, match=r"class 'cat' is not one of the judge's classes \(circle, square, "):
        judge("a cat", "cat")
    classes, scenes, captions = planted
    with pytest.raises(SettingsError, match=r"class '\w+' is not a scene of the image world, so annotations cannot"):
        AnnotatedJudge(classes, [*scenes[:-1], {"class_name": "cat"}], captions)


def test_the_command_judges_a_store_of_scenes(
    tmp_path: Path, toy_run: ToyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_world_shards(tmp_path / "shards", 97, seed=3)
    path = tmp_path / "run.zarr"
    hs.precompute(out=path, **toy_run.settings(shards=[shards], emit=("heads",), batch_size=97, unit_images=97))
    store = hs.open(path)
    hand = hand_made_descriptions(inspected=False, classes=("1", "6"), classes_from="key count")
    # With six objects, one is more often at the top than with a single one.
    top = "a picture of a shape at the top"
    texts = ("a single star", "click to enlarge", top, top, "six stars")
    save_descriptions(store, hs.describe.Descriptions(**{**_fields(hand), "texts": texts}))
    assert main(["describe", "inspect", str(path), "--annotations", "--csv", str(tmp_path / "table.csv")]) == 0
    inspection = read_descriptions(path).inspection
    assert inspection is not None
    assert inspection.judges == ("annotations",)
    assert inspection.verdicts.tolist() == [SPURIOUS, SPURIOUS, SPURIOUS, VISUAL, SPURIOUS]
    assert inspection.attributes == ("", "", "", "position", "")
    assert "judged by annotations" in capsys.readouterr().out
    assert "vote of annotations" in (tmp_path / "table.csv").read_text()
    classes = hs.describe.described_classes(store, key="count", names=("1", "6"))
    scenes = [json.loads(text) for text in store.samples(None, ["metadata"])["metadata"].to_pylist()]
    again = AnnotatedJudge(classes, scenes, [None] * 97)
    assert [again(text, "6") for text in texts] == [annotated_judge(store, classes)(text, "6") for text in texts]
    with pytest.raises(SettingsError, match=r"descriptions/hand: the classes come from task birds, but annotations"):
        annotated_judge(store, hand_made_descriptions(classes_from="task birds"))


def _fields(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}
