"""The result of a call of `precompute`."""

from __future__ import annotations

from dataclasses import dataclass, field

from headspan.shards.samples import BadImage, Unit


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call of `precompute` did."""

    path: str
    # Images that this call stored.
    images: int
    # Images that this call could not use.
    bad: list[BadImage]
    # Images of units that earlier calls or other processes finished. A call on several devices counts the units of
    # other processes that finished meanwhile as its own.
    skipped: int
    # Units that were quarantined because they repeatedly ended their process.
    quarantined: list[Unit] = field(default_factory=list)
    # Of the streaming in this call, as returned by `StageTimes.seconds`. Those of several processes are added up,
    # except for the total.
    seconds: dict[str, float] = field(default_factory=dict)
    # How many processes computed, one for each device.
    processes: int = 1
    # The living worker that completes the store, in words, if every unit is committed and it is not this one.
    completed_by: str = ""
