"""The flags of commands that compare heads with random ones and give bootstrap intervals."""

from __future__ import annotations

import argparse

from headspan.cli.shared_flags import Flags
from headspan.errors import SettingsError
from headspan.prune.choice.draws import DRAWS
from headspan.prune.studies.statistics import SAMPLES


def chance_flags(flags: Flags, sets: str = "sets of random heads", seeded: str = "draws and samples") -> None:
    """Add `--draws`, `--samples` and `--seed`; `sets` says what is drawn, and `seeded` what the seed decides."""
    flags.add_argument("--draws", type=int, default=DRAWS, metavar="N", help=f"{sets} ({DRAWS})")
    flags.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help=f"bootstrap samples of the intervals ({SAMPLES})"
    )
    flags.add_argument("--seed", type=int, default=0, metavar="N", help=f"seed of {seeded} (0)")


def check_chance(flags: argparse.Namespace) -> None:
    """Raise SettingsError if one of the flags is too small."""
    for name, least in (("draws", 0), ("samples", 1), ("seed", 0)):
        if getattr(flags, name) < least:
            raise SettingsError(f"--{name} {getattr(flags, name)}: give a number from {least}")
