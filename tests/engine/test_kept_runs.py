"""What was computed stays: sequences of analyses, overwrites, removals and kills lose nothing, and mix nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import headspan as hs
from headspan.cli.main import main
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.labels import label_heads, read_labels
from headspan.concepts.votes import read_votes
from headspan.errors import NotSavedError, SettingsError, StoreError
from headspan.io.local import LocalStorage
from headspan.spans.result import HeadSpans
from headspan.spans.saved import read_spans
from headspan.store import results
from headspan.store.kept_runs import list_runs
from headspan.store.lineage import lineage_of
from headspan.store.write import analyses
from headspan.store.write.removal import remove_runs
from tests.conftest import relative_files
from tests.warm_python import FORKED

POOL = hs.Pool(
    "pool",
    tuple(f"a {thing} in {place}" for thing in ("cat", "dog", "car", "tree") for place in ("rain", "snow", "fog")),
    ("rain", "snow", "fog") * 4,
)
KINDS = ("textspan", "labels", "ccs")
SOURCES = {"labels": "textspan", "ccs": "labels"}


@pytest.fixture(scope="module")
def chain_store(toy_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy store that holds the pool's vectors."""
    path = Path(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("kept") / "kept.zarr"))
    hs.textspan(hs.open(path), POOL, texts_per_head=5, run="first")
    remove_runs(path, "textspan/first")
    return path


@dataclass
class Model:
    """What a store should hold: for each kind, what its run was made with, and from which content of its source."""

    runs: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def older(self, kind: str) -> str | None:
        """The kind of the source that has changed since; as `lineage_of`, the nearest first."""
        source = SOURCES.get(kind)
        if source is None or kind not in self.runs:
            return None
        if self.runs.get(source) != self.runs[kind][1]:
            return source
        return self.older(source)

    def make(self, kind: str, setting: Any, overwrite: bool) -> bool:
        """Make a run; returns whether that is allowed."""
        source = SOURCES.get(kind)
        if source is not None and (source not in self.runs or (kind == "ccs" and self.older(source))):
            return False
        wanted = (setting, None if source is None else self.runs[source])
        if kind in self.runs and self.runs[kind] != wanted and not overwrite and not self._equal(kind, wanted):
            return False
        self.runs[kind] = wanted
        return True

    def _equal(self, kind: str, wanted: tuple[Any, ...]) -> bool:
        """Whether the content is equal although its source is a newer run."""
        return kind != "textspan" and content_of(kind, self.runs[kind]) == content_of(kind, wanted)


# Texts per head and rank. The first two give the same first five texts, and so the same labels.
CHOICES = ((5, 80), (6, 80), (5, 2))
SPANS: dict[tuple[int, int], HeadSpans] = {}


def content_of(kind: str, made: tuple[Any, ...]) -> list[Any]:
    """What the analyses give for a run of the model, by head: its texts, or its label and which texts match it."""
    wanted = kind
    while kind != "textspan":
        kind, made = SOURCES[kind], made[1]
    spans = SPANS[made[0]]
    if wanted == "textspan":
        return [spans.texts(*head) for head in spans.heads()]
    concepts = dict(zip(POOL.texts, POOL.concepts or (), strict=True))
    found = []
    for head in spans.heads():
        of_texts = [concepts[text] for text in spans.texts(*head, 5)]
        label = max(of_texts, key=of_texts.count)
        # A head of low rank may have fewer texts than there are votes.
        found.append((label, [number < len(of_texts) and of_texts[number] == label for number in range(5)]))
    return found


def perform(store: hs.Store, operation: tuple[str, Any, bool]) -> None:
    kind, setting, overwrite = operation
    if kind == "textspan":
        hs.textspan(store, POOL, texts_per_head=setting[0], rank=setting[1], run="r", overwrite=overwrite)
    elif kind == "labels":
        label_heads(store, "r", overwrite)
    elif kind == "ccs":
        concept_consistency(store, "r", overwrite)
    else:
        remove_runs(store, f"{setting}/r")


def predicted(model: Model, operation: tuple[str, Any, bool]) -> Model | None:
    """The model after the operation; None if it is refused."""
    after = Model(dict(model.runs))
    kind, setting, overwrite = operation
    if kind == "remove":
        return None if after.runs.pop(setting, None) is None else after
    return after if after.make(kind, setting if kind == "textspan" else None, overwrite) else None


def agrees(store: hs.Store, model: Model) -> bool:
    """Whether the store holds what the model says, and marks what the model marks."""
    there = {kind for kind in KINDS if results.runs(store, kind) == ["r"]}
    if there != model.runs.keys():
        return False
    for kind in there:
        found, older = lineage_of(store, kind, "r").older, model.older(kind)
        if found != (older and f"{older}/r"):
            return False
        wanted = content_of(kind, model.runs[kind])
        if kind == "textspan":
            spans = read_spans(store, "r")
            if [spans.texts(*head) for head in spans.heads()] != wanted:
                return False
        else:
            kept = read_labels(store, "r") if kind == "labels" else read_scores(store, "r")
            names = (kept if kind == "labels" else kept.labels).names
            found_here = zip(
                (name for row in names for name in row), kept.consistent.reshape(-1, 5).tolist(), strict=True
            )
            if list(found_here) != wanted:
                return False
    return True


def dying(function: Callable[..., Any], countdown: list[int], after: bool) -> Callable[..., Any]:
    """`function`, but the call at which the countdown ends kills the process, before or after it."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        countdown[0] -= 1
        if countdown[0] == 0 and not after:
            os._exit(9)
        found = function(*arguments, **keywords)
        if countdown[0] == 0:
            os._exit(9)
        return found

    return call


def killed(store: hs.Store, operation: tuple[str, Any, bool], at: int, after: bool) -> bool:
    """Perform an operation in another process, which dies at its file operation `at`; returns whether it died."""
    child = os.fork()
    if child == 0:
        try:
            countdown = [at]
            for name in ("put", "move_folder", "delete", "delete_folder"):
                setattr(LocalStorage, name, dying(getattr(LocalStorage, name), countdown, after))
            perform(store, operation)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


OPERATIONS = st.one_of(
    st.tuples(st.just("textspan"), st.sampled_from(CHOICES), st.booleans()),
    st.tuples(st.sampled_from(["labels", "ccs"]), st.none(), st.booleans()),
    st.tuples(st.just("remove"), st.sampled_from(KINDS), st.just(False)),
)
# Shrinking would repeat slow steps for minutes.
PHASES = (Phase.explicit, Phase.generate)
CHAIN = [(("labels", None, False), None), (("ccs", None, False), None)]
KILLS = st.one_of(st.none(), st.tuples(st.integers(1, 9), st.booleans()))


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=PHASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(steps=[(("textspan", CHOICES[0], False), None), *CHAIN, (("textspan", CHOICES[1], True), None), *CHAIN])
@example(steps=[(("textspan", CHOICES[0], False), None), *CHAIN, (("textspan", CHOICES[2], True), (3, False)), *CHAIN])
@given(steps=st.lists(st.tuples(OPERATIONS, KILLS), min_size=3, max_size=9))
def test_sequences_of_analyses_overwrites_removals_and_kills_lose_nothing_and_mix_nothing(
    steps: list[tuple[tuple[str, Any, bool], tuple[int, bool] | None]], chain_store: Path
) -> None:
    store = hs.open(chain_store)
    for folder in (*KINDS, *(f"records/results/{kind}" for kind in KINDS), "records/lineage"):
        shutil.rmtree(chain_store / folder, ignore_errors=True)
    if not SPANS:
        SPANS.update({each: hs.textspan(store, POOL, texts_per_head=each[0], rank=each[1]) for each in CHOICES})
    model = Model()
    for operation, kill in steps:
        after = predicted(model, operation)
        if kill is not None and killed(store, operation, *kill):
            # Everything is as before or as after; the user sees which, and goes on from there.
            assert agrees(store, model) or (after is not None and agrees(store, after)), (operation, kill)
            model = model if agrees(store, model) or after is None else after
            continue
        if kill is None and after is None:
            with pytest.raises(StoreError):
                perform(store, operation)
        elif kill is None:
            perform(store, operation)
        model = model if after is None else after
        assert agrees(store, model), operation


def test_the_choices_of_the_sequences_give_other_spans_and_some_the_same_labels(chain_store: Path) -> None:
    store = hs.open(chain_store)
    spans = [hs.textspan(store, POOL, texts_per_head=count, rank=rank) for count, rank in CHOICES]
    labels = [label_heads(store, each) for each in spans]
    assert len({each.indices.tobytes() for each in spans}) == 3
    assert labels[0].names == labels[1].names
    assert (labels[0].consistent == labels[1].consistent).all()
    assert not (labels[0].names == labels[2].names and (labels[0].consistent == labels[2].consistent).all())


def test_a_kill_at_every_file_operation_of_an_overwrite_keeps_one_of_the_two_runs(chain_store: Path) -> None:
    store = hs.open(chain_store)
    for kind in KINDS:
        shutil.rmtree(chain_store / kind, ignore_errors=True)
        shutil.rmtree(chain_store / "records" / "results" / kind, ignore_errors=True)
    checksums = {}
    for number in (0, 1):
        perform(store, ("textspan", CHOICES[number], True))
        checksums[lineage_of(store, "textspan", "r").checksum] = number
    label_heads(store, "r")
    now, deaths = 1, 0
    # A kill before an operation is one after the operation before it.
    for at in range(1, 10):
        died = killed(store, ("textspan", CHOICES[1 - now], True), at, False)
        deaths += died
        found = checksums[lineage_of(store, "textspan", "r").checksum]
        assert died or found == 1 - now
        # The labels are of the first run that was labelled, whatever stands there now.
        assert read_labels(store, "r").older == (None if found == 1 else "textspan/r")
        assert read_spans(store, "r").indices.shape[2] == CHOICES[found][0]
        now = found
    assert deaths >= 5


def test_a_chain_without_saving_gives_what_a_saved_chain_gives_and_writes_nothing(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    before = relative_files(toy_copy)
    spans = hs.textspan(store, POOL, texts_per_head=5)
    labels = label_heads(store, spans)
    found = concept_consistency(store, labels)
    assert relative_files(toy_copy) == before
    with pytest.raises(StoreError, match=r"labels/pool cannot be saved, because the textspan/pool .* save=True$"):
        label_heads(store, spans, save=True)
    with pytest.raises(StoreError, match="has no textspan run"):
        label_heads(store)
    saved = hs.textspan(store, POOL, texts_per_head=5, save=True)
    assert (saved.indices == spans.indices).all()
    assert saved.lineage == spans.lineage
    # Now the run that the unsaved result equals is in the store.
    assert label_heads(store, spans, save=True).names == labels.names
    assert (concept_consistency(store, "pool").scores == found.scores).all()
    assert [f"{each.kind}/{each.name}" for each in hs.runs(store)] == [f"{kind}/pool" for kind in ("texts", *KINDS)]
    # A result without a name is not saved.
    before = relative_files(toy_copy)
    hs.textspan(store, POOL, texts_per_head=6)
    label_heads(store)
    concept_consistency(store)
    assert relative_files(toy_copy) == before


def test_equal_labels_of_a_newer_run_are_of_the_newer_run(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    hs.textspan(store, POOL, texts_per_head=5, run="r")
    label_heads(store, "r")
    concept_consistency(store, "r")
    # One text more for each head: the first five, and so the labels, are the same.
    hs.textspan(store, POOL, texts_per_head=6, run="r", overwrite=True)
    assert read_scores(store).older == "textspan/r"
    for use in (
        lambda: concept_consistency(store),
        lambda: read_votes(store),
    ):
        with pytest.raises(
            StoreError, match=r"is of an older textspan/r, which was replaced since; run headspan label"
        ):
            use()
    label_heads(store, "r")
    assert read_labels(store).older is None
    assert read_scores(store).older == "labels/r"
    concept_consistency(store, "r")
    assert read_scores(store).older is None


def test_a_result_of_another_step_is_refused_in_one_sentence(toy_copy: Path) -> None:
    # In a process of its own, where nothing checks types.
    code = (
        "import headspan as hs\n"
        f"store = hs.open({str(toy_copy)!r})\n"
        "spans = hs.textspan(store, hs.Pool('p', ('a', 'b', 'c', 'd', 'e'), tuple('xxyyz')), texts_per_head=5)\n"
        "hs.concepts.concept_consistency(store, spans)"
    )
    done = subprocess.run([sys.executable, "-c", FORKED + code], capture_output=True, text=True, check=False)
    assert "SettingsError: run HeadSpans('p': 5 texts for" in done.stderr
    assert "is not the name of a run, and not the result that this step starts from" in done.stderr


def test_removing_a_run_keeps_what_was_made_from_it(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    empty = relative_files(toy_copy)
    hs.textspan(store, POOL, texts_per_head=5, save=True)
    label_heads(store, "pool")
    concept_consistency(store, "pool")
    scores = read_scores(store).scores
    hs.textspan(store, POOL, texts_per_head=5, run="second")
    with pytest.raises(
        StoreError, match=r"textspan/pool was made from texts/pool and needs them; remove textspan/pool"
    ):
        hs.remove_runs(store, ["texts/pool", "textspan/second"])
    with pytest.raises(
        StoreError,
        match=r"textspan/pool, textspan/second were made from texts/pool and need them; remove textspan/pool, ",
    ):
        hs.remove_runs(store, "texts/pool")
    with pytest.raises(StoreError, match=r"has no run labels/second \(has labels/pool\)$"):
        hs.remove_runs(store, ["textspan/pool", "labels/second"])
    with pytest.raises(SettingsError, match=r"run name '\.\./x'"):
        hs.remove_runs(store, "labels/../x")
    assert hs.remove_runs(store, "labels/pool").marked == ("ccs/pool",)
    assert (read_scores(store).scores == scores).all()
    assert read_scores(store).older == "labels/pool"
    states = {f"{each.kind}/{each.name}": each.state for each in list_runs(toy_copy)}
    assert states["ccs/pool"] == "of an older labels/pool"
    # The second run still needs the texts.
    assert hs.remove_runs(toy_copy, "pool").removed == ("ccs/pool", "textspan/pool")
    assert read_spans(store).texts(0, 0)
    hs.remove_runs(store, "second")
    hs.remove_runs(store, "pool")
    left = {name for name in relative_files(toy_copy) if name not in empty}
    # The groups of each kind stay.
    assert left == {f"{kind}/zarr.json" for kind in ("texts", *KINDS)}


def test_a_damaged_run_is_listed_as_damaged(toy_copy: Path) -> None:
    hs.textspan(hs.open(toy_copy), POOL, texts_per_head=5, save=True)
    (toy_copy / "textspan" / "pool" / "zarr.json").write_bytes(b"{}")
    states = {each.kind: (each.state, each.settings) for each in list_runs(toy_copy)}
    assert states == {"texts": ("", "12 texts"), "textspan": ("damaged", "")}


def test_a_hidden_run_of_a_name_with_a_dot_belongs_to_that_name_only(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    analyses.save(store, "ccs", "a", {}, {"value": 1})
    analyses.save(store, "ccs", "a.b", {}, {"value": 2})
    (toy_copy / "ccs" / "a.b").rename(toy_copy / "ccs" / ".a.b.01234567")
    # A killed process left it long ago.
    os.utime(toy_copy / "ccs" / ".a.b.01234567", (0, 0))
    analyses.save(store, "ccs", "a", {}, {"value": 3}, overwrite=True)
    assert results.load(store, "ccs", "a.b")[1] == {"value": 2}
    assert results.runs(store, "ccs") == ["a", "a.b"]


# Folders that this process may not write at the moment, as root may write files without permission.
_READ_ONLY: list[Path] = []
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.chmod", "os.utime")


def _refuse_changes(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what a user without write permission is refused, in every thread of this process."""
    if not _READ_ONLY or event not in (*_CHANGES, "open"):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        return
    for path in arguments[:2]:
        if isinstance(path, str | Path) and any(Path(path).is_relative_to(folder) for folder in _READ_ONLY):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


sys.addaudithook(_refuse_changes)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let this process only read `folder`."""
    before = relative_files(folder)
    _READ_ONLY.append(folder)
    try:
        # Otherwise the test would show nothing.
        for change in (
            lambda: (folder / "new").write_bytes(b""),
            (folder / "new").mkdir,
            lambda: (folder / "zarr.json").rename(folder / "new"),
            (folder / "zarr.json").unlink,
        ):
            with pytest.raises(PermissionError):
                change()
        yield
    finally:
        _READ_ONLY.remove(folder)
    assert relative_files(folder) == before


def refuse_the_model(*_: object) -> NoReturn:
    raise AssertionError("the model was loaded")


def test_analyses_work_on_a_store_that_may_only_be_read_and_leave_nothing_behind(
    toy_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pool = toy_copy, tmp_path / "pool.tsv"
    pool.write_text(
        "".join(f"{text}\t{concept}\n" for text, concept in zip(POOL.texts, POOL.concepts or (), strict=True))
    )
    hs.text_vectors(hs.open(path), POOL)
    # The vectors were computed before.
    monkeypatch.setattr("headspan.model.load.load_stored_model", refuse_the_model)
    with read_only(path):
        store = hs.open(path)
        assert hs.text_vectors(store, POOL.texts).shape == (12, store.joint)
        spans = hs.textspan(store, POOL, texts_per_head=5)
        labels = label_heads(store, spans)
        assert concept_consistency(store, labels).scores.shape == labels.labelled.shape
        assert len(hs.explore.nearest_to_text(store, POOL.texts[0], [(2, 0)]).images)
        assert len(hs.runs(store)) == 0
        with pytest.raises(NotSavedError, match="cannot be written \\(Permission denied\\)") as caught:
            hs.textspan(store, POOL, texts_per_head=5, save=True)
        assert (caught.value.result.indices == spans.indices).all()
        assert caught.value.read_only
        assert main(["textspan", str(path), "--texts", str(pool), "--texts-per-head", "5", "--head", "L1.H0"]) == 0
        said = capsys.readouterr()
        assert said.out.splitlines()[1].strip() == spans.texts(1, 0)[0]
        assert "saved as" not in said.out
        assert "headspan: the result was not saved: " in said.err
        assert "Permission denied" in said.err
        assert main(["label", str(path)]) == 2
        with pytest.raises(StoreError, match="Permission denied"):
            analyses.save(store, "ccs", "r", {"a": (np.zeros(3), ("x",))}, {})
    # With spans, labels and scores are printed too.
    hs.textspan(hs.open(path), POOL, texts_per_head=5, save=True)
    with read_only(path):
        assert main(["label", str(path), "--head", "L1.H1"]) == 0
        assert f"L1.H1\tunlabelled (chance), most common: {labels.name(1, 1)}\t" in capsys.readouterr().out
        assert main(["ccs", str(path)]) == 0
        said = capsys.readouterr()
        assert "CCS@5" in said.out
        assert said.err.count("was not saved") == 1
        assert main(["runs", str(path), "--remove", "pool"]) == 2
        assert "Permission denied" in capsys.readouterr().err


def test_numbers_that_another_processor_rounds_otherwise_are_the_same_result(chain_store: Path, tmp_path: Path) -> None:
    store = hs.open(Path(shutil.copytree(chain_store, tmp_path / "rounded.zarr")))
    values, notes = np.array([0.1, 0.7, np.nan, 0.9]), []

    def save(numbers: np.ndarray) -> str:
        return analyses.save(
            store,
            "prune",
            "rounded",
            {"loss": (numbers, ("step",))},
            {},
            on_progress=lambda event: notes.append(event.note),
        )

    first, before = save(values), relative_files(store.path)
    assert save(values * (1 + 2**-51)) == first
    assert relative_files(store.path) == before
    assert notes == ["prune/rounded already has the same content; it is unchanged"]
    with pytest.raises(StoreError, match="already exists with other content"):
        save(values * (1 + 1e-9))
    with pytest.raises(StoreError, match="already exists with other content"):
        save(values[:3])
