"""The reference model: its size, how it loads, and whether its card and scores agree with its weights and log."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
import torch

from headspan.demo import IMAGES, SEED, SPLIT
from headspan.model.load import load_model
from headspan.world import FACTORS
from headspan.world.checks import GroundTruth
from headspan.world.checks_json import ground_truth_as_json
from headspan.world.reference_scores import CONTRASTIVE_ONLY, RANDOM, TRAINED, reference_scores
from tools.score_reference import ABOUT, END, PAGES, with_table
from tools.score_tables import card_table

FOLDER = Path(str(files("headspan.world") / "reference"))
WEIGHTS = FOLDER / "weights.safetensors"
SCORES = json.loads((FOLDER / "scores.json").read_text())


def test_its_weights_need_less_than_sixteen_megabytes_in_the_wheel() -> None:
    assert len(zlib.compress(WEIGHTS.read_bytes(), 6)) < 16e6


def test_open_clip_loads_it_from_its_files_and_gives_the_same_embedding() -> None:
    loaded = load_model("reference", None)
    open_clip.add_model_config(FOLDER / "headspan-reference.json")
    plain = open_clip.create_model("headspan-reference", pretrained=str(WEIGHTS)).eval()
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.encode_image(pixels), loaded.clip.encode_image(pixels))


def test_it_can_be_loaded_with_random_weights() -> None:
    at_random, again, trained = (load_model("reference", name) for name in ("random:0", "random:0", None))
    assert at_random.weights_sha256 == again.weights_sha256 != trained.weights_sha256


@pytest.mark.parametrize(("name", "pretrained"), [(TRAINED, None), (RANDOM, "random:0")])
def test_the_shipped_scores_are_of_these_weights(name: str, pretrained: str | None) -> None:
    assert SCORES["models"][name]["weights_sha256"] == load_model("reference", pretrained).weights_sha256


def test_the_shipped_scores_are_complete_and_over_the_same_scenes() -> None:
    assert SCORES["made_by"] == "python -m tools.score_reference"
    assert SCORES["scenes"] == {"split": SPLIT, "seed": SEED, "images": IMAGES}
    found = reference_scores()
    assert list(found) == list(SCORES["models"]) == [TRAINED, CONTRASTIVE_ONLY, RANDOM]
    assert len({model["weights_sha256"] for model in SCORES["models"].values()}) == 3
    for name, scores in found.items():
        assert json.loads(json.dumps(ground_truth_as_json(scores))) == SCORES["models"][name]["scores"]
        assert tuple(scores.zero_shot) == FACTORS
        assert scores.about == ABOUT[name]
        for factor, each in scores.zero_shot.items():
            assert (each.chance, each.images) == (
                found[TRAINED].zero_shot[factor].chance,
                found[TRAINED].zero_shot[factor].images,
            )


@pytest.mark.parametrize(("name", "step"), [(TRAINED, 7200), (CONTRASTIVE_ONLY, 5600)])
def test_the_shipped_scores_agree_with_the_log_of_their_step(name: str, step: int) -> None:
    lines = map(json.loads, (FOLDER / "log.jsonl").read_text().splitlines())
    logged = next(line for line in lines if line["step"] == step)
    assert ("spread" in logged) == (name == TRAINED)
    for factor, each in reference_scores()[name].zero_shot.items():
        # The log is over other scenes of the same kind: both shares have a sampling error.
        error = 4 * math.sqrt(2 * 0.25 / each.images)
        assert each.share == pytest.approx(logged[factor], abs=error), factor


@pytest.mark.parametrize(("page", "begin", "table"), PAGES)
def test_the_tables_of_scores_show_the_shipped_scores(
    page: Path, begin: str, table: Callable[[Mapping[str, GroundTruth]], str]
) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_table(text, begin, table(reference_scores())) == text
    if page.parent == FOLDER:
        assert begin in text


def test_a_new_table_replaces_only_the_text_between_its_markers() -> None:
    page = f"before\n<!-- x -->\nold\n{END}\nafter\n<!-- y -->\nother\n{END}\n"
    assert with_table(page, "<!-- x -->", "| new |") == page.replace("old", "| new |")
    assert with_table(page, "<!-- z -->", "| new |") == page


def test_the_tables_show_every_score_of_every_model() -> None:
    scores = reference_scores()
    models = list(scores.values())
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in card_table(scores).splitlines()}
    for factor in FACTORS:
        cells = rows[f"zero-shot, {factor.replace('_', ' ')}"]
        assert cells[1:4] == [f"{100 * model.zero_shot[factor].share:.1f} %" for model in models]
    assert rows["heads with CCS 5, all concepts"][1:4] == [f"{sum(model.high_heads.values())}" for model in models]
    assert rows["maps, average precision"][1:4] == [f"{100 * model.maps.average_precision:.1f} %" for model in models]
    for model, column in zip(models, range(1, 4), strict=True):
        for check in model.neighbours:
            wanted = f"{100 * check.through_heads:.1f} % ({100 * check.through_all:.1f} %)"
            assert rows[f"neighbours, {check.concept}"][column] == wanted
        for ablation in model.ablations:
            own, other = (f"{round(100 * loss, 1) + 0.0:.1f}" for loss in ablation.own_and_other_loss(model.zero_shot))
            assert rows[f"ablation, {ablation.concept}"][column] == f"{own} ({other})".replace("-", "−")


@pytest.mark.parametrize("factor", FACTORS)
def test_its_card_has_the_accuracies_of_its_log(factor: str) -> None:
    last = json.loads((FOLDER / "log.jsonl").read_text().splitlines()[-1])
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"\| {factor.replace('_', ' ')} \| ([0-9.]+) % \|", card)
    assert found is not None
    assert float(found[1]) == round(100 * last[factor], 1)
    assert f"{last['step']:,} steps" in card
