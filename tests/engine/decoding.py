"""Decode samples outside a run, in spans of an awkward size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from headspan.config import Preprocess
from headspan.decode.exact import fill_exact
from headspan.decode.threads import ThreadDecoder
from headspan.shards.samples import BadImage, Sample, SampleSpan


def spans(samples: Sequence[Sample], images: int = 3) -> Iterator[SampleSpan]:
    """`samples` in spans of so many."""
    for first in range(0, len(samples), images):
        yield SampleSpan.of(samples[first : first + images])


def decoded(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    bad: list[BadImage],
    threads: int = 2,
    in_flight_bytes: int = 1 << 22,
) -> list[tuple[int, np.ndarray]]:
    """Row and pixels of every good image; bad images are appended to `bad`."""
    found: list[tuple[int, np.ndarray]] = []
    for span in ThreadDecoder(fill_exact, preprocess, in_flight_bytes, threads).decode(spans(samples)):
        found += zip(span.good.rows.tolist(), span.good.parts[0], strict=True)
        bad += span.bad
    return found
