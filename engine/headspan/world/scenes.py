"""A scene for every number: `scene(seed, split, index)`, and nothing else decides what is in it.

Factors are drawn evenly, as far as they go together: five and six objects are small or medium, since more
would not fit, and backgrounds are those from which all objects can be told. Repeated objects never overlap;
different ones may, a little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from headspan.errors import SettingsError
from headspan.world import colours, factors
from headspan.world.factors import Scene, Thing
from headspan.world.shapes import TURNS
from headspan.world.stream import Stream

# Lengths below are pixels of an image of this side.
_SIDE = 64
_RADII = {"small": (7.0, 8.3), "medium": (9.8, 11.3), "large": (13.4, 17.0)}
# The largest radius at which so many objects fit for certain, with the layouts below.
_LARGEST = {1: 17.0, 2: 16.5, 3: 15.2, 4: 14.6, 5: 11.3, 6: 10.4}
# Where centres lie, from 0 to 1 of the room they have: the densest packings of circles in a square.
_LAYOUTS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.5, 0.5),),
    2: ((0.0, 0.0), (1.0, 1.0)),
    3: ((0.0, 0.0), (1.0, 0.268), (0.268, 1.0)),
    4: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
    5: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)),
    6: ((0.666, 1.0), (0.667, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.5), (0.333, 0.5)),
}
# Shares of scenes of one kind, and among these of scenes with one object, where position is to be learnt.
_REPEATED, _SINGLE = 0.75, 0.4
# Clear of the border between two cells, a centre's position is never in doubt.
_CELL_MARGIN = 2.0

Point = tuple[float, float]


def scene(seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of a seed and split, the same whatever else is made.

    Raises SettingsError for a negative number or a split that does not exist.
    """
    factors.check_split(split)
    if seed < 0 or index < 0:
        raise SettingsError(f"scene {index} of seed {seed}: negative numbers name no scene; count from 0")
    stream = Stream(seed, factors.SPLITS.index(split), index)
    main = stream.choice(factors.TRIPLES[split])
    repeated = stream.chance(_REPEATED)
    if repeated:
        count = 1 if stream.chance(_SINGLE) else 2 + stream.below(5)
        size = stream.choice(factors.SIZES[: 3 if count < 5 else 2])
        triples, sizes = [main] * count, [size] * count
    else:
        count = 2 + stream.below(3)
        triples = [main, *_others(main, count - 1, stream)]
        sizes = [stream.choice(factors.SIZES) for _ in triples]
    grounds = colours.grounds_for(frozenset(colour for colour, _, _ in triples))
    name = stream.choice(tuple(grounds))
    ground = name, stream.choice(grounds[name])
    first = colours.jittered(colours.ground_of(*ground), stream)
    styles = factors.STYLES
    if colours.lightness(first) < 0.45:
        # Nothing casts a shadow on the dark.
        styles = tuple(style for style in styles if style != "shadowed")
    radii = _radii(sizes, repeated, stream)
    centres = _place(radii, 1.0 if repeated else 0.86, stream)
    kinds = [_kind(triple, ground, stream) for triple in triples[: 1 if repeated else count]]
    things = tuple(
        _thing(triple, size, centre, radius, kinds[0 if repeated else number], stream)
        for number, (triple, size, centre, radius) in enumerate(zip(triples, sizes, centres, radii, strict=True))
    )
    return Scene(
        seed=seed,
        split=split,
        index=index,
        things=things,
        repeated=repeated,
        style=stream.choice(styles),
        background=stream.choice(factors.BACKGROUNDS),
        background_colour=ground[0],
        background_tone=ground[1],
        ground=first,
        second_ground=colours.second_ground_of(first),
        ground_turn=stream.between(0, 2 * math.pi),
        noise=int(stream.unit() * 2**32),
    )


def scenes(seed: int, split: str, indices: Iterable[int]) -> Iterator[Scene]:
    """The scenes with these numbers; see `scene`."""
    return (scene(seed, split, index) for index in indices)


def _others(main: factors.Triple, count: int, stream: Stream) -> list[factors.Triple]:
    """Triples of training whose colours and shapes differ from each other's and from the main object's."""
    found = [main]
    while len(found) <= count:
        triple = stream.choice(factors.TRIPLES["train"])
        if all(triple[0] != other[0] and triple[1] != other[1] for other in found):
            found.append(triple)
    return found[1:]


def _radii(sizes: Sequence[str], repeated: bool, stream: Stream) -> list[float]:
    """One radius an object; repeated objects are nearly of one."""
    largest = _LARGEST[len(sizes)]
    bounds = [(low, min(high, largest)) for low, high in map(_RADII.__getitem__, sizes)]
    if not repeated:
        return [stream.between(*bound) for bound in bounds]
    common = stream.between(*bounds[0])
    return [min(max(common * stream.between(0.95, 1.05), low), high) for low, high in bounds]


def _place(radii: Sequence[float], nearness: float, stream: Stream) -> list[Point]:
    """Centres whose circles lie inside the image, and apart by `nearness` times the sum of two radii."""
    if len(radii) == 1:
        return [_in_cell(radii[0], stream)]
    # Darts where there is room, which fills the image most evenly; else a layout, shaken.
    if sum(radius**2 for radius in radii) < 0.09 * _SIDE**2:
        centres: list[Point] = []
        for _ in range(8 * len(radii)):
            radius = radii[len(centres)]
            x, y = (stream.between(radius + 1, _SIDE - 1 - radius) for _ in "xy")
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
            room = _SIDE - 2 * radius - 2
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
    """A centre in one of the nine cells, each as likely."""
    third = _SIDE / 3
    x, y = (
        stream.between(
            max(cell * third + _CELL_MARGIN, radius + 1), min((cell + 1) * third - _CELL_MARGIN, _SIDE - 1 - radius)
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


def _kind(
    triple: factors.Triple, ground: colours.Ground, stream: Stream
) -> tuple[factors.Colour, factors.Colour, float, float]:
    """What repeated objects share besides their factors: two colours, the texture's turn, its scale."""
    paint = colours.jittered(colours.PALETTE[triple[0]], stream)
    accent = colours.accent_of(paint, stream.choice(colours.accents(triple[0], ground)))
    return paint, accent, stream.between(0, 2 * math.pi), stream.unit()


def _thing(
    triple: factors.Triple,
    size: str,
    centre: Point,
    radius: float,
    kind: tuple[factors.Colour, factors.Colour, float, float],
    stream: Stream,
) -> Thing:
    colour, shape, texture = triple
    paint, accent, texture_turn, scale = kind
    # Some three periods across an object, none so fine that pixels swallow it.
    period = min(max(radius * (0.5 + 0.25 * scale), 4.6), 8.5)
    return Thing(
        colour=colour,
        shape=shape,
        texture=texture,
        size=size,
        x=centre[0] / _SIDE,
        y=centre[1] / _SIDE,
        radius=radius / _SIDE,
        turn=stream.between(-TURNS[shape], TURNS[shape]),
        texture_turn=texture_turn + stream.between(-0.25, 0.25),
        period=period / _SIDE,
        shift=(stream.unit(), stream.unit()),
        paint=paint,
        accent=accent,
    )
