"""The flag `--head`, which chooses some heads only."""

from __future__ import annotations

from collections.abc import Sequence

from headspan.cli.shared_flags import Flags
from headspan.config import as_ranges
from headspan.errors import SettingsError
from headspan.head_names import parse_head
from headspan.store.head_space import Head


def head_flag(flags: Flags, verb: str = "show") -> None:
    """Add `--head`; `verb` is what the command does with the heads."""
    flags.add_argument(
        "--head",
        action="append",
        metavar="HEAD",
        dest="heads",
        help=f"{verb} this head only, as in L22.H13; may be repeated",
    )


def chosen_heads(names: Sequence[str] | None, layers: Sequence[int], heads: int) -> list[Head]:
    """Return the named heads in the order of the result, or all heads if none is named.

    `layers` and `heads` are the layers of the result and its number of heads in each. Raises SettingsError for a head
    that is not in the result.
    """
    every = [(layer, head) for layer in layers for head in range(heads)]
    chosen = set()
    for name in names or ():
        head = parse_head(name)
        if head not in every:
            raise SettingsError(
                f"--head {name}: there is no such head; write L{layers[0]}.H0, for example, with layers "
                f"{as_ranges(layers)} and heads 0 to {heads - 1}"
            )
        chosen.add(head)
    return [head for head in every if head in chosen] if chosen else every
