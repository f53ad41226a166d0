"""When each frame of a video is shown, read from its packets without decoding them, and which frames are wanted.

Source of the choice: the published code of "Quantifying Interpretability in CLIP Models with Concept Consistency"
takes the middle frame of equal spans, and repeats the last frame of a video with fewer frames than spans. Here the
spans are of time, which is the same for a constant frame rate up to one frame, and exact for a variable one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

# Containers whose packets of key frames can be trusted: decoding may begin at each of them.
_SEEKABLE = ("mov", "matroska")
# Containers that state the time at which they end. Others are estimates.
_STATED = ("mov", "matroska", "avi")
# A video that ends this many seconds, and this share, before its stated end is truncated.
_SHORT_SECONDS, _SHORT_SHARE = 0.5, 0.05


class UnusableVideoError(Exception):
    """A video whose frames cannot be had; its text is the reason, as the second half of a sentence."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a video in the order in which they are shown. Times are in ticks of `time_base` seconds."""

    starts: tuple[int, ...]
    end: int
    time_base: Fraction
    # For each frame, the number of the packet at which decoding may begin; all 0 if it must begin at the first.
    begins: tuple[int, ...]
    # Whether decoded frames are told apart by their order, since their time stamps cannot be trusted.
    by_order: bool

    @property
    def duration_seconds(self) -> float:
        """From the first frame's start to the last frame's end."""
        return float((self.end - self.starts[0]) * self.time_base)

    def seconds(self, frame: int) -> float:
        """When a frame is shown first, counted from the first frame's start."""
        return float((self.starts[frame] - self.starts[0]) * self.time_base)

    def middles(self, count: int) -> list[int]:
        """The frames shown at the middles of `count` equal spans of the duration, in order.

        At a middle at which one frame gives way to the next, the earlier one counts. If the video has fewer frames than
        `count`, each of them once, and the last one again until there are `count`.
        """
        frames = len(self.starts)
        if frames < count:
            return [min(place, frames - 1) for place in range(count)]
        found, frame = [], 0
        for place in range(count):
            # The middle, times 2 · count, so that all numbers are whole.
            middle = 2 * count * self.starts[0] + (2 * place + 1) * (self.end - self.starts[0])
            while frame + 1 < frames and 2 * count * self.starts[frame + 1] < middle:
                frame += 1
            found.append(frame)
        return found


def video_stream(container: Any) -> Any:
    """The first stream of pictures that is not a cover. Raises UnusableVideoError if there is none."""
    streams = [each for each in container.streams.video if "attached_pic" not in str(each.disposition).lower()]
    if not streams:
        kinds = sorted({each.type for each in container.streams})
        raise UnusableVideoError(f"holds no video stream, only {' and '.join(kinds) or 'nothing'}")
    return streams[0]


def read_timeline(container: Any) -> Timeline:
    """The timeline of an open container, whose packets are all read.

    Raises UnusableVideoError if it holds no frame, or if it ends before the end that it states.
    """
    stream, names = video_stream(container), container.format.name
    packets: list[tuple[int | None, int | None, int, bool, bool]] = []
    first_seconds, last_seconds = float("inf"), 0.0
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.time_base is not None:
            first_seconds = min(first_seconds, float(stamp * packet.time_base))
            last_seconds = max(last_seconds, float((stamp + (packet.duration or 0)) * packet.time_base))
        # An empty packet asks for what the decoder still holds; in an AVI, it repeats a frame.
        if packet.stream_index == stream.index and packet.size:
            packets.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_discard))
    shown = [each for each in packets if not each[4]]
    if not shown:
        raise UnusableVideoError("holds no frame")
    stated = (container.duration or 0) / 1_000_000 if any(name in names for name in _STATED) else 0.0
    missing = stated - (last_seconds - min(first_seconds, last_seconds))
    if missing > max(_SHORT_SECONDS, _SHORT_SHARE * stated):
        raise UnusableVideoError(f"ends {missing:.1f} s before the {stated:.1f} s that it states; it is truncated")
    # An AVI has no time stamps: those of its packets are their order of decoding.
    by_order = "avi" in names or any(pts is None for pts, *_ in shown)
    base = stream.time_base or Fraction(1, 1000)
    if by_order:
        stamps = [dts for _, dts, *_ in shown]
        starts = _numbered(stream, base, len(shown)) if None in stamps else sorted(map(int, stamps))  # type: ignore[arg-type]
    else:
        starts = sorted(int(pts) for pts, *_ in shown if pts is not None)
    durations = [duration for _, _, duration, *_ in shown]
    end = max(starts[-1] + (durations[-1] or _usual_gap(starts)), starts[-1])
    if not by_order:
        end = max(end, *(int(pts or 0) + duration for pts, _, duration, *_ in shown))
    seekable = not by_order and any(name in names for name in _SEEKABLE)
    begins = _begins(packets, starts) if seekable else (0,) * len(starts)
    return Timeline(tuple(starts), end, base, begins, by_order)


def _begins(
    packets: Sequence[tuple[int | None, int | None, int, bool, bool]], starts: Sequence[int]
) -> tuple[int, ...]:
    """For each frame, the last packet of a key frame that is shown at the same time or earlier."""
    keys = sorted((pts, number) for number, (pts, _, _, key, _) in enumerate(packets) if key and pts is not None)
    found, place, begin = [], 0, 0
    for start in starts:
        while place < len(keys) and keys[place][0] <= start:
            begin = max(begin, keys[place][1])
            place += 1
        found.append(begin)
    return tuple(found)


def _numbered(stream: Any, base: Fraction, frames: int) -> list[int]:
    """Starts for packets without time stamps: equal gaps, as the stream's frame rate says."""
    gap = max(1, round(1 / ((stream.average_rate or 25) * base)))
    return [gap * frame for frame in range(frames)]


def _usual_gap(starts: Sequence[int]) -> int:
    """The median time between frames; 0 for a single frame."""
    gaps = sorted(after - before for before, after in pairwise(starts))
    return gaps[len(gaps) // 2] if gaps else 0
