"""Draw scenes as pixels and masks, many at a time, with NumPy alone.

Each object is drawn on a small patch, as a signed distance with an antialiased edge and a texture in the object's own
coordinates. Patches are pasted onto the canvas in the objects' order. A scene has the same pixels in every batch and on
every machine, because all operations on pixels are exactly rounded and involve one scene only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import numpy as np
from jaxtyping import Float32, UInt8

from headspan.errors import SettingsError
from headspan.world.backgrounds import paint_grounds
from headspan.world.factors import Scene
from headspan.world.patches import MARGIN, Patch, draw_things
from headspan.world.styles import blur, grain

# Scenes drawn at a time; their patches fit into the processor's cache.
_CHUNK = 64
# Below the smallest side, shapes and textures cannot be recognised.
SMALLEST_SIDE, LARGEST_SIDE = 32, 1024
# Shift to the right and down in pixels of an image of 64, and the share of light that a shadow removes.
_SHADOW_SHIFT, _SHADOW = 2.2, 0.55

Pixels = UInt8[np.ndarray, "scene side side 3"]
Masks = UInt8[np.ndarray, "scene side side"]


@overload
def render(scenes: Iterable[Scene], side: int = 64) -> Pixels: ...


@overload
def render(scenes: Iterable[Scene], side: int = 64, *, masks: Literal[True]) -> tuple[Pixels, Masks]: ...


def render(scenes: Iterable[Scene], side: int = 64, *, masks: bool = False) -> Pixels | tuple[Pixels, Masks]:
    """Draw the scenes as sRGB images of `side` × `side` pixels, with their masks if `masks` is true.

    A mask is 0 on the background, and i where the i-th object (from 1) covers at least half of the pixel and no later
    object lies above it. Blur, shadow and grain do not change masks. Raises SettingsError for a side out of range.
    """
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise SettingsError(f"side {side} is out of range; choose from {SMALLEST_SIDE} to {LARGEST_SIDE} pixels")
    scenes = list(scenes)
    pixels = np.empty((len(scenes), side, side, 3), np.uint8)
    found = np.zeros((len(scenes), side, side), np.uint8) if masks else None
    for start in range(0, len(scenes), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        _render_chunk(scenes[chunk], side, pixels[chunk], None if found is None else found[chunk])
    return pixels if found is None else (pixels, found)


def coverage(scene: Scene, side: int = 64) -> Float32[np.ndarray, "object side side"]:
    """The share of each pixel that each object covers visibly, after occlusion; antialiased, from 0 to 1."""
    border = _border([scene], side)
    canvas = np.zeros((scene.count, side + 2 * border, side + 2 * border), np.float32)
    for patch in _patches([scene], side, border)[0]:
        for number in range(patch.number + 1):
            part = canvas[number, patch.rows, patch.columns]
            part += patch.alpha * (float(number == patch.number) - part)
    return canvas[:, border : border + side, border : border + side]


def _render_chunk(scenes: Sequence[Scene], side: int, pixels: Pixels, masks: Masks | None) -> None:
    border = _border(scenes, side)
    wide = side + 2 * border
    inside = slice(border, border + side)
    canvas = np.zeros((len(scenes), 3, wide, wide), np.float32)
    paint_grounds(scenes, side, canvas[:, :, inside, inside])
    labels = np.zeros((len(scenes), wide, wide), np.uint8)
    shift = round(_SHADOW_SHIFT * side / 64)
    for number, (scene, patches) in enumerate(zip(scenes, _patches(scenes, side, border), strict=True)):
        if scene.style == "shadowed":
            for patch in patches:
                part = canvas[number, :, _moved(patch.rows, shift), _moved(patch.columns, shift)]
                part *= 1 - np.float32(_SHADOW) * patch.alpha
        for patch in patches:
            part = canvas[number, :, patch.rows, patch.columns]
            part += patch.alpha * (patch.paint - part)
            if masks is not None:
                labels[number, patch.rows, patch.columns][patch.alpha >= 0.5] = patch.number + 1
    if masks is not None:
        masks[:] = labels[:, inside, inside]
    for number, scene in enumerate(scenes):
        image = canvas[number, :, inside, inside]
        if scene.style == "blurred":
            image = blur(image)
        elif scene.style == "grainy":
            image = image + grain(scene.noise, side)
        pixels[number] = np.clip(np.rint(image), 0, 255).transpose(1, 2, 0)


def _border(scenes: Sequence[Scene], side: int) -> int:
    """Width in pixels of the border around the canvas, into which patches and shadows may extend."""
    largest = max((thing.radius for scene in scenes for thing in scene.things), default=0)
    return int(largest * side + (MARGIN + _SHADOW_SHIFT) * side / 64) + 12


def _patches(scenes: Sequence[Scene], side: int, border: int) -> list[list[Patch]]:
    """Each scene's patches, in the objects' order."""
    drawn: defaultdict[int, list[Patch]] = defaultdict(list)
    things = [(number, place, thing) for number, scene in enumerate(scenes) for place, thing in enumerate(scene.things)]
    for number, patch in draw_things([(scenes[n], place, thing) for n, place, thing in things], side, border):
        drawn[things[number][0]].append(patch)
    return [sorted(drawn[number], key=lambda patch: patch.number) for number in range(len(scenes))]


def _moved(span: slice, shift: int) -> slice:
    return slice(span.start + shift, span.stop + shift)
