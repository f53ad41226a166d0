"""Decode samples outside a run, in spans of an awkward size, with threads or with processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from headspan.config import Preprocess
from headspan.decode.decoder import Decoder
from headspan.decode.exact import fill_exact
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.threads import ThreadDecoder
from headspan.shards.samples import BadImage, Sample, SampleSpan

MECHANISMS = ("threads", "processes")


def decoder(
    mechanism: str, preprocess: Preprocess, in_flight_bytes: int, workers: int, batch_size: int = 7, **more: Any
) -> Decoder:
    """A decoder of one of MECHANISMS, with the route `exact`."""
    if mechanism == "threads":
        return ThreadDecoder(fill_exact, preprocess, in_flight_bytes, workers, **more)
    return ProcessDecoder("exact", preprocess, in_flight_bytes, batch_size, workers, **more)


def spans(samples: Sequence[Sample], images: int = 3) -> Iterator[SampleSpan]:
    """`samples` in spans of so many."""
    for first in range(0, len(samples), images):
        yield SampleSpan.of(samples[first : first + images])


def decoded(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    bad: list[BadImage],
    workers: int = 2,
    in_flight_bytes: int = 1 << 22,
    mechanism: str = "threads",
) -> list[tuple[int, np.ndarray]]:
    """Row and pixels of every good image; bad images are appended to `bad`."""
    found: list[tuple[int, np.ndarray]] = []
    for span in decoder(mechanism, preprocess, in_flight_bytes, workers).decode(spans(samples)):
        for part in span.good.parts:
            found += zip(span.good.rows.tolist(), part.copy(), strict=True)
        span.good.release()
        bad += span.bad
    return found
