"""Training of dictionaries: a killed training ends with the same bytes, and damaged or foreign folders are refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headspan as hs
from headspan.cli.main import main
from headspan.errors import HeadspanError, SettingsError, StoreError
from headspan.events import NOTE, Progress
from headspan.features import Dictionary, Pairs, open_dictionary, open_pairs, train
from headspan.features.learners.kinds import LEARNERS, NON_NEGATIVE
from headspan.features.training import files
from headspan.features.training.settings import TrainingSettings
from tests.conftest import relative_files
from tests.warm_python import FORKED

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS: dict[str, Any] = {"features": 48, "k": 5, "dead_steps": 10, "steps": 40, "batch": 7, "device": "cpu"}


@pytest.fixture(scope="module")
def store(captioned_store: hs.Store) -> hs.Store:
    return captioned_store


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def pairs(store: hs.Store, kept: Path) -> Pairs:
    return open_pairs(store, keep=kept)


@pytest.fixture(scope="module")
def trained(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Dictionary:
    return train(pairs, tmp_path_factory.mktemp("trained") / "d", **SETTINGS)


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from headspan.features import train

def kill(event):
    if event.stage == "training" and event.done == 29:
        os.kill(os.getpid(), signal.SIGKILL)

import headspan.features.training.train as module
save = module.save_training
# A checkpoint every 13 steps, whatever the clock says.
module.save_training = lambda folder, learner, optimizer, done, losses: (
    None if done % 13 else save(folder, learner, optimizer, done, losses)
)
train(sys.argv[1], sys.argv[2], keep=sys.argv[3], checkpoint_seconds=0, on_progress=kill, **eval(sys.argv[4]))
"""


def test_a_killed_training_ends_with_the_bytes_of_an_uninterrupted_one(
    store: hs.Store, kept: Path, trained: Dictionary, tmp_path: Path
) -> None:
    out = tmp_path / "d"
    command = [sys.executable, "-c", FORKED + KILLED, str(store.path), str(out), str(kept), repr(SETTINGS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(StoreError, match="not finished; run the same command again to continue after its last check"):
        open_dictionary(out)
    notes: list[str] = []
    again = train(store.path, out, keep=kept, on_progress=lambda event: notes.append(event.note), **SETTINGS)
    assert "continued after step 26 of 40" in notes
    assert relative_files(out) == relative_files(trained.folder)
    assert again.sha256 == trained.sha256


@pytest.mark.parametrize("kind", LEARNERS)
def test_every_learner_continues_to_the_same_bytes(kind: str, pairs: Pairs, tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": 12, "dead_steps": 2}
    if kind == NON_NEGATIVE:
        del settings["k"]
    whole = train(pairs, tmp_path / "whole", kind, **settings)

    def stop(event: Progress) -> None:
        if event.stage == "training" and event.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pairs, tmp_path / "cut", kind, checkpoint_seconds=0, on_progress=stop, **settings)
    # What a process leaves that is killed while it writes.
    (tmp_path / "cut" / ".training.safetensors.0123abcd.tmp").write_bytes(b"half")
    before = torch.get_rng_state()
    train(pairs, tmp_path / "cut", kind, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert relative_files(tmp_path / "cut") == relative_files(whole.folder)


def test_a_learner_that_needs_texts_is_refused_without_them(store: hs.Store, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the learner non_negative learns from images with their captions, but the"):
        train(store, tmp_path / "d", NON_NEGATIVE, captions=False)
    assert not (tmp_path / "d").exists()


def test_a_finished_training_is_not_repeated_and_other_settings_are_refused(
    pairs: Pairs, trained: Dictionary, store: hs.Store, kept: Path
) -> None:
    before = relative_files(trained.folder)
    notes: list[str] = []
    again = train(pairs, trained.folder, on_progress=lambda event: notes.append(event.note), **SETTINGS)
    assert notes == [f"{trained.folder} was already trained with the same settings; it is unchanged"]
    assert again.sha256 == trained.sha256
    changes: list[tuple[dict[str, Any], str]] = [
        ({"lr": 0.5}, r"\(lr 0.0004, now 0.5\)"),
        ({"features": 64}, r"\(features 48, now 64\)"),
        ({"learner": "topk"}, r"\(learner batch_topk, now topk\)"),
        ({"seed": 1}, r"\(seed 0, now 1\)"),
    ]
    for change, sentence in changes:
        with pytest.raises(SettingsError, match=sentence + "; choose another --out, or delete the folder"):
            train(pairs, trained.folder, **{**SETTINGS, **change})
    with pytest.raises(SettingsError, match=r"texts true, now false|pairs 35, now 36"):
        train(store, trained.folder, captions=False, keep=kept, **SETTINGS)
    assert relative_files(trained.folder) == before


def test_training_explains_more_than_its_start(pairs: Pairs, tmp_path: Path) -> None:
    found = train(pairs, tmp_path / "d", "topk", **{**SETTINGS, "steps": 150, "lr": 5e-3, "k": 8})
    losses = json.loads((found.folder / "losses.json").read_text())
    assert [losses[0]["step"], losses[-1]["step"]] == [1, 150]
    assert losses[-1]["total"] < 0.5 * losses[0]["total"]
    (block,) = pairs.blocks(1000)
    codes = found.encode(block.images)
    assert ((codes > 0).sum(axis=1) <= 8).all()
    decoded = found.learner.decode(torch.from_numpy(codes)).detach().numpy()
    unexplained = ((decoded - block.images) ** 2).sum() / ((block.images - block.images.mean(axis=0)) ** 2).sum()
    assert unexplained < 0.6


def test_a_dictionary_opens_with_its_learner_space_and_checksum(trained: Dictionary, store: hs.Store) -> None:
    found = open_dictionary(trained.folder)
    assert (found.kind, found.features, found.settings["k"]) == ("batch_topk", 48, 5)
    assert found.space == open_pairs(store, captions=False).space
    assert found.trained["training"]["steps"] == 40
    vectors = np.random.default_rng(0).normal(size=(3, store.joint)).astype(np.float32)
    assert np.array_equal(found.encode(vectors), trained.encode(vectors))
    with pytest.raises(SettingsError, match=r"vectors of shape \[3, 5\] were given, but the dictionary is of the emb"):
        found.encode(vectors[:, :5])
    # The keys and the formula of SAELens' JumpReLU.
    weights = load_file(found.folder / "sae_weights.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    assert shapes == {"W_enc": [192, 48], "b_enc": [48], "W_dec": [48, 192], "b_dec": [192], "threshold": [48]}
    config = json.loads((found.folder / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("jumprelu", 192, 48)
    plain = (vectors - weights["b_dec"].numpy()) @ weights["W_enc"].numpy() + weights["b_enc"].numpy()
    plain *= plain > np.maximum(weights["threshold"].numpy(), 0)
    np.testing.assert_allclose(found.encode(vectors), plain, atol=1e-5)


def test_damaged_and_strange_folders_are_refused_in_one_sentence(
    trained: Dictionary, tmp_path: Path, pairs: Pairs
) -> None:
    def copy(name: str, **changed: bytes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in relative_files(trained.folder).items():
            (folder / file).write_bytes(changed.get(file.partition(".")[0], content))
        return folder

    with pytest.raises(StoreError, match="no such folder; give the folder that `headspan features train --out` wrote"):
        open_dictionary(tmp_path / "nowhere")
    weights = (trained.folder / "sae_weights.safetensors").read_bytes()
    with pytest.raises(StoreError, match=r"changed since they were written \(sha256 .{12}\); restore the folder"):
        open_dictionary(copy("changed", sae_weights=weights[:-1] + bytes([weights[-1] ^ 1])))
    with pytest.raises(StoreError, match=r"cfg\.json: cannot be read"):
        open_dictionary(copy("cut", cfg=(trained.folder / "cfg.json").read_bytes()[:-9]))
    config = json.loads((trained.folder / "cfg.json").read_text())
    config["headspan"]["settings"]["features"] = 49
    with pytest.raises(StoreError, match=r"W_dec is \[48, 192\], but the dictionary's settings need \[49, 192\]"):
        open_dictionary(copy("other", cfg=json.dumps(config).encode()))
    config["headspan"]["learner"] = "magic"
    with pytest.raises(StoreError, match="holds settings that headspan does not write"):
        open_dictionary(copy("magic", cfg=json.dumps(config).encode()))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not a dictionary that headspan trained; choose another --out"):
        train(pairs, tmp_path / "mine", **SETTINGS)


def test_a_dictionary_of_another_space_is_refused(trained: Dictionary, toy_store: hs.Store, store: hs.Store) -> None:
    with pytest.raises(SettingsError) as caught:
        open_pairs(toy_store, trained.space)
    assert "are of different spaces (the embedding, 192 numbers against the embedding, " in str(caught.value)
    space = type(trained.space)("embedding", 192, "0" * 64)
    with pytest.raises(SettingsError, match="image weights 000000000000 against "):
        open_pairs(store, space)
    trained.refuse_other(store)
    with pytest.raises(SettingsError, match=str(trained.folder)):
        trained.refuse_other(toy_store)


def test_impossible_settings_are_refused_before_anything_is_written(pairs: Pairs, tmp_path: Path) -> None:
    for change, sentence in (
        ({"k": 193, "features": 400}, "k is 193, but vectors have 192 numbers"),
        ({"k": 49}, "k is 49, but the dictionary has 48 features"),
        ({"k": 5, "colour": 3}, "no setting 'colour'"),
        ({"lr": -1.0}, "lr is -1.0, but must be above 0"),
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"epochs": 2}, "2 epochs and 40 steps: give one of both"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
    ):
        with pytest.raises(HeadspanError, match=sentence):
            train(pairs, tmp_path / "d", **{**SETTINGS, **change})
    assert not (tmp_path / "d").exists()


def test_a_damaged_checkpoint_says_what_to_delete(pairs: Pairs, tmp_path: Path) -> None:
    def stop(event: Progress) -> None:
        if event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pairs, tmp_path / "d", checkpoint_seconds=0, on_progress=stop, **SETTINGS)
    state = tmp_path / "d" / files.STATE
    state.write_bytes(state.read_bytes()[:-5])
    with pytest.raises(
        StoreError, match=r"training\.safetensors: cannot be read .*; delete this file to train from the"
    ):
        train(pairs, tmp_path / "d", **SETTINGS)
    state.unlink()
    train(pairs, tmp_path / "d", **SETTINGS)


def test_features_of_heads_are_learned_without_texts(store: hs.Store, tmp_path: Path) -> None:
    found = train(store, tmp_path / "d", "topk", space="heads", heads=[(5, 2)], **{**SETTINGS, "steps": 3})
    assert found.space.heads == ((5, 2),)
    again = open_pairs(store, open_dictionary(found.folder).space)
    assert again.space.scale == found.space.scale
    (block,) = again.blocks(100)
    assert found.encode(block.images).shape == (36, 48)


def test_a_loss_that_is_no_number_ends_the_training_in_one_sentence(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"the loss is (nan|inf) after \d+ steps?, so nothing was kept; choose a smaller --lr than"
    ):
        train(pairs, tmp_path / "d", "topk", **{**SETTINGS, "lr": 1e30, "clip": 0.0})
    assert not (tmp_path / "d").exists()
    train(pairs, tmp_path / "d", "topk", **SETTINGS)


def test_a_second_process_says_that_it_waits_and_then_finds_the_dictionary(pairs: Pairs, tmp_path: Path) -> None:
    """Locks are of open files, so a second opening in this process stands for another process."""
    notes: list[str] = []
    waiting = Event()

    def said(event: Progress) -> None:
        if event.stage == NOTE and "another process" in event.note:
            notes.append(event.note)
            waiting.set()

    def second() -> Dictionary:
        return train(pairs, tmp_path / "d", on_progress=said, **SETTINGS)

    with ThreadPoolExecutor(1) as threads:
        waiter: list[Future[Dictionary]] = []

        def first(event: Progress) -> None:
            if event.stage == "training" and event.done == 2:
                waiter.append(threads.submit(second))
                assert waiting.wait(30)

        found = train(pairs, tmp_path / "d", on_progress=first, **SETTINGS)
        assert waiter[0].result(30).sha256 == found.sha256
    assert notes == [
        f"another process is training into {tmp_path / 'd'}; waiting until it has finished (Ctrl-C leaves it alone)"
    ]


def test_the_rate_rises_stays_and_falls() -> None:
    settings = TrainingSettings(steps=100, lr=2.0, warmup=0.1, decay=0.2)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert rates[9:81] == [2.0] * 72
    assert rates[90] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)


def test_the_command_trains_prints_and_refuses(
    store: hs.Store, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d"
    command = ["features", "train", str(store.path), "--out", str(out), "--keep-captions", str(kept), "--steps", "2"]
    command += ["--batch-size", "9", "--features", "20", "--set", "aux_k=3", "--device", "cpu"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "20 features of the embedding, 192 numbers, learned by batch_topk" in said.out
    assert "2 steps of 9 of 35 pairs of images and captions" in said.out
    assert f"dictionary written to {out} (sha256 {open_dictionary(out).sha256[:12]})" in said.out
    assert "left out: 1 image that could not be used and 1 image without a caption" in said.err
    assert open_dictionary(out).settings["aux_k"] == 3
    for further, sentence in (
        (["--set", "aux_k"], "--set aux_k: write NAME=VALUE, as in aux_k=256"),
        (["--set", "features=3"], "--set features=3: features is given twice; give it once"),
        (["--head", "L5.H1", "--layers", "5"], "--head and --layers both choose heads; give one of them"),
        (["--head", "5.1"], "--head"),
        (["--lr", "1"], "is a dictionary with other settings (lr 0.0004, now 1.0)"),
    ):
        assert main([*command, *further]) == 2
        assert sentence in capsys.readouterr().err
