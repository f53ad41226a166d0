"""One pass over spans: hand them to decoding processes, and yield the decoded ones in order, as views of ring slots.

The thread that runs it works per span; it neither reads nor touches single images, unless only this process can read a
shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from headspan import errors
from headspan.decode.batches import Batch, DecodedSpan
from headspan.decode.processes.kept import DecodingProcesses, Pin
from headspan.decode.processes.messages import Run, SpanFailure, SpanRequest, WorkerSettings, cut
from headspan.decode.processes.pool import Answer, Pool
from headspan.decode.processes.ring import Ring
from headspan.decode.processes.sources import Sources
from headspan.decode.processes.worker_process import Worker
from headspan.errors import HeadspanError, SourceError
from headspan.shards.samples import SampleSpan
from headspan.timing import StageTimes

# Parts of spans that fit the spools together, so that one is copied while others are decoded.
_PARTS_IN_SPOOLS = 4
# Slots that are never lent while the consumer may need more images.
KEPT_SLOTS = 2


@dataclass(slots=True)
class _Pending:
    """Images `start` to `stop` of a span, which a worker decodes into a slot."""

    span: SampleSpan
    start: int
    stop: int
    slot: int
    spooled_bytes: int
    answer: Answer | None = None


class Decoding(Generator[DecodedSpan, None, None]):
    """The decoded spans, in order. Closing it ends the processes; so does `interrupt`, from any thread."""

    def __init__(
        self,
        spans: Iterable[SampleSpan],
        settings: WorkerSettings,
        sources: Sources,
        times: StageTimes,
        held_images: int,
        spool_bytes: int,
        pin: Pin | None,
        processes: DecodingProcesses | None,
    ) -> None:
        """Decode in `processes`, which remain afterwards, or without them in processes of this pass alone.

        The consumer never holds more than `held_images` without releasing some. `spool_bytes` limits the encoded bytes
        in spools; an image that is larger is copied alone.
        """
        self._processes = processes
        self._spans = iter(spans)
        self._settings, self._sources, self._times, self._pin = settings, sources, times, pin
        self._held_images = held_images
        self._spool_bytes, self._spooled_bytes = spool_bytes, 0
        self._pool: Pool | None = None
        self._free = deque(range(settings.slots))
        # The slots that the consumer has, with their good images.
        self._lent: dict[int, int] = {}
        # A part of a span that is still to be decoded: where it begins.
        self._rest: tuple[SampleSpan, int] | None = None
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._interrupted = self._needs_slot = False
        self._steps = self._run()

    def send(self, value: None) -> DecodedSpan:
        """The next span."""
        return self._steps.send(value)

    def throw(self, *error: Any) -> DecodedSpan:
        """Raise an exception where the generator waits."""
        return self._steps.throw(*error)

    def close(self) -> None:
        """End the processes."""
        self._steps.close()

    def interrupt(self) -> None:
        """Let the thread that waits for the next span end the processes and stop."""
        self._interrupted = True
        if self._pool is not None:
            self._pool.wake()

    def _run(self) -> Generator[DecodedSpan, None, None]:
        if not self._has_next():
            # Without spans, neither memory nor processes are needed.
            return
        with ExitStack() as stack:
            stack.callback(self._sources.close)
            processes = self._processes or stack.enter_context(DecodingProcesses(self._settings.workers))
            # Their answers to spans that nobody needs any more must not reach another pass.
            ending = stack.enter_context(ExitStack())
            ending.callback(processes.abandon)
            self._pool, ring = processes.begin(self._settings, self._pin)
            yield from self._decoded(self._pool, ring)
            if self._processes is not None and not self._pending:
                ending.pop_all()
                processes.end(self._lent)

    def _decoded(self, pool: Pool, ring: Ring) -> Iterator[DecodedSpan]:
        order = self._pending
        failure: HeadspanError | None = None
        ended = False
        while not (self._interrupted or pool.stopped):
            try:
                while not ended and self._free and (worker := pool.idlest()) is not None:
                    if not (ended := not self._has_next()) and not self._give_next(pool, worker):
                        break
            except SourceError as error:
                # The spans before it may complete a unit.
                failure, ended = error, True
            if order and (first := next(iter(order.values()))).answer is not None:
                del order[next(iter(order))]
                yield self._finished(first, ring)
                continue
            if ended and not order:
                if failure is not None:
                    raise failure
                return
            # While decoded spans are taken, no answers are collected: every worker still has another span.
            self._needs_slot = needs_slot = not ended and not self._free
            # A slot that was released just before this was noted has woken nobody.
            if not (needs_slot and self._free):
                ended = self._collect(pool) or ended
            self._needs_slot = False

    def _collect(self, pool: Pool) -> bool:
        """Note the answers of workers. Returns whether one of them is a failure."""
        failed = False
        for answer in pool.collect():
            pending = self._pending[answer.number]
            pending.answer = answer
            self._spooled_bytes -= pending.spooled_bytes
            failed |= isinstance(answer, SpanFailure)
        return failed

    def _has_next(self) -> bool:
        if self._rest is None:
            span = next(self._spans, None)
            self._rest = None if span is None else (span, 0)
        return self._rest is not None

    def _give_next(self, pool: Pool, worker: Worker) -> bool:
        """Give a worker the next images. Returns False if the spools have no room for them yet."""
        assert self._rest is not None
        span, start = self._rest
        runs, name = self._next_runs(span, start)
        stop, spooled_bytes = min(start + sum(run.images for run in runs), start + self._settings.slot_images), 0
        if name is not None:
            stop, spooled_bytes = self._part(span.sizes, start, stop)
        if self._spooled_bytes and self._spooled_bytes + spooled_bytes > self._spool_bytes:
            return False
        spool, reasons = -1, dict[int, str]()
        if name is not None:
            spool = worker.free_spool()
            with self._times.of("reading"):
                ends, reasons = self._sources.copy(span, start, stop, worker.spools[spool], self._part_bytes)
            # Fewer images than planned if their sizes were estimates.
            stop, spooled_bytes = start + len(ends) - 1, ends[-1]
            offsets, sizes = tuple(ends[:-1]), tuple(np.diff(ends).tolist())
        else:
            offsets, sizes = tuple(span.offsets[start:stop].tolist()), tuple(span.sizes[start:stop].tolist())
        needs_members = any(run.place is not None and run.place.needs_members for run in runs)
        members = tuple(span.members_of(start, stop)) if needs_members else ()
        images = cut(runs, 0, stop - start)
        request = SpanRequest(self._number, self._free.popleft(), images, offsets, sizes, spool, reasons, members)
        self._pending[self._number] = _Pending(span, start, stop, request.slot, spooled_bytes)
        self._number += 1
        self._spooled_bytes += spooled_bytes
        self._rest = None if stop == len(span) else (span, stop)
        pool.give(worker, request)
        return True

    def _next_runs(self, span: SampleSpan, start: int) -> tuple[tuple[Run, ...], str | None]:
        """The runs that begin at image `start` and can be given to a worker together.

        They are those that workers can read, up to the first that only this process can read. Such a run is alone, and
        comes with its shard's name. It is opened only after the one before it was copied, since one is open at a time.
        """
        runs: list[Run] = []
        begin = 0
        for name, images in span.runs:
            begin += images
            if begin <= start:
                continue
            place = self._sources.place(name)
            if place is None and runs:
                break
            runs.append(Run(min(images, begin - start), place))
            if place is None:
                return tuple(runs), name
        return tuple(runs), None

    def _part(self, sizes: np.ndarray, start: int, stop: int) -> tuple[int, int]:
        """How far the images from `start` to `stop` fit a spool, one at least, and the bytes that they take there."""
        ends = np.cumsum(sizes[start:stop])
        images = max(1, int(np.searchsorted(ends, self._part_bytes, side="right")))
        return start + images, int(ends[images - 1])

    @property
    def _part_bytes(self) -> int:
        return self._spool_bytes // _PARTS_IN_SPOOLS

    def _finished(self, pending: _Pending, ring: Ring) -> DecodedSpan:
        """The span of an answer. Raises the error that a worker met."""
        answer = pending.answer
        assert answer is not None
        if isinstance(answer, SpanFailure):
            raise _error(answer)
        self._times.add("reading", answer.reading_seconds)
        self._times.add("decoding", answer.decoding_seconds)
        span = pending.span
        rows = span.rows[pending.start : pending.stop]
        last_row = int(rows[-1])
        if answer.bad:
            rows = np.delete(rows, [place for place, _ in answer.bad])
        return DecodedSpan(
            self._good(rows, ring.slots[pending.slot], pending.slot),
            tuple(span.bad_image(pending.start + place, reason) for place, reason in answer.bad),
            last_row,
            answer.encoded_bytes,
            answer.crc32c,
        )

    def _good(self, rows: np.ndarray, pixels: np.ndarray, slot: int) -> Batch:
        """The good images of a slot, as a view of it.

        They are copied if the consumer has nearly all slots and may still need more images for a batch, because many
        images are bad or many spans are short. It would otherwise wait for the next span, and that for a slot.
        """
        images = len(rows)
        if images and (len(self._lent) < self._settings.slots - KEPT_SLOTS or self._has_enough()):
            self._lent[slot] = images
            return Batch(rows, (pixels[:images],), partial(self._take_back, slot))
        self._free.append(slot)
        return Batch(rows, (pixels[:images].copy(),))

    def _has_enough(self) -> bool:
        return sum(list(self._lent.values())) >= self._held_images

    def _take_back(self, slot: int) -> None:
        """Use a slot again. Any thread may call this, also after the end."""
        assert slot in self._lent, "a batch is released once"
        del self._lent[slot]
        self._free.append(slot)
        if self._needs_slot and self._pool is not None:
            self._pool.wake()


def _error(failure: SpanFailure) -> Exception:
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, HeadspanError):
        return kind(failure.text)
    return RuntimeError(f"a decoding process failed:\n{failure.text}")
