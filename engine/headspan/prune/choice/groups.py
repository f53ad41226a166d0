"""Groups of heads by name: by score, by label, from a file or a list; and equal numbers of two groups.

Source of `high`, `moderate` and `low`: Madasu, Lal, Howard, arXiv 2503.11103. `choice.draws` draws random heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labelled_heads import heads_of
from headspan.config import as_ranges
from headspan.errors import SettingsError, one_line
from headspan.head_names import head_name, parse_head
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.user_paths import expand_user

# The groups of Concept Consistency Scores, and the scores of their heads in words.
CCS_GROUPS = {"high": "CCS 5", "moderate": "CCS 3", "low": "CCS 0 or 1"}


@dataclass(frozen=True, slots=True)
class HeadGroup:
    """A named set of heads."""

    name: str
    # In the order of layers and heads, each once.
    heads: tuple[Head, ...]
    # Why there are no heads, such as `no head has CCS 5`; empty if there are some.
    why_empty: str = ""


def head_group(
    store: Store, name: str, scores: ConceptConsistency | str | None = None, *, any_layer: bool = False
) -> HeadGroup:
    """The heads that `name` means, which may be none.

    `name` is `high`, `moderate` or `low` for the heads with such a Concept Consistency Score; `label:NAME` for the
    heads with that label; `high:NAME` and so on for those of them with such a score; a list such as `L22.H13,L23.H1`;
    or a text file with a head in each line, where lines that start with `#` are comments. `scores`, or the run that it
    names, are the scores and labels; None means the store's only ones. `any_layer` accepts heads of layers that are
    not stored, in lists and files.

    Raises SettingsError if `name` has another form, if its file cannot be read, if it names a head that does not exist,
    or if no head has the label; StoreError if the store has no such scores or labels.
    """
    group, _, label = name.partition(":")
    if group in CCS_GROUPS and (label or ":" not in name):
        return _of_score(store, name, group, label, scores)
    if group == "label" and label:
        run = scores.labels.run if isinstance(scores, ConceptConsistency) else scores
        return HeadGroup(name, tuple(heads_of(store, label, run)))
    check = _checker(store, any_layer)
    if any(map(parse_head, name.split(","))):
        heads = {check(each.strip(), "") for each in name.split(",")}
        return HeadGroup(",".join(head_name(*head) for head in sorted(heads)), tuple(sorted(heads)))
    path = expand_user(name)
    if not path.is_file():
        raise SettingsError(
            f"heads {name!r}: is no group of heads; give high, moderate, low, label:NAME, heads such as "
            "L22.H13,L23.H1, or a text file with a head in each line"
        )
    heads = {check(line, f"{path}, line {number}: ") for number, line in _lines(path)}
    return HeadGroup(path.stem, tuple(sorted(heads)), "" if heads else f"{path} names no head")


def _of_score(store: Store, name: str, group: str, label: str, scores: ConceptConsistency | str | None) -> HeadGroup:
    found = scores if isinstance(scores, ConceptConsistency) else read_scores(store, scores)
    # Scores of other layers than the stored ones cannot be: both come from the same moments.
    among = heads_of(store, label, found.labels.run) if label else stored_heads(store)
    scored = set(found.labels.layers)
    heads = tuple(head for head in among if head[0] in scored and found.group(*head) == group)
    with_label = f" with the label {label!r}" if label else ""
    return HeadGroup(name, heads, "" if heads else f"no head{with_label} has {CCS_GROUPS[group]}")


def _checker(store: Store, any_layer: bool) -> Callable[[str, str], Head]:
    """From a head's name, and the place of it in words, to the head. It raises SettingsError if there is none."""
    layers: Sequence[int] = range(store.all_layers) if any_layer else store.layers
    of = "the model" if any_layer else "the store"

    def check(name: str, place: str) -> Head:
        head = parse_head(name)
        if head is None:
            raise SettingsError(f"{place}{name!r} is not a head; write layer and head as in L22.H13")
        if head[0] not in layers or head[1] >= store.heads_per_layer:
            raise SettingsError(
                f"{place}{name}: is not a head of {of}, which has layers {as_ranges(layers)} with heads 0 to "
                f"{store.heads_per_layer - 1}"
            )
        return head

    return check


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: cannot be read as a list of heads ({one_line(error)}); give a text file in UTF-8 with a head, as "
            "in L22.H13, in each line"
        ) from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]
