"""Saved descriptions: a run of its own kind, which gains an inspection, is listed and removed, and needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.describe.asked.questions import QUESTIONS, fewer
from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
from headspan.describe.rewards.target import Target
from headspan.errors import SettingsError, StoreError
from headspan.events import Progress
from headspan.store.kept_runs import list_runs
from headspan.store.write.removal import remove_runs
from tests.engine.hand_made_descriptions import hand_made_descriptions


def _same(one: Any, other: Any) -> None:
    for each in fields(one):
        values, others = getattr(one, each.name), getattr(other, each.name)
        if each.name == "lineage":
            continue
        if isinstance(values, np.ndarray):
            assert values.dtype == others.dtype, each.name
            np.testing.assert_array_equal(values, others, each.name)
        elif each.name == "inspection" and values is not None:
            _same(values, others)
        else:
            # NaN equals NaN in their texts.
            assert repr(values) == repr(others), each.name


def test_descriptions_come_back_as_they_were_saved_with_target_log_and_inspection(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    whole = hand_made_descriptions()
    head = hand_made_descriptions(
        False, run="head", target=Target(((1, 0), (2, 1)), True, None, 1.5), adapter_sha256=None, quality={}, seed=7
    )
    # Two classes and three questions.
    best = np.arange(6, dtype=np.float32)
    head = replace(head, best_of=64, best_texts=tuple("abcdef"), best_rewards=best)
    for descriptions in (whole, head):
        saved = save_descriptions(store, descriptions)
        found = read_descriptions(toy_copy, descriptions.run)
        _same(descriptions, found)
        assert found.lineage == saved.lineage is not None
    with pytest.raises(StoreError, match=r"has the descriptions runs hand, head; name one with --run"):
        read_descriptions(store)
    save_descriptions(store, replace(head, run="short", best_texts=("a",)))
    with pytest.raises(StoreError, match=r"1 best texts of 6 prompts"):
        read_descriptions(store, "short")


def test_an_inspection_is_added_to_its_run_and_another_one_is_refused(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    plain = save_descriptions(store, hand_made_descriptions(inspected=False))
    inspected = hand_made_descriptions()
    assert save_descriptions(store, inspected).lineage == plain.lineage
    _same(inspected, read_descriptions(store))
    assert inspected.inspection is not None
    other = replace(inspected, inspection=replace(inspected.inspection, judges=("judge-2", "ann")))
    with pytest.raises(StoreError, match=r"descriptions run 'hand' already exists with other content; .*--overwrite"):
        save_descriptions(store, other)
    save_descriptions(store, other, overwrite=True)
    _same(other, read_descriptions(store))


def test_writing_the_same_descriptions_again_keeps_their_inspection_and_others_say_that_it_goes(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    notes: list[Progress] = []
    inspected = save_descriptions(store, hand_made_descriptions())
    plain = replace(inspected, inspection=None)
    for overwrite in (False, True):
        _same(inspected, save_descriptions(store, plain, overwrite, notes.append))
    assert [each.note for each in notes] == ["descriptions/hand already has the same content; it is unchanged"] * 2
    others = replace(plain, seed=plain.seed + 1)
    _same(others, save_descriptions(store, others, True, notes.append))
    assert notes[2].note == (
        "the inspection of the earlier descriptions/hand goes with it; run headspan describe inspect again"
    )
    assert read_descriptions(store).inspection is None


def test_fewer_questions_are_spread_over_all_of_them() -> None:
    assert fewer(QUESTIONS, None) == QUESTIONS
    assert fewer("abcdefg", 3) == ("a", "c", "e")
    assert len(set(fewer(QUESTIONS, 13))) == 13
    with pytest.raises(SettingsError, match=r"^26 questions: there are 25; ask for 1 to 25$"):
        fewer(QUESTIONS, 26)


def test_runs_of_descriptions_are_listed_with_what_wrote_them_and_removed(
    toy_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = hs.open(toy_copy)
    save_descriptions(store, hand_made_descriptions())
    save_descriptions(store, hand_made_descriptions(False, run="plain", adapter_sha256=None))
    listed = {each.name: each.settings for each in list_runs(store) if each.kind == "descriptions"}
    assert listed == {
        "hand": "5 texts of 2 classes by small-model, inspected by judge-1, ann",
        "plain": "5 texts of 2 classes by small-model, untrained",
    }
    assert main(["runs", str(toy_copy), "--remove", "descriptions/hand"]) == 0
    assert "removed descriptions/hand" in capsys.readouterr().out
    assert remove_runs(store, "plain").removed == ("descriptions/plain",)
    with pytest.raises(StoreError, match=r"has no descriptions run; run headspan describe write$"):
        read_descriptions(store)


def test_descriptions_as_a_table_name_classes_verdicts_and_attributes() -> None:
    table = json.loads(hand_made_descriptions().as_json())
    assert table[1] == {
        "class": "ball",
        "question": "What does a photo of a {c} show?",
        "text": "click to enlarge",
        "reward": 24.0,
        "times": 2,
        "greedy": False,
        "log_ratio": 1.5,
        "cut": False,
        "ended": True,
        "verdict": "spurious",
        "attribute": None,
    }
    assert [row["verdict"] for row in table] == ["visual", "spurious", "non-visual", "visual", None]
    assert "verdict" not in json.loads(hand_made_descriptions(inspected=False).as_json())[0]


def test_descriptions_are_read_without_torch(toy_copy: Path) -> None:
    save_descriptions(hs.open(toy_copy), hand_made_descriptions())
    code = "import sys, headspan as hs; hs.describe.read_descriptions(sys.argv[1]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code, str(toy_copy)], capture_output=True, text=True, check=True)
    assert "headspan.describe.descriptions.saved" in loaded.stdout.split()
    assert not {"torch", "transformers"} & {*loaded.stdout.split()}


def test_a_setting_of_another_type_is_refused_in_a_sentence(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    save_descriptions(store, hand_made_descriptions())
    # Without the record of its files, the changes below are not refused as damage.
    shutil.rmtree(toy_copy / "records" / "results")
    file = toy_copy / "descriptions" / "hand" / "zarr.json"
    good = json.loads(file.read_text())
    refused = {}
    for name in good["attributes"]:
        for bad in ("<b>", ["<b>"], 5):
            file.write_text(json.dumps({**good, "attributes": {**good["attributes"], name: bad}}))
            try:
                read_descriptions(toy_copy)
            except StoreError as error:
                refused[name, str(bad)] = str(error)
    every = {(name, str(bad)) for name in good["attributes"] for bad in ("<b>", ["<b>"], 5)}
    # A model may have any name, and a seed be any number.
    accepted = {("model", "<b>"), ("classes_from", "<b>"), ("adapter_sha256", "<b>"), ("seed", "5")}
    assert {each for each in every - refused.keys() if each[0] != "lineage"} == accepted
    said = "the descriptions run 'hand' holds settings that headspan does not write"
    assert all(said in each for each in refused.values())
