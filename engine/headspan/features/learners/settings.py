"""What users may set of learners, with the published defaults, checked. Needs no torch.

A default that no publication states is marked as ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from headspan.errors import SettingsError
from headspan.features.learners.kinds import MATCHING_PURSUIT, TOPK

SHARED, SEPARATE, NO_BIAS = "shared", "separate", "none"
UNIFORM, REVERSED = "uniform", "reversed"
# Features per number of a vector: those of group-sparse autoencoders (8,192 of 512).
EXPANSION = 16

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that all learners have. A 0 stands for a default that depends on the others."""

    # Numbers of a vector.
    width: int
    # Features of the dictionary; 0: 16 times the width.
    features: int = 0
    # Steps without activity after which a feature counts as dead: that of CSR.
    dead_steps: int = 30

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)
        at_least("features", self.features, 0)
        at_least("dead_steps", self.dead_steps, 1)
        self._set("features", self.features or EXPANSION * self.width)

    def _set(self, name: str, value: Any) -> None:
        """Replace a 0 by what it stands for, so that the stored settings say it."""
        object.__setattr__(self, name, value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SparseSettings(Settings):
    """The settings of autoencoders with a number of active features: those of TopK and BatchTopK.

    k is that of the TopK baseline of group-sparse autoencoders on CLIP's embeddings (32 of 8,192 features); AuxK is
    that of Gao et al.: half the width, weight 1/32.
    """

    # Active features of a vector; 0: 32, and at most a quarter of the width.
    k: int = 0
    # The input bias that is taken from vectors: one for both sides, one for each, or none.
    input_bias: str = SHARED
    # Dead features that explain what the active ones leave over; 0: half the width.
    aux_k: int = 0
    # Weight of that term of the loss; 0 leaves it out.
    aux_weight: float = 1 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("k", self.k, 0)
        at_least("aux_k", self.aux_k, 0)
        at_least("aux_weight", self.aux_weight, 0)
        one_of("input_bias", self.input_bias, (SHARED, SEPARATE, NO_BIAS))
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


@dataclass(frozen=True, kw_only=True)
class MatryoshkaSettings(SparseSettings):
    """Nested numbers of active features: k, 2k, 4k and so on."""

    # The largest of them; 0: the width, or k if that is larger. The published code goes on to all features.
    largest_k: int = 0
    # Weights of the reconstructions: `uniform`, or `reversed`, which falls linearly with the number of features.
    weighting: str = UNIFORM

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("largest_k", self.largest_k or min(self.features, max(self.width, self.k)))
        one_of("weighting", self.weighting, (UNIFORM, REVERSED))
        if not self.k <= self.largest_k <= self.features:
            raise SettingsError(
                f"largest_k is {self.largest_k}, but must be at least k ({self.k}) and at most the number of features"
                f" ({self.features})"
            )

    def levels(self) -> list[int]:
        """The nested numbers of active features, ascending."""
        levels = [self.k]
        while levels[-1] < self.largest_k:
            levels.append(min(2 * levels[-1], self.largest_k))
        return levels


@dataclass(frozen=True, kw_only=True)
class PursuitSettings(SparseSettings):
    """Matching pursuit with the input as it is. AuxK is ours; the published code has no term for dead features."""

    input_bias: str = NO_BIAS

    def __post_init__(self) -> None:
        if not self.k:
            # The number of steps of the published runs, 20 of 512 or 768 numbers.
            self._set("k", max(1, min(20, self.width // 4)))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class GroupSparseSettings(SparseSettings):
    """TopK with a bias for each side, a group penalty, and a mask. The sizes of the last two are ours.

    Of the penalties 0.003, 0.03 and 0.15, the last two bring the modality of features equally near to the truth on the
    image world, and 0.03 keeps more features in use (as in `benchmarks/bench_feature_truth.py`, on other scenes).
    """

    input_bias: str = SEPARATE
    # Weight of the sum of sqrt(z² + w²) over features.
    group_weight: float = 0.03
    # Chance that a feature is left out of a pair.
    mask_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("group_weight", self.group_weight, 0)
        at_least("mask_share", self.mask_share, 0)
        if not self.mask_share < 1:
            raise SettingsError(f"mask_share is {self.mask_share}, but must be less than 1, which leaves no feature")


@dataclass(frozen=True, kw_only=True)
class AlignedSettings(PursuitSettings):
    """Codes of matching pursuit, or of TopK, with a penalty on the pair's codes that are unlike."""

    # How codes are found.
    code: str = MATCHING_PURSUIT
    # Weight of minus the cosine of a pair's codes. Published: 4e-4 beside the squared error of a unit vector's 512
    # numbers on average, which is 0.2 beside their sum.
    align_weight: float = 0.2
    # Whether the strongest feature of each side is left out of both codes before their cosine, as the published code
    # does: without an input bias, it is the mean of its side.
    mask_strongest: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("code", self.code, (MATCHING_PURSUIT, TOPK))
        at_least("align_weight", self.align_weight, 0)


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(Settings):
    """Non-negative contrastive learning. Sizes are those of the published projectors of images."""

    # Numbers of the hidden layer; 0: four times the width.
    hidden: int = 0
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("hidden", self.hidden, 0)
        self._set("hidden", self.hidden or 4 * self.width)
        if not self.temperature > 0:
            raise SettingsError(f"temperature is {self.temperature}, but must be more than 0")


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
