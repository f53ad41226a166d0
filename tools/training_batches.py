"""Draw training batches for the reference model: scenes, their pixels, and their captions' tokens.

Batch n of a recipe is always the same, wherever a run was interrupted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from headspan.world import FACTORS, Scene, Stream, caption, focused_caption, render, scene
from tools.training_recipe import Recipe

# The last part of the key of a caption's random stream.
_CAPTIONS = 2
# Scenes are grouped among those of this number of batches.
_POOLED_BATCHES = 64
# Factors of focused captions; a factor is chosen in proportion to how often it is listed.
_HARD_FACTORS = (*FACTORS, *("texture", "position") * 3, *("shape",) * 2, "size")
_HARDEST_FACTORS = (*_HARD_FACTORS, *("texture",) * 6)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch n: uint8 pixels `[batch, height, width, 3]` and tokens `[captions * batch, context]` of training scenes.

    All first captions come before all second ones.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._pool: tuple[int, list[list[Scene]]] = (-1, [])

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        seed, size = self._recipe.seed, self._recipe.batch_size
        if number < self._recipe.grouped_from:
            scenes = [scene(seed, "train", index) for index in range(number * size, (number + 1) * size)]
        else:
            scenes = self._grouped(number)
        streams = [Stream(seed, each.index, _CAPTIONS) for each in scenes]
        focused = int(number >= self._recipe.focused_from)
        factors: tuple[str, ...] = _HARD_FACTORS if number >= self._recipe.hard_from else FACTORS
        if number >= self._recipe.texture_from:
            factors = _HARDEST_FACTORS
        pairs = list(zip(scenes, streams, strict=True))
        texts = [caption(*pair) for _ in range(self._recipe.captions - focused) for pair in pairs]
        texts += [focused_caption(*pair, factors) for _ in range(focused) for pair in pairs]
        return torch.from_numpy(render(scenes)), self._tokenizer(texts)

    def _grouped(self, number: int) -> list[Scene]:
        """The scenes of one batch of groups."""
        pool, place = divmod(number, _POOLED_BATCHES)
        if self._pool[0] != pool:
            self._pool = pool, self._draw_pool(pool)
        return self._pool[1][place]

    def _draw_pool(self, pool: int) -> list[list[Scene]]:
        """Draw the scenes of many batches, and distribute them over these batches in groups."""
        seed, size, group = self._recipe.seed, self._recipe.batch_size, self._recipe.group_size
        count = _POOLED_BATCHES * size
        random = np.random.default_rng([seed, pool])
        scenes = [scene(seed, "train", index) for index in range(pool * count, (pool + 1) * count)]
        # Similar scenes become neighbours, in random order among themselves; then the groups are shuffled.
        every = 4 if pool * _POOLED_BATCHES >= self._recipe.texture_from else 2
        similar = sorted(random.permutation(count).tolist(), key=lambda at: _group_key(scenes[at], every))
        groups = random.permutation(np.array(similar).reshape(-1, group)).reshape(_POOLED_BATCHES, size)
        return [[scenes[at] for at in batch] for batch in groups.tolist()]


def _group_key(each: Scene, every: int) -> tuple[bool, bool, bool, str, str]:
    """What the scenes of a group share. One scene in `every` is grouped by texture, the others by shape."""
    main, by_shape = each.things[0], each.index % every != 1
    return by_shape, each.repeated, each.count == 1, main.colour, main.shape if by_shape else main.texture
