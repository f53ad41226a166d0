"""The flags of commands that compare heads with random ones and give bootstrap intervals."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from headspan.cli.shared_flags import Flags
from headspan.errors import SettingsError
from headspan.prune.choice.draws import DRAWS
from headspan.prune.studies.statistics import SAMPLES


def chance_flags(
    flags: Flags,
    sets: str = "sets of random heads",
    seeded: str = "draws and samples",
    draws: int = DRAWS,
    samples: int | None = SAMPLES,
) -> None:
    """Add `--draws`, `--samples` and `--seed`.

    `sets` and `seeded` are words of the help: what is drawn, and what the seed decides. With `samples=None`, the
    command computes no bootstrap intervals and has no `--samples`.
    """
    flags.add_argument("--draws", type=int, default=draws, metavar="N", help=f"{sets} ({draws})")
    if samples is not None:
        flags.add_argument(
            "--samples", type=int, default=samples, metavar="N", help=f"bootstrap samples of the intervals ({samples})"
        )
    flags.add_argument("--seed", type=int, default=0, metavar="N", help=f"seed of {seeded} (0)")


def check_chance(flags: argparse.Namespace) -> None:
    """Raise SettingsError if one of the flags is too small."""
    check_counts(flags, {"draws": 0, "samples": 1, "seed": 0})


def check_counts(flags: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Raise SettingsError if a flag is below the least number that it may be."""
    for name, smallest in least.items():
        if getattr(flags, name) < smallest:
            raise SettingsError(f"--{name} {getattr(flags, name)}: give a number from {smallest}")
