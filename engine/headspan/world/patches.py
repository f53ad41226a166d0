"""Draw objects on patches: their coverage and colour, before patches are pasted onto a background.

Objects of one patch size are drawn together, one shape or texture at a time. Pixels are computed by exactly rounded
operations only. Sines and cosines are computed once for each object, in double precision.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from headspan.world.colours import BLACK, WHITE, contrast
from headspan.world.factors import Colour, Scene, Thing
from headspan.world.shapes import DISTANCES
from headspan.world.textures import SECOND_SHARES, ramp, triangle_wave

# Lengths are pixels of an image of 64. The margin has room for an outline or pencil line and for a soft edge.
MARGIN = 3.0
_OUTLINE, _PENCIL, _WOBBLE = 1.6, 0.8, 0.5
# Outlined objects are larger by this much, so that thin shapes do not consist of outline alone.
_GROWTH = 0.6
_INKS: dict[str, tuple[Colour, ...]] = {
    "outlined": (BLACK, WHITE, (128.0, 128.0, 128.0)),
    # Pencil, and chalk for scenes on which pencil would not be visible.
    "sketch": ((60.0, 58.0, 62.0), (226.0, 224.0, 220.0)),
}
# Patch sides are multiples of this number, so there are few different sizes.
_STEP = 8

Grid = Float32[np.ndarray, "things height width"]
Job = tuple[Scene, int, Thing]


class Patch(NamedTuple):
    """One object's pixels: its number in the scene, its place on the bordered canvas, coverage and colour."""

    number: int
    rows: slice
    columns: slice
    alpha: Float32[np.ndarray, "height width"]
    paint: Float32[np.ndarray, "3 height width"]


def draw_things(jobs: Sequence[Job], side: int, border: int) -> Iterator[tuple[int, Patch]]:
    """Yield each job's index and patch, in any order. Places on the canvas include the `border`."""
    scale = side / 64
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for number, (_, _, thing) in enumerate(jobs):
        half = math.ceil(thing.radius * side + MARGIN * scale)
        sizes[-(-2 * half // _STEP) * _STEP].append(number)
    for size, numbers in sizes.items():
        chosen = [jobs[number] for number in numbers]
        things = [thing for _, _, thing in chosen]
        corners = [(int(thing.x * side) - size // 2, int(thing.y * side) - size // 2) for thing in things]
        x, y = _offsets(things, corners, size, side)
        distance = _distances(things, x, y, side)
        second = _second_shares(things, x, y, side)
        paint = _column(thing.paint for thing in things)
        accent = _column(thing.accent for thing in things)
        colour = paint + second[:, None] * (accent - paint)
        sketched = [at for at, (scene, _, _) in enumerate(chosen) if scene.style == "sketch"]
        outlined = [at for at, (scene, _, _) in enumerate(chosen) if scene.style == "outlined"]
        if sketched:
            distance[sketched] += _wobble(x[sketched], y[sketched], scale)
        if outlined:
            distance[outlined] -= np.float32(_GROWTH * scale)
        if changed := [*sketched, *outlined]:
            # Growing by distance would lengthen sharp points by more than the growth.
            reach = _each(things[at].radius * side + scale for at in changed)
            distance[changed] = np.maximum(distance[changed], np.sqrt(x[changed] ** 2 + y[changed] ** 2) - reach)
        alpha = ramp(-distance)
        if outlined:
            ink = _column(_ink(*chosen[at]) for at in outlined)
            share = ramp(distance[outlined] + np.float32(_OUTLINE * scale))[:, None]
            colour[outlined] += share * (ink - colour[outlined])
        if sketched:
            line, fill = _strokes(distance[sketched], x[sketched], y[sketched], scale)
            both = line + fill * (1 - line)
            alpha[sketched] = both
            share = (line / np.maximum(both, np.float32(1e-6)))[:, None]
            colour[sketched] += share * (_column(_ink(*chosen[at]) for at in sketched) - colour[sketched])
        for at, number in enumerate(numbers):
            left, top = corners[at][0] + border, corners[at][1] + border
            yield number, Patch(chosen[at][1], slice(top, top + size), slice(left, left + size), alpha[at], colour[at])


def _offsets(things: Sequence[Thing], corners: Sequence[tuple[int, int]], size: int, side: int) -> tuple[Grid, Grid]:
    """Coordinates of pixel centres relative to each object's centre, in pixels, x rightwards and y downwards."""
    at = np.arange(size) + 0.5
    x = np.array([left - thing.x * side for thing, (left, _) in zip(things, corners, strict=True)])
    y = np.array([top - thing.y * side for thing, (_, top) in zip(things, corners, strict=True)])
    across, down = (x[:, None] + at).astype(np.float32), (y[:, None] + at).astype(np.float32)
    shape = (len(things), size, size)
    return np.broadcast_to(across[:, None, :], shape).copy(), np.broadcast_to(down[:, :, None], shape).copy()


def _turned(x: Grid, y: Grid, turns: Sequence[float], units: Sequence[float]) -> tuple[Grid, Grid]:
    """Coordinates along axes that are turned clockwise by `turns` (radians), in `units` of pixels."""
    cosine = _each(math.cos(turn) / unit for turn, unit in zip(turns, units, strict=True))
    sine = _each(math.sin(turn) / unit for turn, unit in zip(turns, units, strict=True))
    return x * cosine + y * sine, y * cosine - x * sine


def _distances(things: Sequence[Thing], x: Grid, y: Grid, side: int) -> Grid:
    """Signed distance of each pixel from its object's edge, in pixels, negative inside."""
    radii = [thing.radius * side for thing in things]
    u, v = _turned(x, y, [thing.turn for thing in things], radii)
    distance = np.empty_like(x)
    for shape, at in _groups(thing.shape for thing in things):
        distance[at] = DISTANCES[shape](u[at], v[at])
    distance *= _each(radii)
    return distance


def _second_shares(things: Sequence[Thing], x: Grid, y: Grid, side: int) -> Grid:
    """The share of the texture's second colour at each pixel, from 0 to 1."""
    second = np.zeros_like(x)
    for texture, at in _groups(thing.texture for thing in things):
        chosen = [things[each] for each in at]
        turns = [thing.texture_turn for thing in chosen]
        if texture == "gradient":
            u, _ = _turned(x[at], y[at], turns, [thing.radius * side for thing in chosen])
            second[at] = np.clip(u * np.float32(0.62) + np.float32(0.42), 0, 1)
        elif texture != "solid":
            u, v = _turned(x[at], y[at], turns, [thing.period * side for thing in chosen])
            u += _each(thing.shift[0] for thing in chosen)
            v += _each(thing.shift[1] for thing in chosen)
            second[at] = SECOND_SHARES[texture](u, v, _each(thing.period * side for thing in chosen))
    return second


def _wobble(x: Grid, y: Grid, scale: float) -> Grid:
    """The offset that makes a sketched edge uneven, in pixels."""
    slow, fast = np.float32(0.083 / scale), np.float32(0.19 / scale)
    waves = triangle_wave((x + y) * slow) + triangle_wave((x - y) * fast) - np.float32(0.5)
    return waves * np.float32(2 * _WOBBLE * scale)


def _strokes(distance: Grid, x: Grid, y: Grid, scale: float) -> tuple[Grid, Grid]:
    """Coverage of sketched objects by their pencil line, and by their fill."""
    line = ramp(np.float32(_PENCIL * scale) - np.abs(distance))
    # A second, fainter line that deviates from the first.
    strayed = distance + np.float32(1.1 * scale) * (4 * triangle_wave((x * 2 + y) * np.float32(0.03 / scale)) - 1)
    line = np.maximum(line, np.float32(0.6) * ramp(np.float32(0.5 * scale) - np.abs(strayed)))
    # The fill is partly transparent along slanting strokes.
    gaps = triangle_wave((x + y * np.float32(1.7)) * np.float32(0.19 / scale))
    return line, ramp(-distance) * (np.float32(0.72) + np.float32(0.56) * gaps)


def _ink(scene: Scene, number: int, thing: Thing) -> Colour:
    """The style's ink with the highest contrast to the object and to its background."""
    around = (thing.paint, scene.ground, scene.second_ground)
    return max(_INKS[scene.style], key=lambda ink: min(contrast(ink, other) for other in around))


def _groups(values: Iterable[str]) -> Iterable[tuple[str, list[int]]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for at, value in enumerate(values):
        found[value].append(at)
    return found.items()


def _each(values: Iterable[float]) -> Float32[np.ndarray, "things 1 1"]:
    return np.array(list(values), np.float32)[:, None, None]


def _column(colours: Iterable[Colour]) -> Float32[np.ndarray, "things 3 1 1"]:
    return np.array(list(colours), np.float32)[:, :, None, None]
