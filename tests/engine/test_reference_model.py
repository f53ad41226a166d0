"""The model that ships: small, loaded by headspan by name and by open_clip from its files, its card true to its log."""

from __future__ import annotations

import json
import re
import zlib
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
import torch

from headspan.model.load import load_model
from headspan.world import FACTORS

FOLDER = Path(str(files("headspan.world") / "reference"))
WEIGHTS = FOLDER / "weights.safetensors"


def test_its_weights_take_less_than_sixteen_megabytes_of_the_wheel() -> None:
    assert len(zlib.compress(WEIGHTS.read_bytes(), 6)) < 16e6


def test_open_clip_loads_it_from_its_files_and_gives_the_same_embedding() -> None:
    loaded = load_model("reference", None)
    open_clip.add_model_config(FOLDER / "headspan-reference.json")
    plain = open_clip.create_model("headspan-reference", pretrained=str(WEIGHTS)).eval()
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.encode_image(pixels), loaded.clip.encode_image(pixels))


def test_random_weights_of_its_shape_can_be_asked_for() -> None:
    at_random, again, trained = (load_model("reference", name) for name in ("random:0", "random:0", None))
    assert at_random.weights_sha256 == again.weights_sha256 != trained.weights_sha256


@pytest.mark.parametrize("factor", FACTORS)
def test_its_card_says_what_its_log_says(factor: str) -> None:
    last = json.loads((FOLDER / "log.jsonl").read_text().splitlines()[-1])
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    said = re.search(rf"\| {factor.replace('_', ' ')} \| ([0-9.]+) % \|", card)
    assert said is not None
    assert float(said[1]) == round(100 * last[factor], 1)
    assert f"{last['step']:,} steps" in card
