"""When each frame of a video is shown, read from its packets without decoding them, and which frames are wanted.

Source of the choice: the published code of "Quantifying Interpretability in CLIP Models with Concept Consistency"
takes the middle frame of equal spans, and repeats the last frame of a video with fewer frames than spans. Here the
spans are of time, which is the same for a constant frame rate up to one frame, and exact for a variable one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

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
    # Whether decoded frames are told apart by their order, since their time stamps cannot be trusted.
    by_order: bool = True
    # For each frame, the number of its packet, and of that at which decoding may begin; empty if packets of key frames
    # cannot be trusted.
    packets: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()

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


class _Packet(NamedTuple):
    """What a packet of the video says, in ticks."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    # Decoded, but not shown, as before the beginning of an edit.
    is_discarded: bool


def video_stream(container: Any) -> Any:
    """The first stream of pictures that is not a cover. Raises UnusableVideoError if there is none."""
    streams = [each for each in container.streams.video if "attached_pic" not in str(each.disposition).lower()]
    if not streams:
        kinds = sorted({each.type for each in container.streams})
        raise UnusableVideoError(f"holds no video stream, only {' and '.join(kinds)}" if kinds else "holds no stream")
    return streams[0]


def read_timeline(container: Any) -> Timeline:
    """The timeline of an open container, whose packets are all read.

    Raises UnusableVideoError if it holds no frame, or if it ends before the end that it states.
    """
    stream, names = video_stream(container), container.format.name
    packets: list[_Packet] = []
    # The first and the last tick of each stream, by its index.
    spans: dict[int, tuple[int, int]] = {}
    for packet in container.demux():
        pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
        if (stamp := dts if pts is None else pts) is not None:
            first, last = spans.get(packet.stream_index, (stamp, stamp))
            spans[packet.stream_index] = min(first, stamp), max(last, stamp + duration)
        # An empty packet asks for what the decoder still holds; in an AVI, it repeats a frame.
        if packet.stream_index == stream.index and packet.size:
            packets.append(_Packet(pts, dts, duration, packet.is_keyframe, packet.is_discard))
    shown = [each for each in packets if not each.is_discarded]
    if not shown:
        raise UnusableVideoError("holds no frame")
    if any(name in names for name in _STATED):
        _refuse_truncated((container.duration or 0) / 1_000_000, container.streams, spans)
    # An AVI has no time stamps: those of its packets are their order of decoding.
    by_order = "avi" in names or any(each.pts is None for each in shown)
    base = stream.time_base or Fraction(1, 1000)
    if by_order:
        stamps = [each.dts for each in shown if each.dts is not None]
        starts = sorted(stamps) if len(stamps) == len(shown) else _numbered(stream, base, len(shown))
        end = starts[-1] + (shown[-1].duration or _usual_gap(starts))
        return Timeline(tuple(starts), end, base)
    starts = sorted(each.pts for each in shown if each.pts is not None)
    ends = [each.pts + each.duration for each in shown if each.pts is not None]
    end = max(*ends, starts[-1] + (0 if max(ends) > starts[-1] else _usual_gap(starts)))
    if not any(name in names for name in _SEEKABLE):
        return Timeline(tuple(starts), end, base, by_order=False)
    number = {each.pts: place for place, each in reversed(list(enumerate(packets)))}
    return Timeline(tuple(starts), end, base, False, tuple(number[start] for start in starts), _begins(packets, starts))


def _refuse_truncated(stated: float, streams: Any, spans: Mapping[int, tuple[int, int]]) -> None:
    """Raise UnusableVideoError if all streams end long before `stated` seconds."""
    times = [
        (float(first * stream.time_base), float(last * stream.time_base))
        for stream in streams
        if stream.time_base is not None
        for first, last in [spans.get(stream.index, (0, 0))]
    ]
    missing = stated - (max(last for _, last in times) - min(first for first, _ in times)) if times else 0.0
    if missing > max(_SHORT_SECONDS, _SHORT_SHARE * stated):
        raise UnusableVideoError(f"ends {missing:.1f} s before the {stated:.1f} s that it states; it is truncated")


def _begins(packets: Sequence[_Packet], starts: Sequence[int]) -> tuple[int, ...]:
    """For each frame, the last packet of a key frame that is shown at the same time or earlier."""
    keys = sorted((each.pts, number) for number, each in enumerate(packets) if each.is_key and each.pts is not None)
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
