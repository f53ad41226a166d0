"""Accuracy by what texts reconstruct of heads, against TEXTSPAN's dense reconstructions of the contributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError
from headspan.prune import Classes, reconstruction
from headspan.prune.direct.judged import Judged
from headspan.spans.description import span_store
from headspan.spans.result import HeadSpans
from headspan.spans.saved import read_spans
from headspan.tasks.classification import Classification
from headspan.tasks.task_file import read_task
from tests.conftest import ToyRun, relative_files
from tests.oracle import textspan as oracle_textspan
from tests.tolerances import FLOAT16_STORE, FLOAT32_SUM, relative_error

TEXTS = [f"a {what} in {where}" for what in ("dog", "red car", "tree", "5 cups") for where in ("rain", "Rome", "a box")]


@pytest.fixture
def judged_embeddings(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The embeddings that are classified, in order: reconstructions, the whole model's, and means."""
    found: list[np.ndarray] = []
    plain = Judged.right

    def keep(self: Judged, embeddings: np.ndarray) -> np.ndarray:
        found.append(embeddings)
        return plain(self, embeddings)

    monkeypatch.setattr(Judged, "right", keep)
    return found


def classes_and_truths(store: hs.Store) -> tuple[Classes, np.ndarray]:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((7, store.joint)).astype(np.float32)
    truths = (store.embedding @ vectors.T).argmax(axis=1)
    truths[::4] = -1
    truths[1::4] = random.integers(0, 7, len(truths[1::4]))
    return Classes(tuple("abcdefg"), vectors), truths


def dense(
    store: hs.Store, layers: Sequence[int], vectors: np.ndarray, count: int | None, mlps: np.ndarray
) -> np.ndarray:
    """The MLPs, the mean of the attention of other layers, and reconstructions; full contributions without `count`."""
    found = mlps.astype(np.float64)
    for layer in range(store.all_layers):
        for head in range(store.heads_per_layer):
            contributions = store.head(layer, head).astype(np.float64)
            if layer not in layers:
                found += contributions.mean(axis=0)
            elif count is None:
                found += contributions
            elif count == 0:
                found += contributions.mean(axis=0)
            else:
                found += oracle_textspan(contributions, vectors, count, 80)[2]
    return found


@pytest.mark.parametrize("layers", [(2,), (0, 2), (0, 1, 2)])
def test_reconstructions_are_textspans_own(
    layers: tuple[int, ...], toy_store: hs.Store, judged_embeddings: list[np.ndarray]
) -> None:
    spans = hs.textspan(toy_store, TEXTS, 12, layers=layers, draws=0)
    classes, truths = classes_and_truths(toy_store)
    known = np.flatnonzero(truths >= 0)
    found = reconstruction(toy_store, spans, classes, truths, texts=(12, 1, 5, 5))
    vectors = hs.text_vectors(toy_store, TEXTS)
    mlps = toy_store.mlps().sum(axis=1)
    whole = toy_store.embedding / toy_store.norm[:, 2:]
    wanted = [dense(toy_store, layers, vectors, count, mlps) for count in (None, 1, 5, 12)]
    wanted += [whole, dense(toy_store, layers, vectors, 0, mlps)]
    for embeddings, each in zip(judged_embeddings, wanted, strict=True):
        assert relative_error(embeddings, each[known]) < FLOAT16_STORE
    right = [int(((each[known] @ classes.vectors.T).argmax(axis=1) == truths[known]).sum()) for each in wanted]
    assert [found.full, *found.correct.values(), found.whole, found.means] == right
    assert list(found.correct) == [1, 5, 12]
    assert (found.images, found.layers) == (len(known), layers)
    table = found.to_frame()
    assert table["heads"].tolist() == ["whole model", "full contributions", *["reconstructions"] * 3, "means"]
    assert table["texts"].tolist()[2:] == [12, 5, 1, 0]
    assert table["accuracy"].tolist() == [table["correct"][row] / len(known) for row in range(6)]
    assert repr(found).startswith(f"Reconstruction({spans.run!r}: layers ")


def test_reconstructions_are_those_of_the_directions_that_textspan_found(
    toy_store: hs.Store, judged_embeddings: list[np.ndarray]
) -> None:
    # To float32's precision, where the oracle's contributions differ by their rounding.
    spans = hs.textspan(toy_store, TEXTS, 7, layers=[1, 2], rank=9, draws=0)
    classes, truths = classes_and_truths(toy_store)
    reconstruction(toy_store, spans, classes, truths, texts=[7])
    vectors = hs.text_vectors(toy_store, TEXTS)
    found = span_store(toy_store, vectors, 7, [1, 2], 9, toy_store.moments())
    wanted = judged_embeddings[0].astype(np.float64)
    for head, span in zip(spans.heads(), found, strict=True):
        contributions = toy_store.head(*head)[truths >= 0]
        wanted += span.reconstruct(contributions) - contributions
    assert relative_error(judged_embeddings[1], wanted) < FLOAT32_SUM


def test_a_store_of_the_last_layers_needs_its_mlps(
    toy_run: ToyRun, toy_store: hs.Store, tmp_path: Path, judged_embeddings: list[np.ndarray]
) -> None:
    hs.precompute(out=tmp_path / "a.zarr", **toy_run.settings(layers="last1", emit=("heads", "mlps")))
    hs.precompute(out=tmp_path / "b.zarr", **toy_run.settings(layers="last1", emit=("heads",)))
    stores = [toy_store, hs.open(tmp_path / "a.zarr"), hs.open(tmp_path / "b.zarr")]
    classes, truths = classes_and_truths(toy_store)
    every = [hs.textspan(store, TEXTS, 6, layers=[2], draws=0) for store in stores]
    for store, spans in zip(stores[:2], every, strict=False):
        reconstruction(store, spans, classes, truths)
    assert len(judged_embeddings) == 8
    for one, other in zip(judged_embeddings[:4], judged_embeddings[4:], strict=True):
        assert relative_error(one, other) < FLOAT16_STORE
    with pytest.raises(SettingsError, match=r"layers 2 of 3 and no mlps, so .*precompute with --emit heads,mlps"):
        reconstruction(stores[2], every[2], classes, truths)


def test_a_saved_run_is_reconstructed_without_a_model_and_nothing_is_written(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)
    classes, truths = classes_and_truths(store)
    wanted = reconstruction(store, hs.textspan(store, TEXTS, 6, run="mine", rank=4), classes, truths)
    before = relative_files(toy_copy)
    spans = read_spans(hs.open(toy_copy), "mine")
    found = reconstruction(hs.open(toy_copy), spans, classes, truths)
    assert found.as_csv() == wanted.as_csv()
    assert list(found.correct) == [5]
    # Runs of earlier versions record the rank in their settings only.
    earlier = replace(spans, ranks=None)
    assert reconstruction(hs.open(toy_copy), earlier, classes, truths).as_csv() == wanted.as_csv()
    assert relative_files(toy_copy) == before


def test_the_default_is_the_published_numbers_of_texts_that_the_run_has(toy_store: hs.Store) -> None:
    classes, truths = classes_and_truths(toy_store)
    for texts, counts in ((3, [3]), (5, [5]), (12, [5])):
        found = reconstruction(toy_store, hs.textspan(toy_store, TEXTS, texts, draws=0), classes, truths)
        assert list(found.correct) == counts


def test_runs_over_other_images_and_too_many_texts_are_refused(toy_store: hs.Store) -> None:
    classes, truths = classes_and_truths(toy_store)
    spans: HeadSpans = hs.textspan(toy_store, TEXTS, 5, draws=0)
    for count in (0, 6):
        with pytest.raises(SettingsError, match=rf"{count} texts of each head: textspan run .* has 5; ask for 1 to 5"):
            reconstruction(toy_store, spans, classes, truths, texts=[5, count])
    some = hs.textspan(toy_store, TEXTS, 5, draws=0, images=np.arange(40))
    for other in (some, replace(spans, images=66), replace(spans, stores=2)):
        with pytest.raises(SettingsError, match="but reconstructions are of all 67 images of this store; run headspan"):
            reconstruction(toy_store, other, classes, truths)


def test_the_command_prints_the_table_beside_chance_and_exports_it(
    toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)
    # The toy's images have no classes.
    known = np.arange(store.images) % 4 - 1
    monkeypatch.setattr("headspan.tasks.classification.class_truths", lambda *_: known)
    spans = hs.textspan(store, TEXTS, 6, run="mine", draws=0)
    declared = tmp_path / "toys.toml"
    declared.write_text('metric = "accuracy"\nclasses = ["dog", "red car", "tree"]\ntemplates = ["a {c}"]\n')
    of_task = Classification.of(read_task(declared), store)
    wanted = reconstruction(store, spans, of_task.classes, of_task.truths, [2, 6])
    before = relative_files(toy_copy)
    arguments = ["reconstruct", str(toy_copy), "--task", str(declared), "--texts", "2", "--texts", "6"]
    assert main([*arguments, "--csv", "-"]) == 0
    assert capsys.readouterr().out == wanted.as_csv()
    assert main(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:7]] == [
        *("heads", "whole", "full", "reconstructions", "reconstructions", "means", "chance")
    ]
    assert "textspan run 'mine'" in out[7]
    assert relative_files(toy_copy) == before


@pytest.mark.parametrize(
    ("task", "flags", "said"),
    [
        ("waterbirds", [], "--task waterbirds: has metric worst_group; reconstruct needs one of metric accuracy"),
        ("cifar10", ["--texts", "7"], "7"),
        ("cifar10", ["--spans", "other"], "other"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused_in_a_sentence(
    toy_copy: Path, task: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hs.textspan(hs.open(toy_copy), TEXTS, 6, run="mine", draws=0)
    assert main(["reconstruct", str(toy_copy), "--task", task, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("headspan: ")
    assert said in error
    assert "Traceback" not in error
