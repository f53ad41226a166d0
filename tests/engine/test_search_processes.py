"""Searching processes give the answers of the server's own threads to the bit, whatever happens to them."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from benchmarks import random_store
from headspan.background import finish
from headspan.errors import StoreError
from headspan.explore.nearest import kept_sketches
from headspan.explore.nearest.neighbours import both_ends, nearest, query_vector
from headspan.explore.nearest.search import Answer, Question, answered
from headspan.explore.nearest.shared import in_shared_memory, shared
from headspan.explore.query.query_image import query_image
from headspan.web.searches import search_processes
from headspan.web.searches.search_processes import SearchProcesses
from headspan.web.state.child_process import started
from headspan.web.state.worker_messages import READY
from tests.engine.test_sketches import SIZE as SKETCHED
from tests.waiting import wait_until

IMAGES = 700
SIZE = replace(SKETCHED, images=IMAGES, unit_images=256)
HEADS = [(1, 0), (2, 2)]
QUESTIONS = {
    "through a head": lambda query: Question(HEADS[:1], query, 9, without=3),
    "through heads": lambda query: Question(HEADS, query, 9),
    "by embedding": lambda query: Question(None, query, 9, without=3),
    "by embeddings without heads": lambda query: Question(None, query, 9, without=3, ablated=HEADS),
    "both ends": lambda query: Question(HEADS[:1], query, 9, both_ends=True),
}


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sketches of small stores, in shared memory."""
    kept_sketches.forget_sketches()
    monkeypatch.setattr(kept_sketches, "_LEAST_BYTES", 0)
    monkeypatch.setattr(kept_sketches, "_in_shared_memory", True)
    yield
    kept_sketches.forget_sketches()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    random_store.write_store(tmp_path / "one.zarr", SIZE, ("heads",), np.random.default_rng(0))
    return tmp_path / "one.zarr"


@pytest.fixture
def store(path: Path) -> hs.Store:
    return hs.open(path)


@pytest.fixture
def searches() -> Iterator[SearchProcesses]:
    with SearchProcesses(2) as found:
        yield found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """The questions that this process answers itself."""
    found: list[Question] = []

    def noted(store: hs.Store, question: Question, sketches: object) -> Answer:
        found.append(question)
        return answered(store, question)

    monkeypatch.setattr(search_processes, "answered_by", noted)
    return found


def mapped_files(pid: int) -> int:
    """How many memory files a process maps."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:headspan")


class Numbers:
    def __init__(self) -> None:
        self.large, self.none = np.arange(5000.0).reshape(50, 100), np.zeros(0)
        self.turned, self.word = np.ones((3, 4), np.float32).T, "word"


def query_of(store: hs.Store, image: int = 3) -> np.ndarray:
    return query_vector(store, query_image(store, image), None)


def ready(searches: SearchProcesses, store: hs.Store, *questions: Question) -> None:
    """Build what answers the questions, and start the processes."""
    for question in questions:
        answered(store, question, sketched=True)
        searches(store, question)
    wait_until(lambda: len(searches._idle) == searches._count)


def assert_equal(found: Answer, wanted: Answer) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_process_gives_the_answer_of_a_reading_of_all_numbers(
    kind: str, store: hs.Store, searches: SearchProcesses, here: list[Question]
) -> None:
    ready(searches, store, QUESTIONS[kind](query_of(store)))
    here.clear()
    for image in (3, 50, 600):
        question = QUESTIONS[kind](query_of(store, image))
        assert_equal(searches(store, question), answered(store, question, sketched=False))
    assert not here


def test_the_analyses_ask_the_processes(store: hs.Store, searches: SearchProcesses, here: list[Question]) -> None:
    query = query_of(store)
    ready(searches, store, QUESTIONS["by embedding"](query), QUESTIONS["both ends"](query))
    here.clear()
    found, wanted = (
        [nearest(store, query, None, 9, 3, answering=answering), *both_ends(store, query, HEADS[:1], 9, answering)]
        for answering in (searches, answered)
    )
    assert [each.images.tolist() for each in found] == [each.images.tolist() for each in wanted]
    assert not here


def test_no_process_is_started_for_stores_whose_numbers_are_read_at_once(
    store: hs.Store, searches: SearchProcesses, here: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_sketches, "_LEAST_BYTES", 1 << 30)
    question = QUESTIONS["by embedding"](query_of(store))
    for _ in range(4):
        assert_equal(searches(store, question), answered(store, question))
    finish()
    assert len(here) == 4
    assert searches._alive == searches._starting == 0


def test_questions_are_answered_while_processes_die_and_others_are_started_until_too_many_have_died(
    store: hs.Store, searches: SearchProcesses, here: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = QUESTIONS["through heads"](query_of(store))
    wanted = answered(store, question, sketched=False)
    ready(searches, store, question)
    for deaths in range(1, 4):
        os.kill(searches._idle[-1]._process.pid, signal.SIGKILL)
        assert_equal(searches(store, question), wanted)
        assert searches._deaths == deaths
        ready(searches, store, question)
    monkeypatch.setattr(search_processes, "_MOST_DEATHS", 3)
    for _ in range(2):
        os.kill(searches._idle[-1]._process.pid, signal.SIGKILL)
        assert_equal(searches(store, question), wanted)
    here.clear()
    assert_equal(searches(store, question), wanted)
    assert len(here) == 1
    assert searches._alive == searches._starting == 0


def test_a_process_answers_about_the_images_that_the_server_shows(
    tmp_path: Path, searches: SearchProcesses, here: list[Question]
) -> None:
    random, path = np.random.default_rng(0), tmp_path / "grows.zarr"
    writer = random_store.planned_store(path, SIZE, ("heads",), random)
    shown = []
    for unit in writer.unfinished():
        moments = random_store.zero_moments(SIZE)
        with writer.begin(unit) as begun:
            for rows, arrays in random_store.unit_batches(unit, SIZE, ("heads",), random):
                random_store.add_moments(moments, arrays)
                begun.put(rows, np.ones(len(rows), bool), arrays)
            begun.commit(moments, [])
        store = hs.open(path)
        question = QUESTIONS["by embedding"](query_of(store))
        ready(searches, store, question)
        here.clear()
        assert_equal(searches(store, question), answered(store, question, sketched=False))
        assert not here
        shown.append((store, question))
    # The files show more images than the store that was opened first.
    store, question = shown[0]
    assert_equal(searches(store, question), answered(store, question, sketched=False))
    assert len(here) == 1


def test_a_damaged_store_is_refused_in_the_servers_words(
    path: Path, store: hs.Store, searches: SearchProcesses
) -> None:
    question = QUESTIONS["through heads"](query_of(store))
    ready(searches, store, question)
    for shard in (path / "heads").rglob("*"):
        if shard.is_file() and "zarr.json" not in shard.name:
            shard.write_bytes(b"no shard")
    with pytest.raises(StoreError):
        searches(hs.open(path), question)


def test_a_process_forgets_what_the_server_forgets(store: hs.Store) -> None:
    first, second = (QUESTIONS[kind](query_of(store)) for kind in ("through a head", "through heads"))
    with SearchProcesses(1) as searches:
        ready(searches, store, first, second)
        for question in (first, second):
            searches(store, question)
        (process,) = searches._idle
        mapped = mapped_files(process._process.pid)
        assert len(process._known) == 2
        kept_sketches.forget_sketches()
        gc.collect()
        ready(searches, store, first)
        searches(store, first)
        assert len(process._known) == 1
        assert mapped_files(process._process.pid) == mapped - 1


def test_closing_ends_the_processes_and_questions_are_still_answered(
    store: hs.Store, searches: SearchProcesses, here: list[Question]
) -> None:
    question = QUESTIONS["through a head"](query_of(store))
    ready(searches, store, question)
    processes = [each._process for each in searches._idle]
    searches.close()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    here.clear()
    assert_equal(searches(store, question), answered(store, question))
    assert len(here) == 1


def test_a_process_ends_when_the_server_has_ended() -> None:
    connection, process = started("headspan.web.searches.worker")
    assert connection.poll(60)
    assert connection.recv() == READY
    connection.close()
    assert process.wait(60) == 0


def test_an_object_in_shared_memory_is_the_same_object_that_cannot_be_written() -> None:
    wanted = Numbers()
    assert shared(wanted) is None
    found = in_shared_memory(wanted)
    for name, value in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert not found.large.flags.writeable
    handle = shared(found)
    assert handle is not None
    assert os.fstat(handle.descriptor).st_size >= wanted.large.nbytes
    del found
    gc.collect()
    # Its file is closed with it.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle.descriptor)
