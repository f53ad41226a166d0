"""The result of attacking zero-shot classifiers that keep classes of features, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headspan.errors import SettingsError, counted, percent
from headspan.features.uses.use import Use
from headspan.prune.studies.statistics import Interval

# What an attack wants: any wrong class, or one class that was drawn for the image.
GOALS = UNTARGETED, TARGETED = "untargeted", "targeted"
# What a row is about: the plain classifier, that of the dictionary's reconstruction, one that keeps a class of features
# or all but a class, or one with as many random features of equal energy in place of the class.
Kind = Literal["plain", "reconstruction", "class", "random"]


@dataclass(frozen=True, slots=True)
class AttackRow:
    """One classifier under attack, at one ε. Shares of images; for random features, means over the sets.

    If the goal is untargeted, a share is that of images named rightly; if it is targeted, that of images named as the
    attack wants.
    """

    goal: str
    kind: Kind
    # Such as `only cross-modal` or `without image-dominant`; for random features, the classifier they are a control of.
    classifier: str
    features: int
    sets: int
    # The energy of the features that are kept, as a share of all features' energy.
    energy: float
    # In units of the full range of a pixel.
    epsilon: float
    # Without an attack, and with each pixel moved by ε at random.
    clean: float
    noise: float
    # Under an attack on the plain classifier.
    transferred: float
    # Under an attack on this classifier too, through its filter: of each image, the worst of all attacks. Its interval
    # is over images, and for random features from the least to the largest share of any set.
    adaptive: Interval
    # The same, of the images that each gradient alone attacks; empty for the plain classifier.
    by_gradient: Mapping[str, float]


@dataclass(frozen=True, slots=True, repr=False)
class AttackStudy(Use):
    """Zero-shot classifiers under attacks on pixels, with and without classes of features, beside random features."""

    use = "attack"
    task: str
    images: int
    steps: int
    # The length of a step as a share of ε.
    step_share: float
    restarts: int
    # Bootstrap samples of the images.
    samples: int
    rows: tuple[AttackRow, ...]

    def __repr__(self) -> str:
        plain = [each for each in self.rows if (each.goal, each.kind) == (UNTARGETED, "plain")]
        shown = ", ".join(f"{percent(each.adaptive.value)} at {255 * each.epsilon:.3g}/255" for each in plain)
        clean = f"{percent(plain[0].clean)} clean, " if plain else ""
        return f"AttackStudy({self.task}: {clean}{shown}; {counted(self.images, 'image')})"

    def row(self, goal: str, kind: Kind, classifier: str, epsilon: float) -> AttackRow:
        """The row of that classifier and ε. Raises SettingsError if there is none."""
        for each in self.rows:
            same = (each.goal, each.kind, each.classifier) == (goal, kind, classifier)
            if same and abs(each.epsilon - epsilon) < 1e-9:
                return each
        raise SettingsError(f"task {self.task}: no row of {goal}, {kind} {classifier} at ε {epsilon:.3g}")

    @property
    def works(self) -> bool:
        """Whether the attacks beat both no attack and noise of equal size on the plain classifier, at every ε."""
        untargeted = [each for each in self.rows if (each.goal, each.kind) == (UNTARGETED, "plain")]
        targeted = [each for each in self.rows if (each.goal, each.kind) == (TARGETED, "plain")]
        falls = all(each.adaptive.value < min(each.clean, each.noise) for each in untargeted)
        rises = all(each.adaptive.value > max(each.clean, each.noise) for each in targeted)
        return falls and rises and bool(untargeted or targeted)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        gradients = list(dict.fromkeys(name for each in self.rows for name in each.by_gradient))
        return {
            "goal": [each.goal for each in self.rows],
            "kind": [each.kind for each in self.rows],
            "classifier": [each.classifier for each in self.rows],
            "features": [each.features for each in self.rows],
            "sets": [each.sets for each in self.rows],
            "energy": [each.energy for each in self.rows],
            "epsilon_255": [255 * each.epsilon for each in self.rows],
            "clean": [each.clean for each in self.rows],
            "noise": [each.noise for each in self.rows],
            "transferred": [each.transferred for each in self.rows],
            "adaptive": [each.adaptive.value for each in self.rows],
            "adaptive_low": [each.adaptive.low for each in self.rows],
            "adaptive_high": [each.adaptive.high for each in self.rows],
            **{
                f"adaptive_{name.replace('-', '_')}": [each.by_gradient.get(name) for each in self.rows]
                for name in gradients
            },
        }
