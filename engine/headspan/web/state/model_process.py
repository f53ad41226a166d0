"""One store's model in a process of its own: started once, started again if it dies, asked one question at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from headspan.errors import ModelError
from headspan.web.answers.stores import ModelState
from headspan.web.state.child_process import started
from headspan.web.state.model import ModelLoading
from headspan.web.state.turns import without_turn
from headspan.web.state.worker_messages import ANSWER, LOADING, READY, REFUSED, WorkerSettings

# How long a question waits for the model and for questions before it, and how long its answer may take.
_WAIT_SECONDS, _ANSWER_SECONDS = 120.0, 300.0
_END_SECONDS = 10.0
# Questions that may wait at once. The server has 40 threads, and others than these answer what needs no model.
_MOST_WAITING = 20
# The process is started again unless it has died this often within a minute.
_MOST_DEATHS, _MINUTE = 3, 60.0
_CLOSED = "the explorer is being closed"
# Without a word at the start of the server, nothing is fetched.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class ModelProcess:
    """The process of one store's model. Threads may share it."""

    def __init__(self, settings: WorkerSettings, download: bool) -> None:
        self._settings, self._download = settings, download
        self._changed = threading.Condition()
        self._state = ModelState(state="absent")
        # Held by whoever uses the connection once the model is ready.
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._deaths: deque[float] = deque()
        self._may_start = True
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> ModelState:
        """Whether the model can answer now."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process's number, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin to load the model, unless that has begun or is impossible; returns at once."""
        with self._changed:
            if self._state.state in ("loading", "ready") or not self._may_start:
                return
            if self._deaths and time.monotonic() - self._deaths[-1] < _MINUTE:
                return
            self._say("loading", "the model is being loaded")
            self._thread = threading.Thread(target=self._keep_alive, name="model process", daemon=True)
            self._thread.start()

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer to a question, which is a public method of `model_worker.Worker`.

        Raises the HeadspanError that the answer is, ModelError if the model cannot be loaded, and ModelLoading if it is
        not loaded in time, if too many questions wait, or if its process dies meanwhile.
        """
        if not self._places.acquire(blocking=False):
            raise ModelLoading(f"{_MOST_WAITING} other questions wait for the model; ask again in a moment")
        try:
            with without_turn():
                return self._asked(question, arguments, time.monotonic() + _WAIT_SECONDS)
        finally:
            self._places.release()

    def close(self) -> None:
        """End the process; it is not started again."""
        with self._changed:
            self._may_start = False
            self._say("failed", _CLOSED)
        self._kill()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def _asked(self, question: str, arguments: tuple[Any, ...], deadline: float) -> Any:
        connection = self._free_connection(deadline)
        try:
            connection.send((question, arguments))
            if not connection.poll(_ANSWER_SECONDS):
                self._kill()
                raise ModelLoading(
                    f"the model did not answer within {_ANSWER_SECONDS:.0f} seconds, and its process is started again; "
                    "ask for less"
                )
            word, value = connection.recv()
        except (EOFError, OSError) as error:
            raise ModelLoading(
                "the model's process ended before it answered, and is started again; ask again in a moment"
            ) from error
        finally:
            self._turn.release()
        if word == ANSWER:
            return value
        if word == REFUSED:
            kind, sentence = value
            raise kind(sentence)
        raise RuntimeError(f"the model's process could not answer {question}: {value}")

    def _free_connection(self, deadline: float) -> Connection:
        """The connection to the loaded model, with `_turn` held."""
        while True:
            self.start()
            with self._changed:
                self._changed.wait_for(lambda: self._state.state != "loading", _left(deadline))
                if self._state.state == "loading" or not _left(deadline):
                    raise ModelLoading(f"the model was not ready within {_WAIT_SECONDS:.0f} s; ask again later")
            if not self._turn.acquire(timeout=_left(deadline)):
                raise ModelLoading("the model still answers other questions; ask again in a moment")
            connection, state = self._connection, self._state
            # Before a question there is nothing to read but the end of a process that has died meanwhile.
            if state.state == "ready" and connection is not None and not _has_ended(connection):
                return connection
            self._turn.release()
            if state.state == "failed":
                raise ModelError(str(state.message))
            with self._changed:
                self._changed.wait_for(partial(self._differs, state), _left(deadline))

    def _differs(self, state: ModelState) -> bool:
        return self._state is not state

    def _kill(self) -> None:
        with self._changed:
            if self._process is not None:
                self._process.kill()

    def _keep_alive(self) -> None:
        """Start the process, and start it again whenever it dies, until it fails or is closed."""
        while True:
            with self._changed:
                if not self._may_start:
                    return
                self._connection, self._process = self._started()
            failure = self._load(self._connection)
            code = self._process.wait()
            # A question that is waiting for an answer has read the end of the connection first.
            with self._turn:
                self._connection.close()
            with self._changed:
                self._connection = self._process = None
                if not self._may_start:
                    return
                if failure is not None:
                    self._may_start = False
                    self._say("failed", failure)
                    return
                how = _ending(code)
                if self._died_often():
                    self._say(
                        "failed",
                        f"the model's process ended {_MOST_DEATHS} times within a minute, last {how}; what is "
                        "stored is still shown, and a question after a minute starts it again",
                    )
                    return
                self._say("loading", f"the model's process ended {how} and is started again")

    def _started(self) -> tuple[Connection, subprocess.Popen[bytes]]:
        environment = dict(os.environ) if self._download else {**os.environ, **_OFFLINE}
        return started("headspan.web.state.model_worker", environment)

    def _load(self, connection: Connection) -> str | None:
        """Wait until the model is loaded, or its process has ended; returns why it cannot be loaded."""
        try:
            connection.send(self._settings)
            while True:
                word, value = connection.recv()
                with self._changed:
                    if not self._may_start:
                        return None
                    if word == LOADING:
                        self._say("loading", f"the model is being loaded: {value}")
                    elif word == READY:
                        self._say("ready", None)
                        return None
                    else:
                        hint = "" if self._download else "; headspan explore --download may fetch what is missing"
                        return f"the model cannot be loaded: {value}{hint}"
        except (EOFError, OSError):
            return None

    def _died_often(self) -> bool:
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > _MINUTE:
            self._deaths.popleft()
        return len(self._deaths) >= _MOST_DEATHS

    def _say(self, state: str, message: str | None) -> None:
        self._state = ModelState(state=state, message=message)
        self._changed.notify_all()


def _left(deadline: float) -> float:
    """The seconds until then; 0 if it has passed."""
    return max(0.0, deadline - time.monotonic())


def _has_ended(connection: Connection) -> bool:
    """Whether the process at the other end, which sends nothing unasked, has ended."""
    try:
        return connection.poll(0)
    except OSError:
        return True


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"with exit code {code}"
