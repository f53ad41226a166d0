"""What a call of `precompute` did."""

from __future__ import annotations

from dataclasses import dataclass, field

from headspan.shards.samples import BadImage, Unit


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call of `precompute` did."""

    path: str
    # Stored in this call, set aside in this call, and finished by earlier calls or other processes.
    images: int
    bad: list[BadImage]
    skipped: int
    # Units that were set apart because they repeatedly ended the process.
    quarantined: list[Unit] = field(default_factory=list)
    # Of the streaming, in this call, as `StageTimes.seconds` gives them.
    seconds: dict[str, float] = field(default_factory=dict)
