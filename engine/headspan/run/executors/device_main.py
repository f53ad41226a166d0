"""The main function of a process that computes units on one device, for the process that planned the store.

It takes one order from standard input and runs `precompute` on the store, which exists. Messages have a pipe of their
own, since libraries may print. It ends if its parent does.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import torch

from headspan.errors import HeadspanError, StoreError
from headspan.events import Progress
from headspan.io.stores import storage_at
from headspan.run.executors.messages import Committed, Event, Failed, Finished, Message, Order, line_of, message_of
from headspan.run.executors.process import GRACE_SECONDS
from headspan.run.precompute import precompute
from headspan.store.worker_states import worker_of

# How long a file system in a network may take to show a file that another computer has written.
_FILES_APPEAR_SECONDS = 5.0


class _Parent:
    """The process at the other end of standard input and of the pipe for messages."""

    def __init__(self, pipe: int) -> None:
        # Processes started from here do not inherit it.
        os.set_inheritable(pipe, False)
        self._out = os.fdopen(pipe, "wb")
        self._lock = threading.Lock()
        # Notes before the first image are about settings and model; the parent has printed them.
        self._begun = False

    def order(self) -> Order | None:
        """Wait for the order; None if the parent ended without one."""
        line = bytearray()
        while not line.endswith(b"\n"):
            # Not through `sys.stdin`: Python aborts at its end if a thread waits in that object.
            read = os.read(0, 1 << 16)
            if not read:
                return None
            line += read
        order = message_of(bytes(line))
        assert isinstance(order, Order)
        threading.Thread(target=self._end_with_parent, daemon=True).start()
        return order

    def send(self, message: Message) -> None:
        """Send a message."""
        with self._lock:
            try:
                self._out.write(line_of(message))
                self._out.flush()
            except BrokenPipeError:
                # `_end_with_parent` ends this process.
                pass

    def progress(self, event: Progress) -> None:
        """Pass on an event of the run."""
        self._begun |= event.stage == "images"
        if self._begun:
            self.send(Event(event.stage, event.done, event.total, event.note))

    @staticmethod
    def _end_with_parent() -> None:
        while os.read(0, 1 << 12):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        # A library may have caught the interruption that the signal becomes.
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)


def main(pipe: int) -> int:
    """Carry out one order, with `pipe` for the messages; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = _Parent(pipe)
    order = parent.order()
    if order is None:
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(order.torch_threads)
    try:
        if order.planner is not None:
            _refuse_other_store(order.settings["out"], order.planner)
        summary = precompute(order.for_device(), parent.progress, lambda record: parent.send(Committed.of(record)))
    except HeadspanError as error:
        parent.send(Failed(type(error).__name__, str(error)))
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    parent.send(Finished(summary.seconds))
    return 0


def _refuse_other_store(location: str, planner: str) -> None:
    """Raise StoreError unless the store at `location` is the one of the living process `planner`."""
    deadline = time.monotonic() + _FILES_APPEAR_SECONDS
    while worker_of(storage_at(location), planner) is None:
        if time.monotonic() > deadline:
            raise StoreError(
                f"{location} is not the store that was planned; put the store in a folder that all nodes share under "
                "the same path, or in a bucket"
            )
        time.sleep(0.2)


def _interrupt(number: int, frame: object) -> None:
    """End as after Ctrl-C, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
