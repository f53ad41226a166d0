"""What users may set of learners, with the published defaults, checked. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from headspan.errors import SettingsError

SHARED, SEPARATE = "shared", "separate"
# Features per number of a vector: the width of the dictionaries of group-sparse autoencoders (8,192 of 512).
EXPANSION = 16

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that all learners have. A 0 stands for a default that depends on the others."""

    # Numbers of a vector.
    width: int
    # Features of the dictionary; 0: 16 times the width.
    features: int = 0

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)
        at_least("features", self.features, 0)
        self._set("features", self.features or EXPANSION * self.width)

    def _set(self, name: str, value: Any) -> None:
        """Replace a 0 by what it stands for, so that the stored settings say it."""
        object.__setattr__(self, name, value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSettings(Settings):
    """The settings of autoencoders with a number of active features.

    Defaults: k is that of TopK autoencoders of CLIP's embeddings beside group-sparse ones (32 of 8,192 features); AuxK
    is that of OpenAI's TopK autoencoders (half the width, weight 1/32), after 30 steps as in CSR.
    """

    # Active features of a vector; 0: 32, and at most a quarter of the width.
    k: int = 0
    # Whether images and texts have an input bias each, or one for both: `shared` or `separate`.
    input_bias: str = SHARED
    # Dead features that explain what the active ones leave over; 0: half the width.
    aux_k: int = 0
    # Weight of that term of the loss; 0 leaves it out.
    aux_weight: float = 1 / 32
    # Steps without activity after which a feature counts as dead.
    dead_steps: int = 30

    def __post_init__(self) -> None:
        # dataclass(slots=True) makes a new class, which super() without arguments does not know.
        Settings.__post_init__(self)
        at_least("k", self.k, 0)
        at_least("aux_k", self.aux_k, 0)
        at_least("aux_weight", self.aux_weight, 0)
        at_least("dead_steps", self.dead_steps, 1)
        one_of("input_bias", self.input_bias, (SHARED, SEPARATE))
        self._set("k", self.k or max(1, min(32, self.width // 4, self.features)))
        self._set("aux_k", min(self.aux_k or max(1, self.width // 2), self.features))
        if self.k > self.width:
            raise SettingsError(
                f"k is {self.k}, but vectors have {self.width} numbers, which as many features explain in full; choose"
                f" a k of at most {self.width}"
            )
        if self.k > self.features:
            raise SettingsError(
                f"k is {self.k}, but the dictionary has {self.features} features; choose a k of at most"
                f" {self.features}, or more features"
            )


def settings_of(kind: type[S], given: dict[str, Any]) -> S:
    """Settings from names and values, such as those of a checkpoint; unknown names are refused."""
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise SettingsError(f"the learner has no setting {name!r}; it has {', '.join(known)}")
    return kind(**given)


def at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise SettingsError(f"{name} is {value}, but must be at least {least}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
