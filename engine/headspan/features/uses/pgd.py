"""Projected gradient descent on pixels: the largest margin of a wrong answer within ε of each image.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018: steps along the sign of the
gradient from a random start, each projected to the pixels within ε and in [0, 1], with restarts. The margin is a
difference of cosines, whose gradient does not vanish where a classifier is sure, as that of cross-entropy does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from headspan.errors import SettingsError

# ε of the attacks, in units of the full range of a pixel.
EPSILONS = (2 / 255, 4 / 255, 8 / 255)
STEPS, RESTARTS = 20, 2
# A step as a share of ε / steps: the steps can then cross the ball more than once.
REACH = 2.5
# Cosines with all classes, `[image, class]`, of pixels in [0, 1].
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Search:
    """How long an attack searches."""

    steps: int = STEPS
    restarts: int = RESTARTS

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("restarts", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} {getattr(self, name)}: give a number from {least}")

    def step_size(self, epsilon: float) -> float:
        """The length of a step, in units of the full range of a pixel."""
        return REACH * epsilon / self.steps


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The pixels with the largest margins that were found, and the margins; above 0, the attack has succeeded."""

    pixels: Float[Tensor, "image 3 height width_px"]
    margins: Float[Tensor, " image"]

    @property
    def succeeded(self) -> Bool[Tensor, " image"]:
        """Whether each image is named as the attack wants it."""
        return self.margins > 0


def margins(
    cosines: Float[Tensor, "image class"], classes: Int64[Tensor, " image"], targeted: bool
) -> Float[Tensor, " image"]:
    """By how much the attack succeeds: `classes` are named if it is targeted, and are not named if it is not."""
    own = cosines.gather(1, classes[:, None])[:, 0]
    others = cosines.scatter(1, classes[:, None], -torch.inf).amax(dim=1)
    return own - others if targeted else others - own


def pgd(
    classify: Classifier,
    pixels: Float[Tensor, "image 3 height width_px"],
    classes: Int64[Tensor, " image"],
    epsilon: float,
    search: Search,
    generator: torch.Generator,
    targeted: bool = False,
    stop: bool = True,
) -> Found:
    """Attack each image within `epsilon` of its pixels, in units of [0, 1].

    With `stop`, an image is left alone once the attack has succeeded on it. Without, its margin is enlarged to the end,
    so that the image may fool another classifier too.
    """
    best = Found(pixels.clone(), torch.full((len(pixels),), -torch.inf, device=pixels.device))
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    for _ in range(search.restarts):
        left = torch.arange(len(pixels), device=pixels.device)
        noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
        own = low + noise * (high - low)
        for step in range(search.steps + 1):
            if stop:
                going = (~best.succeeded[left]).nonzero()[:, 0]
                left, own = left[going], own[going]
            if not len(left):
                break
            own = own.detach().requires_grad_()
            found = margins(classify(own), classes[left], targeted)
            better = found.detach() > best.margins[left]
            best.margins[left[better]] = found.detach()[better]
            best.pixels[left[better]] = own.detach()[better]
            if step < search.steps:
                (gradient,) = torch.autograd.grad(found.sum(), own)
                moved = own.detach() + search.step_size(epsilon) * gradient.sign()
                own = torch.minimum(torch.maximum(moved, low[left]), high[left])
    return best


def at_random(
    pixels: Float[Tensor, "image 3 height width_px"], epsilon: float, generator: torch.Generator
) -> Float[Tensor, "image 3 height width_px"]:
    """Each pixel moved by `epsilon` up or down at random: the noise that an attack must beat."""
    signs = torch.randint(0, 2, pixels.shape, generator=generator).to(pixels) * 2 - 1
    return (pixels + epsilon * signs).clamp(0, 1)
