"""Add up what the workers of a call report: progress, bad images, seconds and ends.

What they stored is read from the store's records, since a worker may be killed after a commit and before its report.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from headspan.errors import HeadspanError
from headspan.events import NOTE, Listener, Progress
from headspan.run.bad_limit import refuse_bad
from headspan.run.executors.messages import Committed, Event, Failed, Finished, Message
from headspan.run.summary import Summary
from headspan.shards.samples import BadImage
from headspan.store.commit_records import UnitRecord
from headspan.store.write.unit import StoreWriter
from headspan.timing import StageTimes


@dataclass(slots=True)
class _Share:
    """What one worker has done in this call."""

    # Images that were finished when it began, by its own count; None before it reports.
    before: int | None = None
    # Images that it has finished or is computing, and images of the units that it committed.
    seen: int = 0
    committed: int = 0
    running: bool = True
    # Whether it ended with nothing left to do.
    finished: bool = False


class Total:
    """What all workers have done in this call. A worker is any object; its messages come with it."""

    def __init__(
        self, store: StoreWriter, max_bad: str | int | None, on_progress: Listener, worker: str = "process"
    ) -> None:
        """Nothing has been done yet. `worker` is what the workers are called in messages."""
        self._worker = worker
        self._store = store
        self._max_bad = max_bad
        self._on_progress = on_progress
        self._shares: dict[object, _Share] = {}
        # Ends of workers that died, in words.
        self._deaths: list[str] = []
        records = store.commits.records()
        self._units_before = {record.unit for record in records}
        self._before = sum(record.rows for record in records)
        self._bad_before = [image for record in records for image in record.bad]
        # Those that are found in this call, by row, as far as they are known.
        self._bad: dict[int, BadImage] = {}
        self._units = 0
        self._seconds = dict.fromkeys(StageTimes().seconds(), 0.0)
        self._began = time.perf_counter()
        # The largest count that was reported: images of a worker that dies are computed again.
        self._shown = 0
        self._note_bad([])
        self._report()

    @property
    def running(self) -> bool:
        """Whether any worker is running."""
        return any(share.running for share in self._shares.values())

    @property
    def finished(self) -> bool:
        """Whether a worker found nothing left to do."""
        return any(share.finished for share in self._shares.values())

    @property
    def units_left(self) -> int:
        """How many units nobody has reported as committed, before or during the call."""
        return len(self._store.units) - len(self._units_before) - self._units

    def add(self, worker: object) -> None:
        """Expect messages of `worker`, which runs now."""
        self._shares[worker] = _Share()

    def begun(self, worker: object) -> bool:
        """Whether `worker` has begun to compute."""
        return self._shares[worker].before is not None

    def committed(self, worker: object) -> int:
        """The images of units that `worker` has reported as committed."""
        return self._shares[worker].committed

    def take(self, worker: object, message: Message) -> None:
        """Take note of a message. Raises the error that a worker reports."""
        share = self._shares[worker]
        match message:
            case Event(stage="images", done=done):
                share.before = done if share.before is None else share.before
                share.seen = done - share.before
                self._report()
            case Event():
                self._on_progress(message.progress)
            case Committed():
                share.committed += message.rows
                self._units += 1
                self._note_bad(message.bad_images)
            case Finished():
                share.finished = True
                for stage, seconds in message.seconds.items():
                    self._seconds[stage] += seconds
            case Failed():
                raise message.error

    def end(self, worker: object) -> bool:
        """Take note that a worker sends no more messages. Returns whether it had finished, rather than died."""
        share = self._shares[worker]
        share.running = False
        if not share.finished:
            share.seen = share.committed
            # It may have committed a unit that it did not report.
            self._note_bad(image for record in self._stored() for image in record.bad)
        return share.finished

    def note_death(self, end: str, note: str = "") -> None:
        """Keep how a worker died, for the error if all die, and report the sentence `note`, if there is one."""
        self._deaths.append(end)
        if note:
            self._on_progress(Progress(NOTE, 0, None, note))

    def summary(self) -> Summary:
        """The result of the call, once no worker is running: every unit that was committed since it began.

        Raises HeadspanError if all workers died, and SourceError if more images are bad than `max_bad` allows.
        """
        if not self.finished:
            raise HeadspanError(
                f"{self._store.path}: no {self._worker} is left: {self._deaths_in_words()}; run the same command to "
                "continue"
            )
        # If the worker that was to complete the store has died.
        self._store.finish()
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

    def _deaths_in_words(self) -> str:
        return "; ".join(self._deaths) or f"no {self._worker} has begun"

    def _report(self, finished: int | None = None) -> None:
        """Report the images that are finished, or that some worker is computing."""
        images = self._store.size.images
        done = self._before + sum(share.seen for share in self._shares.values()) if finished is None else finished
        # Near the end, two workers may compute the same unit.
        self._shown = max(self._shown, min(done, images))
        self._on_progress(Progress("images", self._shown, images, f"{len(self._bad)} bad" if self._bad else ""))

    def _stored(self) -> list[UnitRecord]:
        """The records of the units that were committed since the call began."""
        return [record for record in self._store.commits.records() if record.unit not in self._units_before]

    def _note_bad(self, images: Iterable[BadImage]) -> None:
        self._bad.update((image.row, image) for image in images)
        refuse_bad(self._store, [*self._bad_before, *self._bad.values()], self._max_bad)
