"""Are frames of videos written faster than by a loop that decodes every frame with PyAV?

Clips as MSR-VTT has them: 15 seconds of H.264 at 30 frames a second, 320 × 240, of a photo-like picture that moves,
with a key frame every 250 frames (x264's default) or every 30. 12 frames of each are written as JPEGs of quality 95
into a tar. The loop decodes the clips side by side too, on as many threads, and encodes the same frames alike; it
writes nothing.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.pictures import photo_like
from headspan.shard_writer.encoded import FORMATS
from headspan.video.write import write_frames

QUESTION = "frames of videos"
DUE_TO = (
    "Packets are read once without decoding them, which says where each chosen frame is. Groups of pictures without "
    "one are skipped, and so are frames that no other frame refers to. Each video has one thread, also where PyAV "
    "would convert a frame's colours with several."
)
MARK = 1.0
_COUNT, _RATE = 12, 30
_WIDTH, _HEIGHT = 320, 240


def run(toy: bool) -> dict[str, Any]:
    """Seconds for some clips, and the loop's time divided by it, for both distances of key frames."""
    clips, length = (2, 30) if toy else (16, 15 * _RATE)
    threads = os.cpu_count() or 1
    random = np.random.default_rng()
    rows = [_row(clips, length, distance, threads, random, repeats=3 if toy else 7) for distance in (250, 30)]
    return {"clips": clips, "length": length, "threads": threads, "rows": rows, "mark": MARK}


def _row(
    clips: int, length: int, distance: int, threads: int, random: np.random.Generator, repeats: int
) -> dict[str, Any]:
    """Both ways with one distance of key frames."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(threads) as pool:
        folder = Path(name)
        (folder / "clips").mkdir()
        paths = [folder / "clips" / f"{number:03d}.mp4" for number in range(clips)]
        for path in paths:
            _write_clip(path, random, length, distance)
        tars = count()
        times = alternate(
            {
                "frames": lambda: write_frames(folder / "clips", folder / f"{next(tars)}.tar", _COUNT, workers=threads),
                "loop": lambda: list(pool.map(_every_frame, paths)),
            },
            repeats,
        )
        written = (folder / "0.tar").read_bytes()
        return {
            "distance": distance,
            "seconds": median(times["frames"]),
            "per_second": round(clips * _COUNT / median(times["frames"]), 1),
            "share": ratio(times, "loop", "frames"),
            "correct": all(frame in written for path in paths for frame in _every_frame(path)),
        }


def _write_clip(path: Path, random: np.random.Generator, length: int, distance: int) -> None:
    picture = np.asarray(Image.open(io.BytesIO(photo_like(random, 2 * _WIDTH, 2 * _HEIGHT))))
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=_RATE, options={"g": f"{distance}", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        for number in range(length):
            row, column = abs(number % 400 - 200), abs(2 * number % 600 - 300)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture[row : row + _HEIGHT, column : column + _WIDTH]), format="rgb24"
            )
            frame.pts, frame.time_base = number, Fraction(1, _RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _every_frame(path: Path) -> list[bytes]:
    """The chosen frames as JPEGs, by a loop over all frames of a clip with a constant rate."""
    _, form, options = FORMATS["jpeg"]
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        # The frame shown just before the middle of each span.
        middles = {-(-(2 * span + 1) * stream.frames // (2 * _COUNT)) - 1 for span in range(_COUNT)}
        for number, frame in enumerate(container.decode(stream)):
            if number in middles:
                buffer = io.BytesIO()
                Image.fromarray(frame.to_ndarray(format="rgb24")).save(buffer, form, **options)
                found.append(buffer.getvalue())
    return found


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each distance of key frames."""
    return [
        ["key frame every", "frames of videos", "loop ÷ ours"],
        *(
            [
                f"{row['distance']} frames",
                f"{line['clips'] * _COUNT} frames of {line['clips']} clips in {row['seconds']:.2f} s, "
                f"{row['per_second']:,.0f} a second, {line['threads']} threads" + ("" if row["correct"] else ", WRONG"),
                f"{row['share']:.2f}",
            ]
            for row in line["rows"]
        ),
    ]


if __name__ == "__main__":
    benchmark(QUESTION, run)
