"""The process of a store's model: its answers, its end and restart, and what works without it; and the command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient

import headspan as hs
from headspan.cli.main import main
from headspan.errors import ModelError, SourceError
from headspan.explore.heads.spectra import spectra
from headspan.explore.query.query_image import query_image
from headspan.model.load import LoadedModel
from headspan.model.text import encode_texts, part_read
from headspan.texts.pool import Pool
from headspan.texts.vectors import text_vectors
from headspan.web.app import application
from headspan.web.bounded_heads import MOST_BYTES
from headspan.web.state import model_process
from headspan.web.state.explorer import Explorer
from headspan.web.state.model import ModelLoading
from headspan.web.state.model_processes import ModelProcesses
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import ToyRun, encoded_image
from tests.engine.test_process_decoder import alive
from tests.waiting import wait_until

POOL = Pool("things", ("a red car", "a blue dog", "a hat"), ("colors", "colors", "clothes"))
LONG = "a red car and a blue dog under a green hat beside a tall tree near two white houses on a small hill"


@pytest.fixture(scope="module")
def model(toy_run: ToyRun) -> Iterator[ModelProcesses]:
    found = ModelProcesses()
    yield found
    found.close()


@pytest.fixture(scope="module")
def store(toy_run: ToyRun) -> hs.Store:
    return hs.open(toy_run.path)


def ready(model: ModelProcesses, store: hs.Store) -> None:
    """Wait until the model is loaded."""
    model.warm(store)
    wait_until(lambda: model.state(store).state != "loading", 100)
    assert model.state(store).state == "ready", model.state(store)


def test_the_process_answers_as_the_python_api_does(model: ModelProcesses, store: hs.Store) -> None:
    texts = ["a red car", "a tall tree"]
    vectors, cut = model.text_vectors(store, texts)
    np.testing.assert_allclose(vectors, text_vectors(store, texts), rtol=0, atol=1e-6)
    assert not cut
    stored = model.query_image(store, 3, with_patches=True)
    expected = query_image(store, 3, with_patches=True)
    assert (stored.name, stored.image) == (expected.name, 3)
    np.testing.assert_array_equal(stored.heads, expected.heads)
    assert stored.patches is not None
    spectrum = model.spectrum(store, (2, 1))
    alone = spectra(store, [(2, 1)])
    np.testing.assert_allclose(spectrum.singular_values, alone.singular_values, rtol=1e-6)
    assert spectrum.texts(2, 1, 0) == alone.texts(2, 1, 0)


def test_a_dropped_in_image_is_computed_once_with_its_patches(
    model: ModelProcesses, store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encoded_image(77)
    (tmp_path / "a.jpg").write_bytes(encoded)
    expected = query_image(store, tmp_path / "a.jpg", with_patches=True)
    found = model.query_image(store, encoded)
    np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.heads, expected.heads, rtol=1e-5, atol=1e-6)
    asked: list[Any] = []
    monkeypatch.setattr(model.process(store), "ask", lambda *question: asked.append(question))
    assert model.query_image(store, encoded, with_patches=True) is found
    assert not asked


def test_a_file_that_is_no_image_is_refused_by_the_process_as_by_the_api(
    model: ModelProcesses, store: hs.Store
) -> None:
    with pytest.raises(SourceError, match="is no image that headspan can use"):
        model.query_image(store, b"text")


def test_a_text_that_is_too_long_is_cut_and_the_part_that_was_read_is_told(
    model: ModelProcesses, store: hs.Store, toy_model: LoadedModel
) -> None:
    (vector,), cut = model.text_vectors(store, [LONG])
    part = cut[LONG]
    assert LONG.startswith(part)
    assert 20 < len(part) < len(LONG)
    # The part alone has the same vector, and the next word of the text would not have been read.
    np.testing.assert_allclose(encode_texts(toy_model, [part])[0], vector, atol=1e-6)
    assert part_read(toy_model, part) is None
    assert part_read(toy_model, f"{part} and more") == part
    other = encode_texts(toy_model, [part.rpartition(" ")[0]])[0]
    assert np.abs(other - vector).max() > 1e-3


def test_very_long_texts_are_answered_within_seconds(model: ModelProcesses, store: hs.Store) -> None:
    ready(model, store)
    begin = time.monotonic()
    for text in ("x" * 100_000, "é🎈" * 30_000, "a " * 50_000):
        vectors, cut = model.text_vectors(store, [text])
        assert text.startswith(cut[text])
        assert np.isfinite(vectors).all()
    assert time.monotonic() - begin < 20


def test_questions_that_come_at_once_get_their_own_answers(model: ModelProcesses, store: hs.Store) -> None:
    texts = [f"{number} dogs" for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda text: model.text_vectors(store, [text])[0][0], texts))
    np.testing.assert_allclose(np.stack(found), text_vectors(store, texts), rtol=0, atol=1e-6)


def test_a_process_that_is_killed_is_started_again(model: ModelProcesses, store: hs.Store) -> None:
    ready(model, store)
    before = model.process(store).pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not alive(before))
    # Its end is noticed, or the question fails that came meanwhile.
    time.sleep(0.2)
    vectors, _ = model.text_vectors(store, ["a text after the end"])
    np.testing.assert_allclose(vectors, text_vectors(store, ["a text after the end"]), rtol=0, atol=1e-6)
    assert model.process(store).pid not in (before, None)
    assert model.state(store).state == "ready"


def test_a_question_whose_process_dies_is_refused_and_the_next_one_answered(
    model: ModelProcesses, store: hs.Store
) -> None:
    ready(model, store)
    pid = model.process(store).pid
    assert pid is not None
    # It reads the question only after it has ended.
    os.kill(pid, signal.SIGSTOP)
    asked = model.process(store)._turn.locked

    def kill_when_asked() -> None:
        wait_until(asked)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_asked)
    killer.start()
    with pytest.raises(ModelLoading, match="ended before it answered, and is started again"):
        model.text_vectors(store, ["a text before the end"])
    killer.join()
    assert model.text_vectors(store, ["a text before the end"])[0].shape == (1, store.joint)


def test_a_process_that_keeps_dying_is_given_up_and_what_is_stored_is_still_answered(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)
    hs.textspan(store, POOL, 2, save=True, draws=0)
    # A process that ends at once.
    monkeypatch.setattr(sys, "executable", "/bin/false")
    model = ModelProcesses()
    client = TestClient(application(Explorer(OpenStores([toy_copy]), model, Uploads())))
    answer = client.get("/api/stores/copy/texts", params={"text": "a text that nobody knows"})
    assert (answer.status_code, answer.json()["kind"]) == (503, "model_failed")
    assert "ended 3 times within a minute, last with exit code 1" in answer.json()["error"]
    state = client.get("/api/status").json()["stores"][0]["model_process"]
    assert (state["state"], state["message"]) == ("failed", answer.json()["error"])
    known = client.get("/api/stores/copy/texts", params={"text": "a blue dog"})
    assert known.status_code == 200, known.text
    assert client.get("/api/stores/copy/images/0").status_code == 200
    # A minute later a question starts it again.
    monkeypatch.undo()
    monkeypatch.setattr(model_process, "_MINUTE", 0.0)
    assert client.get("/api/stores/copy/texts", params={"text": "a text that nobody knows"}).status_code == 200
    model.close()


def test_a_question_waits_while_the_model_is_loaded_but_not_for_ever(
    store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    monkeypatch.setattr(model_process, "_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(model_process, "_MOST_WAITING", 2)
    # The sleep's first argument is no number of seconds, so it ends; a script that sleeps does not.
    script = Path(os.environ["XDG_CACHE_HOME"]) / "sleeps"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    model = ModelProcesses()
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(ModelLoading) as caught:
            model.text_vectors(store, ["a text that nobody knows"])
        said.append(str(caught.value))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(text.partition(";")[0] for text in said) == [
        *["2 other questions wait for the model"] * 2,
        *["the model was not ready within 0 s"] * 2,
    ]
    pid = model.process(store).pid
    assert pid is not None
    model.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_weights_that_are_not_on_the_machine_are_not_fetched(
    toy_run: ToyRun, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    attributes = metadata["attributes"]["headspan"]
    attributes |= {"model": "ViT-B-32", "pretrained": "laion400m_e32"}
    attributes.get("made_with", {}).pop("paths", None)
    (toy_copy / "zarr.json").write_text(json.dumps(metadata))
    model = ModelProcesses()
    store = hs.open(toy_copy)
    with pytest.raises(ModelError, match=r"the model cannot be loaded: .*headspan explore --download") as caught:
        model.text_vectors(store, ["a text that nobody knows"])
    # Final: a second question does not load the model again.
    loading = model.process(store)._thread
    with pytest.raises(ModelError) as again:
        model.text_vectors(store, ["a text that nobody knows"])
    assert str(again.value) == str(caught.value)
    assert model.process(store)._thread is loading
    model.close()


SERVED = """
import json, sys, threading, urllib.request
from headspan.web import serve as module

def ask(address):
    def run():
        found = []
        for path in json.loads(sys.argv[2]):
            try:
                found.append(urllib.request.urlopen(address + path).status)
            except urllib.error.HTTPError as error:
                found.append(error.code)
        print(json.dumps([found, sorted(name for name in ("torch", "open_clip", "timm") if name in sys.modules)]))
        sys.stdout.flush()
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=run).start()

module.serve([sys.argv[1]], port=0, on_ready=ask)
"""


def test_the_server_itself_never_imports_a_model(toy_run: ToyRun) -> None:
    described = application(Explorer(OpenStores([toy_run.path]), ModelProcesses(), Uploads())).openapi()
    values = {"store": "toy", "head": "L1.H0", "of": "embedding", "id": "0", "image": "0", "feature": "0"}
    paths = [
        path.format(**values).lstrip("/") + "?text=unknown+text&by=text:unknown&image=0&part=0&without=L0.H0"
        for path, methods in described["paths"].items()
        if "get" in methods
    ]
    done = subprocess.run(
        [sys.executable, "-c", SERVED, str(toy_run.path), json.dumps(paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    statuses, imported = json.loads(done.stdout.splitlines()[0])
    assert imported == []
    assert statuses.count(200) > 15, dict(zip(paths, statuses, strict=True))
    assert max(statuses) < 500, dict(zip(paths, statuses, strict=True))


# The command


def started(*flags: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "headspan", "explore", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


def heads_of_requests_are_bounded(host: str) -> None:
    """Long headers end a connection; many requests on one connection, and long bodies, do not."""
    upload = f"POST /api/stores/toy/uploads HTTP/1.1\r\nHost: {host}\r\nContent-Length: 300000\r\n\r\n".encode()
    several = [f"GET /api/status HTTP/1.1\r\nHost: {host}\r\nX-Long: {'a' * 40_000}\r\n\r\n".encode()] * 3
    # One byte too many, so that nothing is on its way when the server closes the connection.
    endless = (f"GET /api/status HTTP/1.1\r\nHost: {host}\r\nX-Long: ".encode() + b"a" * MOST_BYTES)[: MOST_BYTES + 1]
    many = (f"GET /api/status HTTP/1.1\r\nHost: {host}\r\n".encode() + b"X-Short: a\r\n" * 9000)[: MOST_BYTES + 1]
    for parts, statuses, said in (
        (several, [b"200"] * 3, b"model_process"),
        ([upload, b"a" * 300_000], [b"400"], b"is no picture"),
        ([endless], [b"400"], b"the headers are longer than 64 KB; send fewer"),
        ([many], [b"400"], b"the headers are longer than 64 KB; send fewer"),
    ):
        name, _, port = host.rpartition(":")
        received = b""
        with socket.create_connection((name, int(port)), timeout=20) as client:
            for part in parts:
                client.sendall(part)
            while received.count(said) < len(statuses) and (found := client.recv(1 << 16)):
                received += found
        assert re.findall(rb"HTTP/1\.1 (\d+)", received) == statuses
        assert received.count(said) == len(statuses), received


@pytest.mark.usefixtures("interruptible")
def test_the_command_prints_its_address_and_ends_quietly(toy_run: ToyRun) -> None:
    process, line = started(str(toy_run.path), "--port", "0")
    address = line.split()[3]
    assert line == f"explorer ready at {address} (Ctrl-C ends it)\n"
    with urllib.request.urlopen(f"{address}api/stores/toy") as answer:
        assert answer.headers["Content-Security-Policy"]
    heads_of_requests_are_bounded(urlsplit(address).netloc)
    # A request that waits for the model, whose process ends with the server.
    statuses: list[int] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{address}api/stores/toy/texts?text=a+text+that+nobody+knows")
        except urllib.error.HTTPError as error:
            statuses.append(error.code)

    waiting = threading.Thread(target=ask)
    waiting.start()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    waiting.join(10)
    assert (process.returncode, out, error) == (0, "", "")
    assert statuses in ([], [503])


def test_a_port_that_is_in_use_is_refused_if_it_was_named(toy_run: ToyRun, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["explore", str(toy_run.path), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["{folder}"], "is not a headspan store"),
        (["{store}", "{store}"], "is named twice"),
        (["{store}", "--port", "70000"], "--port 70000 is too large; give at most 65,535"),
        (["{store}", "--weights", "a", "b"], "2 places of weights for 1 store"),
        (["{store}", "--shards", "{shard}"], "shard"),
        (["{store}", "--host", "nowhere.invalid"], "cannot be listened on"),
    ],
)
def test_the_command_refuses_what_it_cannot_serve(
    toy_run: ToyRun, tmp_path: Path, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"store": str(toy_run.path), "folder": str(tmp_path), "shard": str(toy_run.shards[0])}
    assert main(["explore", *(flag.format(**names) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_without_the_extra_the_command_says_what_to_install(
    toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("headspan.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["explore", str(toy_run.path)]) == 2
    assert "pip install 'headspan[explore]'" in capsys.readouterr().err
