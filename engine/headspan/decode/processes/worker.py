"""The main function of a decoding process: receive spans, decode their images into slots, send back results.

The process imports no torch until the route `fast` decodes its first image. It ends as soon as the launching process
closes the connection or ends.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

import google_crc32c
import numpy as np

from headspan.decode.exact import Undecodable, open_image, raster_bytes
from headspan.decode.processes.messages import SpanFailure, SpanResult, WorkerSettings, receive, send
from headspan.decode.processes.reading import EncodedSpan, Reader
from headspan.decode.processes.ring import NOWHERE, Ring
from headspan.decode.routes import Route, route
from headspan.errors import HeadspanError
from headspan.io.memory import empty_file

# What libraries print goes to a memory file, which is emptied when it is larger than this.
_PRINTED_BYTES = 1 << 16


def main(descriptor: int, early_route: str = "") -> None:
    """Serve the launching process, which is at the other end of the socket `descriptor`, until it closes it.

    What `early_route` needs is imported before the settings arrive, if it is named.
    """
    # The launching process receives Ctrl-C and SIGTERM, and ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    connection = Connection(descriptor)
    if early_route:
        # If it cannot be imported, the first image says so.
        with suppress(HeadspanError):
            route(early_route)
    settings: WorkerSettings = receive(connection)
    ring = Ring(settings)
    reader = Reader(settings, ring)
    threading.Thread(target=_receive, args=(connection, reader), name="headspan-receive", daemon=True).start()
    decoder = _Decoder(settings, ring)
    while True:
        send(connection, decoder.answer(reader.next()))
        _forget_printed()


def _receive(connection: Connection, reader: Reader) -> None:
    try:
        while True:
            reader.give(receive(connection))
    except (EOFError, OSError):
        # The launching process has ended or needs no more images; nobody waits for the one that is being decoded.
        os._exit(0)


class _Decoder:
    def __init__(self, settings: WorkerSettings, ring: Ring) -> None:
        self._settings, self._ring = settings, ring
        self._route: Route | None = None

    def answer(self, span: EncodedSpan) -> SpanResult | SpanFailure:
        """Decode a span."""
        try:
            return self._decode(span)
        except HeadspanError as error:
            return SpanFailure(span.request.number, _public(error), str(error))
        # A bug; the launching process raises it.
        except Exception:
            return SpanFailure(span.request.number, "", traceback.format_exc())

    def _decode(self, span: EncodedSpan) -> SpanResult:
        request, worker = span.request, self._settings.worker
        slot = self._ring.slots[request.slot]
        self._ring.begin(worker, request.number)
        began = time.perf_counter()
        bad: list[tuple[int, str]] = []
        good = encoded_bytes = crc32c = 0
        for place, encoded, no_bytes in span:
            encoded_bytes += len(encoded)
            crc32c = google_crc32c.extend(crc32c, encoded)
            reason = request.reasons.get(place, no_bytes)
            if reason is None:
                self._ring.note_image(worker, place)
                # A bad image's pixels are overwritten by the next image.
                reason = self._decode_image(encoded, slot[good])
                self._ring.note_image(worker, NOWHERE)
            if reason is None:
                good += 1
            else:
                bad.append((place, reason))
        decoding_seconds = time.perf_counter() - began - span.waiting_seconds
        reading_seconds = span.reading_seconds + span.answering_seconds
        return SpanResult(request.number, tuple(bad), encoded_bytes, crc32c, reading_seconds, decoding_seconds)

    def _decode_image(self, encoded: bytes, pixels: np.ndarray) -> str | None:
        """Fill `pixels`; for a bad image, the reason."""
        preprocess = self._settings.preprocess
        try:
            image = open_image(encoded, preprocess)
            if self._route is None:
                # The route `fast` imports torch.
                self._route = route(self._settings.route)
            with self._ring.raster(self._settings.worker, raster_bytes(image, preprocess)):
                self._route(encoded, image, preprocess, pixels)
        except Undecodable as error:
            return str(error)
        return None


def _public(error: HeadspanError) -> str:
    """The name of the error's class, or of the first base class that the launching process knows."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == HeadspanError.__module__)


def _forget_printed() -> None:
    """Empty the memory file that receives what libraries print, if they have printed much."""
    if os.fstat(2).st_size > _PRINTED_BYTES:
        empty_file(2)
