"""Pools written by a language model: enough different texts, and none lost if a run is interrupted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import headspan as hs
from headspan.concepts.pool_writer.request import PoolRequest
from headspan.concepts.pool_writer.write import write_pool
from headspan.errors import LanguageModelError, SettingsError, StoreError
from headspan.llm.asking import Asker
from headspan.llm.cache import AnswerCache
from headspan.llm.endpoint import Endpoint, Patience
from tests.engine.chat_server import ChatServer, chat_server

REQUEST = PoolRequest("m", "general image descriptions", texts_per_call=5)


def list_number(prompt: str) -> int:
    found = re.search(r"This is list (\d+) of", prompt)
    assert found
    return int(found[1])


def say(model: str, prompt: str) -> str:
    """Five texts per list; the last one equals the first of the next list except for case and spaces."""
    first = 4 * list_number(prompt)
    texts = [f"Picture number {first + place}" for place in range(5)]
    texts[4] = f"  {texts[4].upper()}.  "
    return json.dumps({"texts": texts})


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chat_server() as server:
        server.answer = say
        yield server


def asker(chat: ChatServer, folder: Path, parallel: int = 2) -> Asker:
    endpoint = Endpoint(chat.url, parallel=parallel, patience=Patience(attempts=2, first_wait_seconds=0.01))
    return Asker(endpoint, AnswerCache(folder))


def test_lists_are_requested_until_there_are_enough_different_texts(chat: ChatServer, tmp_path: Path) -> None:
    written = write_pool(asker(chat, tmp_path / "kept"), REQUEST, 23, tmp_path / "pool.txt")
    pool = hs.read_pool(tmp_path / "pool.txt")
    assert len(pool.texts) == written.texts == 23
    assert len({text.casefold().strip(".") for text in pool.texts}) == 23
    assert pool.concepts is None
    assert written.repeated > 0
    assert all("general image descriptions" in prompt for prompt in chat.prompts())
    # Later requests name existing texts; the requests of one round differ.
    assert "are not to be repeated" not in chat.prompts()[0]
    assert json.dumps(pool.texts[0]) in chat.prompts()[-1]
    assert len(set(chat.prompts())) == len(chat.prompts())
    assert {request["temperature"] for request in chat.requests} == {1.0}


def test_an_interrupted_run_continues_and_ends_with_the_same_texts(chat: ChatServer, tmp_path: Path) -> None:
    write_pool(asker(chat, tmp_path / "whole"), REQUEST, 30, tmp_path / "whole.txt")
    lists = len(chat.requests)
    chat.requests.clear()
    # The second round loses one of its two lists.
    chat.mishaps = [None, None, None, lambda h: h.fail(401, "no more", None)]
    with pytest.raises(LanguageModelError, match="an API key is required and none was given"):
        write_pool(asker(chat, tmp_path / "kept"), REQUEST, 30, tmp_path / "pool.txt")
    assert 0 < len(hs.read_pool(tmp_path / "pool.txt").texts) < 30
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 30, tmp_path / "pool.txt")
    assert (tmp_path / "pool.txt").read_text() == (tmp_path / "whole.txt").read_text()
    # One request was refused; no list was requested twice.
    assert len(chat.requests) == lists + 1


def test_more_texts_are_added_without_the_cache(chat: ChatServer, tmp_path: Path) -> None:
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 11, tmp_path / "pool.txt")
    before = hs.read_pool(tmp_path / "pool.txt").texts
    chat.requests.clear()
    write_pool(asker(chat, tmp_path / "another"), REQUEST, 20, tmp_path / "pool.txt")
    assert hs.read_pool(tmp_path / "pool.txt").texts[:11] == before
    assert min(list_number(prompt) for prompt in chat.prompts()) > 2
    chat.requests.clear()
    write_pool(asker(chat, tmp_path / "a third"), REQUEST, 20, tmp_path / "pool.txt")
    assert chat.requests == []


@pytest.mark.parametrize("lost", ["pool.txt", "neither"])
def test_a_kill_between_the_two_files_loses_nothing(lost: str, chat: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 5, path)
    older = path.read_bytes()
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 20, path)
    newer = path.read_bytes()
    # The answers are written first, so the texts may be older or missing.
    if lost == "pool.txt":
        path.unlink()
    else:
        answers = json.loads((tmp_path / "pool.txt.answers.json").read_text())
        answers["sha256"][0] = hashlib.sha256(older).hexdigest()
        (tmp_path / "pool.txt.answers.json").write_text(json.dumps(answers))
        path.write_bytes(older)
    chat.requests.clear()
    write_pool(asker(chat, tmp_path / "another"), REQUEST, 20, path)
    assert path.read_bytes() == newer
    assert chat.requests == []


def test_concepts_come_with_the_texts_and_plurals_are_merged(chat: ChatServer, tmp_path: Path) -> None:
    concepts = ["Colour", "colours", "car", "carpet", "a whole sentence of a concept"]
    chat.answer = lambda model, prompt: json.dumps(
        {
            "texts": [
                {"text": f"Text {list_number(prompt)} {number}", "concept": concept}
                for number, concept in enumerate(concepts)
            ]
        }
    )
    request = PoolRequest("m", "short texts", concepts=True, texts_per_call=5)
    write_pool(asker(chat, tmp_path / "kept", parallel=1), request, 8, tmp_path / "pool.tsv")
    pool = hs.read_pool(tmp_path / "pool.tsv")
    assert pool.concepts == ("colour", "colour", "car", "carpet") * 2
    assert "each with its concept" in chat.prompts()[0]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("1. A dog", "A dog"),
        ("- A dog", "A dog"),
        ('"A dog"', "A dog"),
        ("A dog\nin\ta park", "A dog in a park"),
        ("3 dogs", "3 dogs"),
    ],
)
def test_texts_are_cleaned(said: str, text: str, chat: ChatServer, tmp_path: Path) -> None:
    unusable = ["", "...", 7, None, "x" * 301, "half \ud800", "\x00"]
    chat.answer = lambda model, prompt: json.dumps({"texts": [*unusable, said]})
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 1, tmp_path / "pool.txt")
    assert (tmp_path / "pool.txt").read_text() == f"{text}\n"


def test_a_pool_names_the_model_that_wrote_it(chat: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 5, path)
    assert hs.read_pool(path).author == "m"
    path.write_text(path.read_text() + "One of mine\n")
    assert hs.read_pool(path).author == "m, changed since"
    (tmp_path / "mine.txt").write_text("One of mine\n")
    assert hs.read_pool(tmp_path / "mine.txt").author is None
    assert hs.read_pool("general").author is None


def test_a_model_that_repeats_itself_is_stopped_and_its_texts_are_kept(chat: ChatServer, tmp_path: Path) -> None:
    chat.answer = lambda model, prompt: '{"texts": ["A dog", "a DOG!", "A cat"]}'
    with pytest.raises(
        LanguageModelError, match=r"m gives no new texts: 2 of 9 texts after \d+ lists, kept in .*pool\.txt;"
    ):
        write_pool(asker(chat, tmp_path / "kept"), REQUEST, 9, tmp_path / "pool.txt")
    assert hs.read_pool(tmp_path / "pool.txt").texts == ("A dog", "A cat")


def test_a_model_that_writes_no_lists_is_refused(chat: ChatServer, tmp_path: Path) -> None:
    chat.answer = lambda model, prompt: '{"texts": "A dog, a cat"}'
    with pytest.raises(
        LanguageModelError, match=r"m gave no usable list of texts: its answer contains texts that are not a list"
    ):
        write_pool(asker(chat, tmp_path / "kept"), REQUEST, 9, tmp_path / "pool.txt")


def test_a_file_that_headspan_did_not_write_is_not_overwritten(chat: ChatServer, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("A text of mine\n")
    with pytest.raises(SettingsError, match=r"mine\.txt: already exists, and headspan did not write it; choose anoth"):
        write_pool(asker(chat, tmp_path / "kept"), REQUEST, 5, mine)
    assert mine.read_text() == "A text of mine\n"
    assert chat.requests == []


def test_a_pool_that_was_changed_or_belongs_to_another_request_is_refused(chat: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    write_pool(asker(chat, tmp_path / "kept"), REQUEST, 5, path)
    for other in (PoolRequest("n", REQUEST.ask), PoolRequest("m", "words"), PoolRequest("m", REQUEST.ask, True)):
        with pytest.raises(
            SettingsError, match=r"is the pool of another request \('general image descriptions' of m\); choose"
        ):
            write_pool(asker(chat, tmp_path / "kept"), other, 9, path)
    path.write_text(path.read_text() + "One of mine\n")
    with pytest.raises(SettingsError, match="was changed after headspan wrote it; choose another --out to write more"):
        write_pool(asker(chat, tmp_path / "kept"), REQUEST, 9, path)
    good = json.loads((tmp_path / "pool.txt.answers.json").read_text())
    path.unlink()
    for damage in ("{", "[]", json.dumps({**good, "lists": ["no list"]}), json.dumps({**good, "lists": [7]})):
        (tmp_path / "pool.txt.answers.json").write_text(damage)
        with pytest.raises(StoreError, match=r"answers\.json: is damaged \(.*\); choose another --out"):
            write_pool(asker(chat, tmp_path / "kept"), REQUEST, 9, path)


def test_an_empty_request_is_refused(chat: ChatServer, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--ask is empty"):
        PoolRequest("m", "  ")
    with pytest.raises(SettingsError, match="--per-call 0 is too small"):
        PoolRequest("m", "texts", texts_per_call=0)
    with pytest.raises(SettingsError, match="--count 0 is too small"):
        write_pool(asker(chat, tmp_path / "kept"), REQUEST, 0, tmp_path / "pool.txt")
