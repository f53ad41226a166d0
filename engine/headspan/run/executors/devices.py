"""Compute the units of a store on several devices, with one process for each.

This process plans the store, adds up what the others report, and prints nothing of its own. The scheduler of each
process gives it other units than the others have. If a process dies, the others compute its units; if all die, the
same call continues after the last committed unit.
"""

from __future__ import annotations

import queue
from dataclasses import asdict, replace

import torch

from headspan.config import PrecomputeSettings, ResolvedSettings
from headspan.decode.processes.decoder import default_workers
from headspan.events import Listener
from headspan.run.devices import named_devices
from headspan.run.executors.messages import Order
from headspan.run.executors.process import DeviceProcess, Inbox, end
from headspan.run.executors.total import Total
from headspan.run.summary import Summary
from headspan.store.write.unit import StoreWriter


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

    @property
    def count(self) -> int:
        """How many processes will compute, as far as is known before the plan: one for each device."""
        return max(1, len(self._devices))

    def planning(self, settings: PrecomputeSettings) -> PrecomputeSettings:
        """The settings with which this process plans the store: the same, since it has all the devices."""
        return settings

    def run(self, settings: ResolvedSettings, store: StoreWriter, on_progress: Listener) -> Summary:
        """Compute the unfinished units of `store`, which is planned.

        Raises the first HeadspanError that a process raises, SourceError if together they find more bad images than
        `max_bad` allows, and HeadspanError if all of them die.
        """
        # No more than there are units to compute.
        chosen = self._processes[: max(1, len(store.unfinished()))]
        total = Total(store, settings.max_bad, on_progress)
        for process in chosen:
            total.add(process)
            process.order(_order(settings, process.device, len(chosen)))
        while total.running:
            process, message = self._inbox.get()
            if process not in chosen:
                continue
            if message is not None:
                total.take(process, message)
            elif not total.end(process):
                ended = f"{process.device} {process.end_in_words()}"
                others = total.running or total.finished
                note = f"the process on {ended}; the other processes compute its units"
                total.note_death(ended, note if others else "")
        return total.summary()


def _order(settings: ResolvedSettings, device: str, devices: int) -> Order:
    """What the process of one device is to do; the cores are shared equally."""
    workers = settings.workers or default_workers(devices)
    # The planning process counts the bad images of all.
    own = replace(settings, device=device, workers=workers, max_bad=None)
    return Order(asdict(own), torch.get_num_threads())
