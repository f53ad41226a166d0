"""Decode chosen frames of a video, each video once and one frame at a time.

Where the container's key frames can be trusted, packets before the key frame of the next chosen frame are skipped, and
so are frames that no other frame refers to. If a chosen frame is then missing or damaged, every frame is decoded from
the beginning. Pixel aspect ratios are ignored, an alpha channel is dropped, and a rotation that the container states is
carried out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from headspan.errors import one_line
from headspan.video.bytes import ReadableFile
from headspan.video.pyav import import_av
from headspan.video.timeline import Timeline, UnusableVideoError, read_timeline, video_stream

# Only these containers are opened. Playlists and lists of files could name other files, or servers.
CONTAINERS = ("mov", "matroska", "webm", "avi", "mpeg", "mpegts", "asf", "flv", "ogg")
# A decoder may leave out this many frames before a chosen one, as some do at a video's end.
_FRAMES_LEFT_OUT = 2
_MOST_PIXELS = 1 << 26
_BUFFER_BYTES = 256 << 10

Pixels = UInt8[np.ndarray, "row column 3"]


@dataclass(frozen=True, slots=True)
class Frames:
    """The chosen frames of a video, as `take` returned them, with their times in seconds from the first frame."""

    taken: list[Any]
    times: list[float]
    duration_seconds: float
    # Whether the video has fewer frames than were chosen.
    is_short: bool


def read_frames(file: ReadableFile, count: int, take: Callable[[Pixels], Any]) -> Frames:
    """The frames at the middles of `count` equal spans of a video; see `Timeline.middles`.

    `take` gets the pixels of each chosen frame once, in sRGB as the video has them. Raises UnusableVideoError if the
    video does not decode, and HeadspanError if PyAV is not installed.
    """
    av = import_av()
    try:
        with _open(av, file) as container:
            timeline = read_timeline(container)
        chosen = timeline.middles(count)
        try:
            found = _taken(av, file, timeline, chosen, take, skipping=bool(timeline.begins))
        except (UnusableVideoError, av.error.FFmpegError):
            if not timeline.begins:
                raise
            found = _taken(av, file, timeline, chosen, take, skipping=False)
    except (av.error.FFmpegError, MemoryError) as error:
        # The errors' texts name the file `<none>`.
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UnusableVideoError(f"cannot be decoded ({reason})") from error
    return Frames(
        [found[frame] for frame in chosen],
        [timeline.seconds(frame) for frame in chosen],
        timeline.duration_seconds,
        len(timeline.starts) < count,
    )


def _open(av: Any, file: ReadableFile) -> Any:
    file.seek(0)
    options = {"format_whitelist": ",".join(CONTAINERS)}
    # Titles and comments may be in any encoding.
    return av.open(file, "r", options=options, metadata_errors="replace", buffer_size=_BUFFER_BYTES)


def _taken(
    av: Any, file: ReadableFile, timeline: Timeline, chosen: list[int], take: Callable[[Pixels], Any], skipping: bool
) -> dict[int, Any]:
    """What `take` returns for each different chosen frame."""
    with _open(av, file) as container:
        frames = _decoded(container, timeline, sorted(set(chosen)), skipping)
        return {frame: take(_pixels(av, picture)) for frame, picture in frames}


def _decoded(container: Any, timeline: Timeline, wanted: list[int], skipping: bool) -> Iterator[tuple[int, Any]]:
    """The wanted frames, which are in order. Raises UnusableVideoError if one is missing or damaged."""
    stream = video_stream(container)
    decoder = stream.codec_context
    if decoder is None:
        raise UnusableVideoError("is of a kind that PyAV cannot decode")
    # Videos are decoded side by side.
    decoder.thread_count = 1
    needed = {timeline.packets[frame] for frame in wanted} if skipping else set()
    index = {start: frame for frame, start in reversed(list(enumerate(timeline.starts)))}
    place, number, came, skipped = 0, -1, -1, False
    last: tuple[int, Any] | None = None
    for packet in container.demux(stream):
        if skipping and packet.size:
            number += 1
            if number < timeline.begins[wanted[place]]:
                skipped = True
                continue
            if skipped:
                decoder.flush_buffers()
                skipped, last = False, None
            decoder.skip_frame = "DEFAULT" if number in needed else "NONREF"
        for picture in packet.decode():
            came += 1
            frame = came if timeline.by_order else _frame_at(timeline, index, picture.pts)
            while place < len(wanted) and frame > wanted[place]:
                yield wanted[place], _sound(timeline, wanted[place], last, skipping)
                place += 1
            last = frame, picture
            if place < len(wanted) and frame == wanted[place]:
                yield frame, _sound(timeline, frame, last, skipping)
                place += 1
            if place == len(wanted):
                return
    for frame in wanted[place:]:
        yield frame, _sound(timeline, frame, last, skipping)


def _frame_at(timeline: Timeline, index: dict[int, int], stamp: int | None) -> int:
    """The number of the frame that is shown from `stamp` on; −1 if it is from before the first."""
    if stamp is None:
        raise UnusableVideoError("decodes to frames without time stamps")
    if (found := index.get(stamp)) is not None:
        return found
    return int(np.searchsorted(np.array(timeline.starts), stamp, side="right")) - 1


def _sound(timeline: Timeline, wanted: int, last: tuple[int, Any] | None, skipping: bool) -> Any:
    """The picture in place of the wanted frame: its own, or, unless frames were skipped, one shortly before it."""
    if last is None or wanted - last[0] > (0 if skipping else _FRAMES_LEFT_OUT):
        raise UnusableVideoError(f"does not decode to the frame at {timeline.seconds(wanted):.2f} s")
    if last[1].is_corrupt:
        raise UnusableVideoError(f"decodes to a damaged frame at {timeline.seconds(wanted):.2f} s")
    return last[1]


def _pixels(av: Any, picture: Any) -> Pixels:
    if picture.width * picture.height > _MOST_PIXELS:
        raise UnusableVideoError(f"has frames of {picture.width} × {picture.height} pixels, more than {_MOST_PIXELS:,}")
    # Since release 17, PyAV converts a frame with several threads, which only wait for each other here.
    one_thread = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
    pixels: Pixels = picture.to_ndarray(format="rgb24", **one_thread)
    matrix = picture.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    return pixels if matrix is None else turned(pixels, bytes(matrix))


def turned(pixels: Pixels, matrix: bytes) -> UInt8[np.ndarray, "shown_row shown_column 3"]:
    """The pixels as a display matrix shows them: turned by a multiple of 90°, mirrored, or both.

    The matrix is nine 32-bit numbers `a b u c d v x y w`, which map [column, row] to [a·column + c·row, b·column +
    d·row]. Other angles count as the nearest multiple.
    """
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    to_column, to_row = a, d
    if abs(b) > abs(a):
        pixels, to_column, to_row = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if to_row < 0 else 1, :: -1 if to_column < 0 else 1])
