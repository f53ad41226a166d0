"""Draw the factors of a scene: `scene(seed, split, index)` depends on these three values alone.

Values of a factor are equally likely, with these exceptions. Five and six objects are small or medium, because larger
ones would not fit. All objects are visible on the background. Dark backgrounds have no shadows.
"""

from __future__ import annotations

import math

from headspan.errors import SettingsError
from headspan.world import colours, factors
from headspan.world.factors import Scene, Thing
from headspan.world.placing import SIDE, Point, draw_radii, place
from headspan.world.shapes import TURNS
from headspan.world.stream import Stream

# Share of scenes with one kind of object, and among these of scenes with one object, from which position is learned.
_REPEATED, _SINGLE = 0.75, 0.4


def scene(seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of a seed and split.

    Raises SettingsError if a number is negative or the split does not exist.
    """
    factors.check_split(split)
    if seed < 0 or index < 0:
        raise SettingsError(f"scene {index} of seed {seed}: scenes and seeds are not negative; count from 0")
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
    styles: tuple[str, ...] = factors.STYLES
    if colours.lightness(first) < 0.45:
        # A shadow would not be visible on a dark background.
        styles = tuple(style for style in styles if style != "shadowed")
    radii = draw_radii(sizes, repeated, stream)
    centres = place(radii, 1.0 if repeated else 0.86, stream)
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


def _others(main: factors.Triple, count: int, stream: Stream) -> list[factors.Triple]:
    """Triples of `train` with different colours and different shapes, also different from the main object's."""
    found = [main]
    while len(found) <= count:
        triple = stream.choice(factors.TRIPLES["train"])
        if all(triple[0] != other[0] and triple[1] != other[1] for other in found):
            found.append(triple)
    return found[1:]


def _kind(
    triple: factors.Triple, ground: colours.Ground, stream: Stream
) -> tuple[factors.Colour, factors.Colour, float, float]:
    """What repeated objects share besides their factors: paint, accent, the texture's rotation and its scale."""
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
    # About three periods across an object, and none too fine to be visible at 64 pixels.
    period = min(max(radius * (0.5 + 0.25 * scale), 4.6), 8.5)
    return Thing(
        colour=colour,
        shape=shape,
        texture=texture,
        size=size,
        x=centre[0] / SIDE,
        y=centre[1] / SIDE,
        radius=radius / SIDE,
        turn=stream.between(-TURNS[shape], TURNS[shape]),
        texture_turn=texture_turn + stream.between(-0.25, 0.25),
        period=period / SIDE,
        shift=(stream.unit(), stream.unit()),
        paint=paint,
        accent=accent,
    )
