"""Compute the units of a store on several devices, with one process for each.

This process plans the store, adds up what the others report, and prints nothing of its own. What they stored is read
from the store's records, since a process may be killed after a commit and before its report. The scheduler of each
process gives it other units than the others have. If a process dies, the others compute its units; if all die, the
same call continues after the last committed unit.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from headspan.config import PrecomputeSettings, ResolvedSettings
from headspan.decode.processes.decoder import default_workers
from headspan.errors import HeadspanError
from headspan.events import NOTE, Listener, Progress
from headspan.run.bad_limit import refuse_bad
from headspan.run.devices import named_devices
from headspan.run.executors.messages import Committed, Event, Failed, Finished, Message, Order
from headspan.run.executors.process import DeviceProcess, Inbox, end
from headspan.run.summary import Summary
from headspan.shards.samples import BadImage
from headspan.store.commit_records import UnitRecord
from headspan.store.write.unit import StoreWriter
from headspan.timing import StageTimes


@dataclass(slots=True)
class _Share:
    """What one process has done in this call."""

    # Images that were finished when it began, by its own count; None before it reports.
    before: int | None = None
    # Images that it has finished or is computing, and images of the units that it committed.
    seen: int = 0
    committed: int = 0
    running: bool = True
    # Whether it ended with nothing left to do.
    finished: bool = False


class DeviceProcesses:
    """A process for each of several devices, in a `with` block that ends all of them; none for a single device."""

    def __init__(self, settings: PrecomputeSettings) -> None:
        """Nothing is started yet. Raises SettingsError if the settings name devices that do not exist."""
        devices = named_devices(settings.device)
        self._devices = [str(device) for device in devices] if len(devices) > 1 else []
        self._inbox: Inbox = queue.SimpleQueue()
        self._processes: list[DeviceProcess] = []

    def __enter__(self) -> DeviceProcesses:
        try:
            # They import libraries while this process reads the plan.
            for device in self._devices:
                self._processes.append(DeviceProcess(device, self._inbox))
        except BaseException:
            end(self._processes)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        end(self._processes)

    def __bool__(self) -> bool:
        return bool(self._devices)

    def run(self, settings: ResolvedSettings, store: StoreWriter, on_progress: Listener) -> Summary:
        """Compute the unfinished units of `store`, which is planned.

        Raises the first HeadspanError that a process raises, SourceError if together they find more bad images than
        `max_bad` allows, and HeadspanError if all of them die.
        """
        # No more than there are units to compute.
        chosen = self._processes[: max(1, len(store.unfinished()))]
        total = _Total(store, settings.max_bad, on_progress, chosen)
        for process in chosen:
            process.order(_order(settings, process.device, len(chosen)))
        while total.running:
            process, message = self._inbox.get()
            if process in chosen:
                total.take(process, message)
        return total.summary()


def _order(settings: ResolvedSettings, device: str, devices: int) -> Order:
    """What the process of one device is to do; the cores are shared equally."""
    workers = settings.workers or default_workers(devices)
    # The planning process counts the bad images of all.
    own = replace(settings, device=device, workers=workers, max_bad=None)
    return Order(asdict(own), torch.get_num_threads())


class _Total:
    """What all processes have done in this call."""

    def __init__(
        self,
        store: StoreWriter,
        max_bad: str | int | None,
        on_progress: Listener,
        processes: Sequence[DeviceProcess],
    ) -> None:
        self._store = store
        self._max_bad = max_bad
        self._on_progress = on_progress
        self._shares = {process: _Share() for process in processes}
        # Ends of processes that died, in words.
        self._deaths: list[str] = []
        records = store.commits.records()
        self._units_before = {record.unit for record in records}
        self._before = sum(record.rows for record in records)
        self._bad_before = [image for record in records for image in record.bad]
        # Those that are found in this call, by row, as far as they are known.
        self._bad: dict[int, BadImage] = {}
        self._seconds = dict.fromkeys(StageTimes().seconds(), 0.0)
        self._began = time.perf_counter()
        # The largest count that was reported: images of a process that dies are computed again.
        self._shown = 0
        self._note_bad([])
        self._report()

    @property
    def running(self) -> bool:
        """Whether any process is running."""
        return any(share.running for share in self._shares.values())

    def take(self, process: DeviceProcess, message: Message | None) -> None:
        """Take note of a message, or of the end of a process (None). Raises the error that a process reports."""
        share = self._shares[process]
        match message:
            case Event(stage="images", done=done):
                share.before = done if share.before is None else share.before
                share.seen = done - share.before
                self._report()
            case Event():
                self._on_progress(message.progress)
            case Committed():
                share.committed += message.rows
                self._note_bad(message.bad_images)
            case Finished():
                share.finished = True
                for stage, seconds in message.seconds.items():
                    self._seconds[stage] += seconds
            case Failed():
                raise message.error
            case None:
                share.running = False
                if not share.finished:
                    share.seen = share.committed
                    # It may have committed a unit that it did not report.
                    self._note_bad(image for record in self._stored() for image in record.bad)
                    self._note_death(f"{process.device} {process.end_in_words()}")

    def summary(self) -> Summary:
        """The result of the call, once no process is running: every unit that was committed since it began.

        Raises HeadspanError if all processes died, and SourceError if more images are bad than `max_bad` allows.
        """
        if not any(share.finished for share in self._shares.values()):
            raise HeadspanError(
                f"{self._store.path}: no process is left: {'; '.join(self._deaths)}; run the same command to continue"
            )
        stored = self._stored()
        self._bad = {}
        self._note_bad(image for record in stored for image in record.bad)
        finished = self._before + sum(record.rows for record in stored)
        if finished == self._store.size.images:
            self._report(finished)
        return Summary(
            path=str(self._store.path),
            images=sum(record.images for record in stored),
            bad=[image for _, image in sorted(self._bad.items())],
            skipped=self._before,
            quarantined=self._store.commits.quarantined_units(),
            seconds={**self._seconds, "total": time.perf_counter() - self._began},
            processes=len(self._shares),
        )

    def _report(self, finished: int | None = None) -> None:
        """Report the images that are finished, or that some process is computing."""
        images = self._store.size.images
        done = self._before + sum(share.seen for share in self._shares.values()) if finished is None else finished
        # Near the end, two processes may compute the same unit.
        self._shown = max(self._shown, min(done, images))
        self._on_progress(Progress("images", self._shown, images, f"{len(self._bad)} bad" if self._bad else ""))

    def _stored(self) -> list[UnitRecord]:
        """The records of the units that were committed since the call began."""
        return [record for record in self._store.commits.records() if record.unit not in self._units_before]

    def _note_bad(self, images: Iterable[BadImage]) -> None:
        self._bad.update((image.row, image) for image in images)
        refuse_bad(self._store, [*self._bad_before, *self._bad.values()], self._max_bad)

    def _note_death(self, end: str) -> None:
        self._deaths.append(end)
        if any(share.running or share.finished for share in self._shares.values()):
            said = f"the process on {end}; the other processes compute its units"
            self._on_progress(Progress(NOTE, 0, None, said))
