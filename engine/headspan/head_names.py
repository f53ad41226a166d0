"""Names of heads: layer 22, head 13 is `L22.H13`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import index

from headspan.errors import SettingsError

# Layer and head, as the model numbers them.
Head = tuple[int, int]
_NAME = re.compile(r"L([0-9]{1,9})\.H([0-9]{1,9})")


def head_name(layer: int, head: int) -> str:
    """The name of a head, such as `L22.H13`."""
    return f"L{layer}.H{head}"


def parse_head(name: str) -> Head | None:
    """Layer and head of a name such as `L22.H13`; None if it is not such a name."""
    found = _NAME.fullmatch(name.strip())
    return (int(found[1]), int(found[2])) if found else None


def parse_heads(heads: str | Iterable[str | Head], said: str) -> list[Head]:
    """The heads that are named, ascending, each once: `L22.H13,L23.H1`, several of these, or (layer, head).

    Raises SettingsError, which calls the setting `said`, if something else is given.
    """
    found: set[Head] = set()
    for item in [heads] if isinstance(heads, str) else heads:
        if not isinstance(item, str):
            found.add(_pair(item, said))
            continue
        for name in item.split(","):
            head = parse_head(name)
            if head is None:
                raise SettingsError(
                    f"{said} {item}: {name.strip() or 'an empty name'} is no head; write L22.H13, for example"
                )
            found.add(head)
    return sorted(found)


def _pair(item: Head, said: str) -> Head:
    try:
        layer, head = map(index, item)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{said} {item!r}: is no head; give (layer, head), or a name such as L22.H13") from error
    return layer, head
