"""Which heads have a section in the report: `L5.H1,L6.*`, `last4`, `best20`, or all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from headspan.errors import SettingsError
from headspan.report.described_head import DescribedHead

FORMS = (
    "L5.H1, L6.*, last4 for the last four layers, or best20 for the 20 strongest heads; separate several with commas"
)


def choose_heads(heads: Sequence[DescribedHead], chosen: str | None) -> list[DescribedHead]:
    """The heads that `chosen` names, in the order of `heads`; all of them if it is None.

    Raises SettingsError if it has another form or names a head that is not described.
    """
    if chosen is None:
        return list(heads)
    names: set[str] = set()
    for part in filter(None, map(str.strip, chosen.split(","))):
        found = _named(heads, part)
        if not found:
            layers = sorted({head.layer for head in heads})
            raise SettingsError(
                f"--heads {part}: names no described head (layers {layers[0]} to {layers[-1]}, heads 0 to "
                f"{max(head.head for head in heads)}); write {FORMS}"
            )
        names |= {head.name for head in found}
    if not names:
        raise SettingsError(f"--heads {chosen!r}: names no head; write {FORMS}")
    return [head for head in heads if head.name in names]


def _named(heads: Sequence[DescribedHead], part: str) -> list[DescribedHead]:
    if last := re.fullmatch(r"last(\d{1,9})", part):
        layers = sorted({head.layer for head in heads})
        kept = set(layers[len(layers) - min(int(last[1]), len(layers)) :])
        return [head for head in heads if head.layer in kept]
    if best := re.fullmatch(r"best(\d{1,9})", part):
        return sorted(heads, key=lambda head: head.rank)[: int(best[1])]
    one = re.fullmatch(r"[Ll](\d{1,9})\.(?:[Hh](\d{1,9})|\*)", part)
    if not one:
        raise SettingsError(f"--heads {part}: is not the name of heads; write {FORMS}")
    return [head for head in heads if head.layer == int(one[1]) and one[2] in (None, f"{head.head}")]
