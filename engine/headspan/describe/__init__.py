"""Descriptions that a vision-language model prefers: a language model is trained by its rewards, written and inspected.

Source: Esfandiarpoor, Menghini, Bach, "If CLIP Could Talk", arXiv 2403.16442. Names are imported from their modules
when they are first used, so that reading descriptions does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headspan.describe.asked.classes import DescribedClasses, described_classes
    from headspan.describe.asked.questions import QUESTIONS
    from headspan.describe.descriptions.result import Descriptions, Inspection
    from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
    from headspan.describe.policy.policy import Policy, open_policy
    from headspan.describe.rewards.reward import Reward
    from headspan.describe.rewards.target import Target
    from headspan.describe.training.settings import TrainingSettings
    from headspan.describe.training.train import train
    from headspan.describe.training.trained import Trained, open_trained

# The module of each name.
_MODULES = {
    "QUESTIONS": "asked.questions",
    "DescribedClasses": "asked.classes",
    "Descriptions": "descriptions.result",
    "Inspection": "descriptions.result",
    "Policy": "policy.policy",
    "Reward": "rewards.reward",
    "Target": "rewards.target",
    "Trained": "training.trained",
    "TrainingSettings": "training.settings",
    "described_classes": "asked.classes",
    "open_trained": "training.trained",
    "train": "training.train",
    "open_policy": "policy.policy",
    "read_descriptions": "descriptions.saved",
    "save_descriptions": "descriptions.saved",
}

__all__ = [
    "QUESTIONS",
    "DescribedClasses",
    "Descriptions",
    "Inspection",
    "Policy",
    "Reward",
    "Target",
    "Trained",
    "TrainingSettings",
    "described_classes",
    "open_policy",
    "open_trained",
    "read_descriptions",
    "save_descriptions",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'headspan.describe' has no attribute {name!r}")
    found = getattr(import_module(f"headspan.describe.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
