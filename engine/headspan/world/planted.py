"""Scenes in which two factors go together as often as one says, for studies of spurious cues and of bias.

Scenes are those of `scene`, chosen by the colour and the shape of their one kind of object. Every other factor is as it
comes. So a colour can go with a shape in most images and with another one in a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from headspan.errors import SettingsError
from headspan.shard_writer.write import write_shards
from headspan.world.drawing import render
from headspan.world.factors import COLOURS, SHAPES, SPLITS, TEXTURES, TRIPLES, Scene, check_split, is_held_out
from headspan.world.scenes import scene
from headspan.world.stream import Stream

# Colour and shape of a scene's objects.
Pair = tuple[str, str]
# Scenes drawn at a time.
_BATCH = 64


def planted_scenes(counts: Mapping[Pair, int], seed: int, split: str = "train") -> list[Scene]:
    """The first scenes of a seed and split with one kind of object, as many of each (colour, shape) as `counts` says.

    They are in the order of their indices, so pairs are mixed. Raises SettingsError for a colour or a shape that does
    not exist, and for pairs that the split never draws.
    """
    check_split(split)
    for colour, shape in counts:
        if colour not in COLOURS or shape not in SHAPES:
            raise SettingsError(f"{colour} {shape}: give one of {', '.join(COLOURS)}, and one of {', '.join(SHAPES)}")
        if all(is_held_out(colour, shape, texture) != (split == "held_out") for texture in TEXTURES):
            raise SettingsError(f"{colour} {shape}: split {split} never draws it; choose another pair or split")
    left = {pair: count for pair, count in counts.items() if count > 0}
    found: list[Scene] = []
    index = 0
    while left:
        # The first number of a scene's stream chooses its main object, so most scenes need not be drawn.
        triple = Stream(seed, SPLITS.index(split), index).choice(TRIPLES[split])
        if triple[:2] in left and (drawn := scene(seed, split, index)).repeated:
            assert triple[:2] == (drawn.things[0].colour, drawn.things[0].shape), "the first choice is the main object"
            found.append(drawn)
            left[triple[:2]] -= 1
            left = {pair: count for pair, count in left.items() if count}
        index += 1
    return found


def write_planted_shards(
    folder: str | Path, counts: Mapping[Pair, int], seed: int, split: str = "train", side: int = 64
) -> str:
    """Write `planted_scenes` as WebDataset shards: images, shapes as classes, `colour` and `shape` as metadata.

    Classes are numbered in the order in which `counts` first names their shapes. The metadata also has `seed`, `split`
    and `index` of the scene. Returns a brace pattern of all shards. Raises SettingsError as `planted_scenes` and
    `write_shards` do.
    """
    scenes = planted_scenes(counts, seed, split)
    shapes = list(dict.fromkeys(shape for _, shape in counts))

    def samples() -> Iterator[tuple[str, object, dict[str, object]]]:
        for first in range(0, len(scenes), _BATCH):
            some = scenes[first : first + _BATCH]
            for each, pixels in zip(some, render(some, side), strict=True):
                thing = each.things[0]
                known = {"colour": thing.colour, "shape": thing.shape, "cls": shapes.index(thing.shape)}
                yield f"{each.index:09d}", pixels, {**known, "seed": seed, "split": split, "index": each.index}

    return write_shards(samples(), folder)
