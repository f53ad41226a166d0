"""The main function of a process that computes units on one device, for the process that planned the store.

It takes one order from standard input and runs `precompute` on the store, which exists. Standard output carries
messages alone. It ends if its parent does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import BinaryIO

import torch

from headspan.errors import HeadspanError
from headspan.events import Progress
from headspan.run.executors.messages import Committed, Event, Failed, Finished, Message, Order, line_of, message_of
from headspan.run.precompute import precompute


class _Parent:
    """The process at the other end of standard input and output."""

    def __init__(self) -> None:
        # Libraries may print; what they print goes to standard error. Processes started from here do not inherit it.
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        # Notes before the first image are about settings and model; the parent has printed them.
        self._begun = False

    def order(self) -> Order | None:
        """Wait for the order; None if the parent ended without one."""
        line = sys.stdin.buffer.readline()
        if not line:
            return None
        order = message_of(line)
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
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Carry out one order; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = _Parent()
    order = parent.order()
    if order is None:
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(order.torch_threads)
    try:
        summary = precompute(order.for_device(), parent.progress, lambda record: parent.send(Committed.of(record)))
    except HeadspanError as error:
        parent.send(Failed(type(error).__name__, str(error)))
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    parent.send(Finished(summary.seconds))
    return 0


def _interrupt(number: int, frame: object) -> None:
    """End as after Ctrl-C, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
