"""What trainings of the included models share: flags of a recipe, the rate of a step, checkpoints, and the log.

A recipe is a dataclass of numbers with defaults, whose rate follows `steps`, `warmup` and `decay`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch


class Schedule(Protocol):
    """The part of a recipe that decides the rate of a step."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay(self) -> float: ...


R = TypeVar("R")


def share_of_rate(step: int, recipe: Schedule) -> float:
    """Share of the full rate: it rises linearly, stays at 1, and falls linearly to 0."""
    left = (recipe.steps - step) / max(recipe.steps * recipe.decay, 1)
    return min((step + 1) / recipe.warmup, left, 1.0)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint. It is renamed when complete, so that a killed run resumes from the checkpoint before."""
    temporary = path.with_suffix(".tmp")
    torch.save(dict(state), temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote; None if there is no checkpoint yet."""
    if not path.is_file():
        return None
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def write_log(out: Path, line: dict[str, Any]) -> None:
    """Print a line of JSON, and append it to the folder's `log.jsonl`."""
    text = json.dumps(line)
    print(text, flush=True)
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def recipe_flags(parser: argparse.ArgumentParser, recipe: Any) -> None:
    """A flag for each setting of `recipe`, whose values are the defaults; `recipe_of` reads them."""
    for name in recipe.__dataclass_fields__:
        default = getattr(recipe, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help="default: %(default)s"
        )


def recipe_of(flags: argparse.Namespace, kind: type[R]) -> R:
    """The recipe that the flags of `recipe_flags` give."""
    return kind(**{name: getattr(flags, name) for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]
