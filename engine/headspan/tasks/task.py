"""A task: what is asked of image embeddings, and where the right answers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Metric = Literal["accuracy", "worst_group", "retrieval", "skew", "segmentation"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task as its declaration gives it; `read_task` reads one from a TOML file."""

    name: str
    metric: Metric
    # One sentence each: what the task is, where its data comes from, and how they are laid out.
    title: str = ""
    source: str = ""
    layout: str = ""
    # Names of the classes in the order of the numbers in `.cls` members; empty if the metric has no classes.
    classes: tuple[str, ...] = ()
    # Prompts, with `{c}` for the name of a class, or `{p}` for a prompt's subject such as an occupation.
    templates: tuple[str, ...] = ()
    # Groups of classes by name, such as `animals`, for concept-specific pruning.
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Keys of the samples' metadata whose values are groups of images, such as `race`; with the class, or alone.
    groups: tuple[str, ...] = ()
    # Settings of the metric, such as `k` of the skew or `captions` of retrieval, as the metric documents them.
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    # Published figures as the source gives them: by model (`ViT-L-14 openai`), then by variant (`whole`, `high`).
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # One sentence on what makes the published figures comparable or not.
    published_note: str = ""
    # Groups of images by name, each with the values of metadata that count as it, such as `asian` with `East Asian` and
    # `Southeast Asian`. A value that is not listed is a group of its own.
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
