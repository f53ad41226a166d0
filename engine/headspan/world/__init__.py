"""The image world: drawn scenes whose every factor is known.

    scenes = [scene(seed=0, split="train", index=i) for i in range(256)]
    pixels = render(scenes)                      # uint8 [256, 64, 64, 3]
    texts = [caption(s, Stream(0, s.index)) for s in scenes]

This needs neither torch nor files. `write_world_shards` writes the same scenes as WebDataset shards.
"""

from headspan.world.captions import FACTORS, caption, focused_caption, prompts, value_of
from headspan.world.drawing import coverage, render
from headspan.world.factors import Scene, Thing, is_held_out
from headspan.world.scenes import scene
from headspan.world.shards import write_world_shards
from headspan.world.stream import Stream

__all__ = [
    "FACTORS",
    "Scene",
    "Stream",
    "Thing",
    "caption",
    "coverage",
    "focused_caption",
    "is_held_out",
    "prompts",
    "render",
    "scene",
    "value_of",
    "write_world_shards",
]
