"""Videos of moving objects, written with PyAV: scenes of the image world, and grey frames that tell their number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import cos, pi, sin
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from headspan.world.drawing import render
from headspan.world.factors import Scene
from headspan.world.scenes import scene
from headspan.world.words import with_article

FORMATS = {
    "mp4": ("mp4", "libx264"),
    "webm": ("webm", "libvpx-vp9"),
    "avi": ("avi", "mpeg4"),
    "mkv": ("matroska", "libx264"),
}
Pictures = UInt8[np.ndarray, "frame row column 3"]


def encode(
    pictures: Pictures,
    kind: str = "mp4",
    *,
    codec: str | None = None,
    stamps: Sequence[int] | None = None,
    rate: int = 10,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    b_frames: int | None = None,
    sound_seconds: float = 0.0,
) -> bytes:
    """The pictures as a video. `stamps` are the frames' starts in units of 1 / `rate` seconds; by default 0, 1, ….

    With `sound_seconds` there is a stream of silence too.
    """
    container, usual = FORMATS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream: Any = out.add_stream(codec or usual, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], pixels
        stream.codec_context.time_base = Fraction(1, rate)
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        sound: Any = out.add_stream("libopus" if kind == "webm" else "aac", rate=48000) if sound_seconds else None
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            for first in range(0, int(48000 * sound_seconds), 960):
                quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
                quiet.sample_rate, quiet.pts, quiet.time_base = 48000, first, Fraction(1, 48000)
                out.mux(sound.encode(quiet))
            out.mux(sound.encode(None))
    return buffer.getvalue()


_BITS = 7


def numbered(frames: int, width: int = 112, height: int = 48) -> Pictures:
    """Pictures whose vertical bars, dark or light, are the digits of their number in base 2."""
    bits = np.arange(frames)[:, None] >> np.arange(_BITS) & 1
    bars = np.repeat(np.where(bits, 210, 40), -(-width // _BITS), axis=1)[:, :width]
    return np.broadcast_to(bars[:, None, :, None], (frames, height, width, 3)).astype(np.uint8)


def number_of(picture: UInt8[np.ndarray, "row column 3"]) -> int:
    """The number that a picture of `numbered` shows, after any encoding."""
    width = -(-picture.shape[1] // _BITS)
    middles = [min(width * bit + width // 2, picture.shape[1] - 1) for bit in range(_BITS)]
    light = picture[:, middles].mean(axis=(0, 2)) > 125
    return int((light << np.arange(_BITS)).sum())


@dataclass(frozen=True)
class Clip:
    """An object that moves over the background of a scene, and captions that are true in every frame."""

    pictures: Pictures
    captions: tuple[str, ...]
    thing: tuple[str, str]


def clips(count: int, frames: int = 15, side: int = 64, seed: int = 3) -> list[Clip]:
    """Clips of different colours and shapes: no two show the same pair."""
    found: dict[tuple[str, str], Scene] = {}
    index = 0
    while len(found) < count:
        drawn = scene(seed, "train", index)
        index += 1
        thing = drawn.things[0]
        if drawn.count == 1 and thing.size == "large" and drawn.style == "flat" and thing.texture == "solid":
            found.setdefault((thing.colour, thing.shape), drawn)
    return [_clip(drawn, frames, side, turn) for turn, drawn in enumerate(found.values())]


def _clip(drawn: Scene, frames: int, side: int, turn: int) -> Clip:
    thing = drawn.things[0]
    # Along an ellipse around the centre, within the picture.
    reach = 0.45 - thing.radius
    angles = [2 * pi * (step / frames + turn / 7) for step in range(frames)]
    moved = [
        replace(drawn, things=(replace(thing, x=0.5 + reach * cos(angle), y=0.5 + 0.6 * reach * sin(angle)),))
        for angle in angles
    ]
    named = with_article(f"{thing.colour} {thing.shape}")
    captions = (named, f"{with_article('large')} {thing.colour} {thing.shape}", f"a picture of {named}")
    return Clip(render(moved, side), captions, (thing.colour, thing.shape))
