"""Choose the sizes and positions of a scene's objects.

Repeated objects never overlap. A later one of different objects may cover a small part of an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence

from headspan.world.stream import Stream

Point = tuple[float, float]

# Lengths below are pixels of an image of this side.
SIDE = 64
_RADII = {"small": (7.2, 8.5), "medium": (10.0, 11.4), "large": (13.4, 17.0)}
# The largest radius at which this number of objects always fits, with the layouts below.
_LARGEST = {1: 17.0, 2: 16.5, 3: 15.2, 4: 14.6, 5: 11.4, 6: 10.4}
# Centres of the densest packings of circles in a square; 0 and 1 are the ends of the range that a centre may have.
_LAYOUTS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.5, 0.5),),
    2: ((0.0, 0.0), (1.0, 1.0)),
    3: ((0.0, 0.0), (1.0, 0.268), (0.268, 1.0)),
    4: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
    5: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)),
    6: ((0.666, 1.0), (0.667, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.5), (0.333, 0.5)),
}
# Least distance of a single object's centre from the border of its cell, so that its position is unambiguous.
_CELL_MARGIN = 2.0


def draw_radii(sizes: Sequence[str], repeated: bool, stream: Stream) -> list[float]:
    """One radius in pixels for each object. Repeated objects are within 5 % of a common radius."""
    largest = _LARGEST[len(sizes)]
    bounds = [(low, min(high, largest)) for low, high in map(_RADII.__getitem__, sizes)]
    if not repeated:
        return [stream.between(*bound) for bound in bounds]
    common = stream.between(*bounds[0])
    return [min(max(common * stream.between(0.95, 1.05), low), high) for low, high in bounds]


def place(radii: Sequence[float], nearness: float, stream: Stream) -> list[Point]:
    """Centres, in pixels, of circles inside the image.

    Two centres are at least `nearness` times the sum of their radii apart.
    """
    if len(radii) == 1:
        return [_in_cell(radii[0], stream)]
    # If there is room, random positions, which fill the image most evenly. Otherwise a layout with random shifts.
    if sum(radius**2 for radius in radii) < 0.09 * SIDE**2:
        centres: list[Point] = []
        for _ in range(8 * len(radii)):
            radius = radii[len(centres)]
            x, y = (stream.between(radius + 1, SIDE - 1 - radius) for _ in "xy")
            if _is_free(x, y, radius, centres, radii, nearness):
                centres.append((x, y))
                if len(centres) == len(radii):
                    return centres
    layout = stream.sample(_LAYOUTS[len(radii)], len(radii))
    mirrored, swapped = (stream.chance(0.5), stream.chance(0.5)), stream.chance(0.5)
    shaken = [(stream.between(-9, 9), stream.between(-9, 9)) for _ in radii]
    for share in (1.0, 0.6, 0.35, 0.15, 0.0):
        centres = []
        for place, shift, radius in zip(layout, shaken, radii, strict=True):
            room = SIDE - 2 * radius - 2
            x, y = (
                radius + 1 + min(max((1 - at if flip else at) * room + share * move, 0), room)
                for at, move, flip in zip(reversed(place) if swapped else place, shift, mirrored, strict=True)
            )
            if not _is_free(x, y, radius, centres, radii, nearness):
                break
            centres.append((x, y))
        else:
            return centres
    raise AssertionError(f"radii {radii} do not fit")


def _in_cell(radius: float, stream: Stream) -> Point:
    """A random centre in one of the nine cells, all equally likely."""
    third = SIDE / 3
    x, y = (
        stream.between(
            max(cell * third + _CELL_MARGIN, radius + 1), min((cell + 1) * third - _CELL_MARGIN, SIDE - 1 - radius)
        )
        for cell in divmod(stream.below(9), 3)
    )
    return x, y


def _is_free(
    x: float, y: float, radius: float, centres: Sequence[Point], radii: Sequence[float], nearness: float
) -> bool:
    return all(
        (x - a) ** 2 + (y - b) ** 2 >= (nearness * (radius + other)) ** 2
        for (a, b), other in zip(centres, radii, strict=False)
    )
