"""Attack images for one goal, classifier by classifier, with random numbers that depend on the question alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from headspan.features.uses.defence import Defence
from headspan.features.uses.pgd import Search, at_random, margins, pgd

# Images in a pass.
_BATCH = 128


@dataclass(slots=True, eq=False)
class Target:
    """One classifier, and the images on which an attack has succeeded within any ε so far."""

    defence: Defence
    # By all attacks together, and by each gradient alone.
    fallen: Bool[Tensor, " image"]
    by_gradient: dict[str, Bool[Tensor, " image"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Attacker:
    """Images, and the class that the attack wants for each of them, or wants to avoid."""

    pixels: Float[Tensor, "image 3 height width_px"]
    classes: Int64[Tensor, " image"]
    targeted: bool
    search: Search
    seed: int

    def succeeds(self, defence: Defence, pixels: Float[Tensor, "image 3 height width_px"]) -> Bool[Tensor, " image"]:
        """Whether the classifier names each image as the attack wants it."""
        with torch.no_grad():
            parts = [margins(defence(pixels[some]), self.classes[some], self.targeted) for some in self._batches()]
        return torch.cat(parts) > 0

    def noisy(self, epsilon: float) -> Float[Tensor, "image 3 height width_px"]:
        """The images with noise of size `epsilon`."""
        return at_random(self.pixels, epsilon, self._generator(0, 0, epsilon))

    def strongest(self, defence: Defence, epsilon: float) -> Float[Tensor, "image 3 height width_px"]:
        """The images with the largest margins against a classifier, which may fool others too."""
        return self._attacked(defence, epsilon, torch.ones_like(self.classes, dtype=torch.bool), 1, stop=False)[0]

    def attack(self, target: Target, epsilon: float, gradients: tuple[str, ...], alone: bool, stream: int) -> None:
        """Attack a classifier through its filter by each gradient, and note the images that fall.

        With `alone`, every gradient attacks all images that it has not beaten itself, so that it can be judged.
        Without, it attacks only those that nothing has beaten.
        """
        for place, gradient in enumerate(gradients):
            own = target.by_gradient.setdefault(gradient, torch.zeros_like(target.fallen))
            left = ~own if alone else ~target.fallen
            defence = target.defence.through(gradient)
            found = self._attacked(defence, epsilon, left, 2 + place + len(gradients) * stream, stop=True)[1]
            # Judged by the classifier itself, whatever gradient led there.
            target.by_gradient[gradient] = own | found
            target.fallen = target.fallen | found

    def _attacked(
        self, defence: Defence, epsilon: float, among: Bool[Tensor, " image"], stream: int, stop: bool
    ) -> tuple[Float[Tensor, "image 3 height width_px"], Bool[Tensor, " image"]]:
        pixels, fallen = self.pixels.clone(), torch.zeros_like(among)
        for number, some in enumerate(self._batches()):
            places = some[among[some]]
            if len(places):
                generator = self._generator(stream, number, epsilon)
                given, classes = self.pixels[places], self.classes[places]
                found = pgd(defence, given, classes, epsilon, self.search, generator, self.targeted, stop)
                pixels[places], fallen[places] = found.pixels, found.succeeded
        return pixels, fallen

    def _batches(self) -> Iterator[Int64[Tensor, " some"]]:
        yield from torch.split(torch.arange(len(self.pixels), device=self.pixels.device), _BATCH)

    def _generator(self, stream: int, batch: int, epsilon: float) -> torch.Generator:
        key = np.random.SeedSequence([self.seed, int(self.targeted), stream, batch, round(1e6 * epsilon)])
        return torch.Generator().manual_seed(int(key.generate_state(1)[0]))
