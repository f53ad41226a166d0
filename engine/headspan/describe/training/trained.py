"""A trained adapter in its folder, with all that says how it was trained.

`training.json` holds the settings, the target, the classes, the questions, and the language model with its checksum.
`adapter_model.safetensors` and `adapter_config.json` are PEFT's. `log.json` holds a row for every step. `trained.json`
holds the figures of the untrained and the trained model and the adapter's checksum; it is written last, so a folder
without it is not finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headspan.describe.policy.policy import Policy, open_policy
from headspan.describe.rewards.target import Target
from headspan.describe.training.settings import TrainingSettings
from headspan.errors import ModelError, StoreError, counted
from headspan.features.training.files import SETTINGS
from headspan.io.json_files import read_json
from headspan.plots.training import draw_training
from headspan.user_paths import expand_user

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG, RESULT = "log.json", "trained.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True, repr=False)
class Trained:
    """A trained adapter, and how it was trained. `open_trained` reads one from its folder."""

    folder: Path
    # As its user named it, and the checksum of `language_model_sha256`.
    language_model: str
    language_model_sha256: str
    # The vision-language model whose preference was learned.
    model: str
    target: Target
    # The classes, where they come from (`task NAME`, `key KEY`), and the questions.
    classes: tuple[str, ...]
    classes_from: str
    questions: tuple[str, ...]
    settings: TrainingSettings
    # By name, a number for each step: step, reward, kl, length, distinct_1 and others.
    log: Mapping[str, tuple[float, ...]]
    # Of sampled descriptions: reward, kl and others of the trained model, and with `untrained_` before the name of the
    # untrained one.
    figures: Mapping[str, float]
    adapter_sha256: str

    def __repr__(self) -> str:
        return (
            f"Trained({self.language_model} to describe {len(self.classes):,} classes: "
            f"{counted(self.settings.steps, 'step')} of {self.settings.method}, beta {self.settings.beta:g})"
        )

    @property
    def untrained(self) -> dict[str, float]:
        """Figures of the untrained model."""
        begin = "untrained_"
        return {name.removeprefix(begin): value for name, value in self.figures.items() if name.startswith(begin)}

    def policy(self, device: str = "cpu", language_model: str | Path | None = None) -> Policy:
        """The language model with the adapter; `language_model` is where it is now, if it has moved."""
        return open_policy(language_model or self.language_model, self.folder, device)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw reward and divergence by step. Raises HeadspanError if matplotlib is not installed."""
        title = f"{self.settings.method}, beta {self.settings.beta:g}: reward through {self.target}"
        return draw_training(self.log, title=title, ax=ax)

    @property
    def training(self) -> dict[str, Any]:
        """How the adapter was trained, as JSON values."""
        return {
            **self.settings.as_json(),
            "language_model_sha256": self.language_model_sha256,
            "figures": dict(self.figures),
        }


def open_trained(folder: str | Path) -> Trained:
    """Open a folder that `train` wrote.

    Raises StoreError if the folder is not there, is not finished, or is damaged, and ModelError if its adapter is not
    the one that was trained.
    """
    path = expand_user(folder, StoreError)
    if not (path / SETTINGS).is_file():
        raise StoreError(f"{path}: is not a folder that headspan describe train wrote; name one that it wrote")
    if not (path / RESULT).is_file():
        raise StoreError(f"{path}: the training is not finished; run the same headspan describe train again")
    todo = "restore the folder from a copy, or train again"
    made, result, rows = (read_json(path / name, todo) for name in (SETTINGS, RESULT, LOG))
    try:
        found = Trained(
            path,
            str(made["language_model"]),
            str(made["language_model_sha256"]),
            str(made["model"]),
            Target.from_json(made["target"]),
            tuple(made["classes"]),
            str(made["classes_from"]),
            tuple(made["questions"]),
            TrainingSettings.from_json(made["training"]),
            {name: tuple(map(float, values)) for name, values in rows.items()},
            {name: float(value) for name, value in result["figures"].items()},
            str(result["adapter_sha256"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path}: its files do not fit each other ({error!r}); {todo}") from error
    if adapter_sha256(path) != found.adapter_sha256:
        raise ModelError(f"{path / ADAPTER}: its checksum is not that of the trained adapter; {todo}")
    return found


def adapter_sha256(folder: Path) -> str:
    """The SHA-256 of the weights of a folder's adapter. Raises StoreError if they cannot be read."""
    try:
        return hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest()
    except OSError as error:
        raise StoreError(
            f"{folder / ADAPTER}: cannot be read ({error.strerror}); restore the folder from a copy, or train again"
        ) from error
