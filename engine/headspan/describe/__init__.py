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
    from headspan.describe.descriptions.quality_table import QualityTable, quality_table
    from headspan.describe.descriptions.result import Descriptions, Inspection
    from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
    from headspan.describe.inspecting.comparison import compare_inspections
    from headspan.describe.inspecting.inspect_run import inspect
    from headspan.describe.inspecting.summary import inspection_summary
    from headspan.describe.inspecting.verdict import Verdict
    from headspan.describe.inspecting.verdict_sheet import read_verdict_sheet, write_verdict_sheet
    from headspan.describe.policy.policy import Policy, open_policy
    from headspan.describe.rewards.reward import Reward
    from headspan.describe.rewards.target import Target
    from headspan.describe.training.frontier import Frontier, open_frontier, train_frontier
    from headspan.describe.training.settings import TrainingSettings
    from headspan.describe.training.train import train
    from headspan.describe.training.trained import Trained, open_trained
    from headspan.describe.writing.write import write

# The module of each name.
_MODULES = {
    "DescribedClasses": "asked.classes",
    "Descriptions": "descriptions.result",
    "Frontier": "training.frontier",
    "Inspection": "descriptions.result",
    "Policy": "policy.policy",
    "QUESTIONS": "asked.questions",
    "QualityTable": "descriptions.quality_table",
    "Reward": "rewards.reward",
    "Target": "rewards.target",
    "Trained": "training.trained",
    "TrainingSettings": "training.settings",
    "Verdict": "inspecting.verdict",
    "compare_inspections": "inspecting.comparison",
    "described_classes": "asked.classes",
    "inspect": "inspecting.inspect_run",
    "inspection_summary": "inspecting.summary",
    "open_frontier": "training.frontier",
    "open_policy": "policy.policy",
    "open_trained": "training.trained",
    "quality_table": "descriptions.quality_table",
    "read_descriptions": "descriptions.saved",
    "read_verdict_sheet": "inspecting.verdict_sheet",
    "save_descriptions": "descriptions.saved",
    "train": "training.train",
    "train_frontier": "training.frontier",
    "write": "writing.write",
    "write_verdict_sheet": "inspecting.verdict_sheet",
}

__all__ = [
    "QUESTIONS",
    "DescribedClasses",
    "Descriptions",
    "Frontier",
    "Inspection",
    "Policy",
    "QualityTable",
    "Reward",
    "Target",
    "Trained",
    "TrainingSettings",
    "Verdict",
    "compare_inspections",
    "described_classes",
    "inspect",
    "inspection_summary",
    "open_frontier",
    "open_policy",
    "open_trained",
    "quality_table",
    "read_descriptions",
    "read_verdict_sheet",
    "save_descriptions",
    "train",
    "train_frontier",
    "write",
    "write_verdict_sheet",
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
