"""The target of descriptions: what of a model's images a text is rewarded for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headspan.errors import SettingsError
from headspan.head_names import Head, head_name

# Images of a class that the published reward averages over.
IMAGES = 256


@dataclass(frozen=True, slots=True)
class Target:
    """What texts are rewarded for. Raises SettingsError for settings that contradict each other.

    With all defaults it is the published reward: the model's logit scale times the mean cosine of the text with up to
    256 images of the class. Source: Esfandiarpoor, Menghini, Bach, arXiv 2403.16442.
    """

    # Only what these heads contribute to the class's images counts; if empty, the whole embedding does.
    heads: tuple[Head, ...] = ()
    # Whether the mean of the other classes is taken off, so that a text must fit its class better than others.
    contrast: bool = False
    # The most images of a class that are averaged over; None for all.
    images: int | None = IMAGES
    # The factor of the mean product; None for the model's own logit scale.
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise SettingsError(f"a reward over {self.images} images of a class; give at least 1, or None for all")
        if self.scale is not None and not self.scale > 0:
            raise SettingsError(f"the reward's scale is {self.scale}; give a number above 0, or None for the model's")
        if len({*self.heads}) < len(self.heads):
            raise SettingsError("a head of the reward is named twice; name each head once")

    def __str__(self) -> str:
        through = "the whole embedding"
        if self.heads:
            through = ", ".join(head_name(*head) for head in self.heads[:4])
            through += f" and {len(self.heads) - 4} more heads" if len(self.heads) > 4 else ""
        return f"{through}, against the other classes" if self.contrast else through

    def as_json(self) -> dict[str, Any]:
        """The target as JSON values."""
        return {
            "heads": [[*head] for head in self.heads],
            "contrast": self.contrast,
            "images": self.images,
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Target:
        """A target from what `as_json` gave."""
        heads = tuple((int(layer), int(head)) for layer, head in values["heads"])
        return cls(heads, bool(values["contrast"]), values["images"], values["scale"])
