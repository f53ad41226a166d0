"""The Ray actor that watches one computing process on its node, and passes on what that process reports.

The process is that of `DeviceProcess`: what it prints stays with it, and its crash does not end the actor. It ends if
the actor does, and Ray ends the actor with its driver.
"""

from __future__ import annotations

from typing import Any

# Messages are collected over this time, so that the driver of many workers gets few answers.
_COLLECT_SECONDS = 0.25


def worker_class(collect_seconds: float = _COLLECT_SECONDS) -> type[Any]:
    """The class of the actors.

    It is made in a function, so that Ray sends its code rather than its name: a node without headspan, or with another
    version of it, can then say so. For the same reason its methods import what they need.
    """

    class Worker:
        """An actor with resources for one computing process."""

        def facts(self) -> dict[str, str | None]:
            """The versions of this node, by their name."""
            import platform
            from importlib.metadata import PackageNotFoundError, version

            try:
                installed: str | None = version("headspan")
            except PackageNotFoundError:
                installed = None
            return {"headspan": installed, "Python": ".".join(platform.python_version_tuple()[:2])}

        def begin(self, device: str, folder: str, order: bytes) -> list[Any]:
            """Start the process, in `folder` if this node has it, and give it its order. There is no message yet."""
            import queue
            from pathlib import Path

            from headspan.run.executors.messages import Order, message_of
            from headspan.run.executors.process import DeviceProcess, Inbox

            self._inbox: Inbox = queue.SimpleQueue()
            self._process = DeviceProcess(device, self._inbox, folder if Path(folder).is_dir() else None)
            found = message_of(order)
            assert isinstance(found, Order)
            self._process.order(found)
            return []

        def messages(self) -> list[Any]:
            """Wait for messages of the process. Of several counts of images, only the last one is returned."""
            import queue
            import time

            from headspan.run.executors.messages import Ended, Event

            found: list[Any] = [self._inbox.get()[1]]
            until = time.monotonic() + collect_seconds
            while found[-1] is not None and (left := until - time.monotonic()) > 0:
                try:
                    found.append(self._inbox.get(timeout=left)[1])
                except queue.Empty:
                    break
            counts = [message for message in found if isinstance(message, Event) and message.stage == "images"]
            # The first one too: it says what was finished before.
            between = {id(message) for message in counts[1:-1]}
            found = [message for message in found if id(message) not in between]
            if found[-1] is None:
                found[-1] = Ended(self._process.end_in_words())
            return found

        def stop(self) -> None:
            """End the process; it deletes its staged files first."""
            from headspan.run.executors.process import end

            if hasattr(self, "_process"):
                end([self._process])

    return Worker
