"""The demo of descriptions, small: scenes, store, training, writing, inspection and report in one command."""

from __future__ import annotations

from pathlib import Path

import pytest

import headspan as hs
from headspan import describe_demo
from headspan.cli.main import main
from headspan.demo_folder import MARKER
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.saved import read_descriptions
from headspan.describe.rewards.reward import Reward
from headspan.describe.training.settings import TrainingSettings


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of few images and a single step."""
    for name, value in {
        "IMAGES": 36,
        "IMAGES_PER_SHARD": 36,
        "ASKED": QUESTIONS[:1],
        "SETTINGS": TrainingSettings(steps=1, batch=4, generations=2),
        "MEASURED": 0,
        "SAMPLES": 1,
        "BEST_OF": 2,
        "TRIED": 1,
    }.items():
        monkeypatch.setattr(describe_demo, name, value)


@pytest.mark.slow
def test_the_demo_trains_writes_inspects_and_reports(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["describe", "--demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {MARKER, "report.html", "run.zarr", "shapes.trained", "shards"}
    store = hs.open(out / "run.zarr")
    trained, untrained = (read_descriptions(store, run) for run in ("shapes", "shapes-untrained"))
    for found in (trained, untrained):
        assert found.inspection is not None
        assert found.inspection.judges == ("annotations",)
        # Rewards are those of the saved texts, computed anew.
        classes = hs.describe.described_classes(store, key="objects.shape")
        reward = Reward(store, classes, found.target)
        assert found.rewards == pytest.approx(reward.of(found.texts, found.class_of.tolist()), abs=1e-4)
    assert trained.adapter_sha256 is not None
    assert untrained.adapter_sha256 is None
    assert "best sentence" in printed
    assert f"{trained.quality['reward']:.2f}" in printed
    assert trained.texts[0] in (out / "report.html").read_text(encoding="utf-8")


def test_describe_without_a_command_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe"]) == 2
    assert "describe needs a command (train, write, show, inspect) or --demo" in capsys.readouterr().err
