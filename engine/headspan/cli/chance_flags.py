"""The flags of commands that compare heads with random ones and give bootstrap intervals."""

from __future__ import annotations

from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.shared_flags import Flags
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
    flags.add_argument("--draws", type=FROM_0, default=draws, metavar="N", help=f"{sets} ({draws})")
    if samples is not None:
        flags.add_argument(
            "--samples",
            type=FROM_1,
            default=samples,
            metavar="N",
            help=f"bootstrap samples of the intervals ({samples})",
        )
    flags.add_argument("--seed", type=FROM_0, default=0, metavar="N", help=f"seed of {seeded} (0)")
