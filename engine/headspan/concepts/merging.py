"""Which labels count as one: those that differ only in plural, case, or by one being a prefix of the other.

Source: the study's rule (Madasu et al., arXiv 2409.06579). The rule joins pairs, and what is joined through
others is one group, so that the order of labels has no say: with "geo", "geography" and "geo-location" go
together. Prefixes can also join what means different things ("car", "carpet"), so callers keep the labels as given.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
}
# Endings of a plural, and what stands there in the singular; each is tried, as English does not say which.
_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))


def merge_labels(labels: Iterable[str | None], prefixes: bool = True) -> dict[str, str]:
    """Every label to the one that stands for its group: its commonest; of equally common ones, the shortest.

    Without `prefixes`, labels are joined by plural and case alone. None is left out.
    """
    counts = Counter(label for label in labels if label is not None)
    distinct = sorted(counts)
    forms = {label: _forms(label) for label in distinct}
    groups = _Groups(distinct)
    by_form: dict[str, str] = {}
    for label in distinct:
        for form in forms[label]:
            groups.join(label, by_form.setdefault(form, label))
    if prefixes:
        plain = {label: _plain(label) for label in distinct}
        # Sorted, what a label is the prefix of follows it at once.
        ordered = sorted((form, label) for label, form in plain.items() if form)
        for place, (form, label) in enumerate(ordered):
            for longer, other in ordered[place + 1 :]:
                if not longer.startswith(form):
                    break
                groups.join(label, other)
    return {
        label: min(members, key=lambda member: (-counts[member], len(member), member))
        for members in groups.all()
        for label in members
    }


def _plain(label: str) -> str:
    """The letters and digits alone: "Geo location" and "geo-location" are one."""
    return "".join(letter for letter in label.casefold() if letter.isalnum())


def _forms(label: str) -> set[str]:
    """The label and what its singular may be."""
    plain = _plain(label)
    forms = {plain}
    for ending, singular in _PLURALS:
        if plain.endswith(ending) and len(plain) > len(ending) + 1:
            forms.add(plain.removesuffix(ending) + singular)
    for many, one in _IRREGULAR.items():
        if plain.endswith(many):
            forms.add(plain.removesuffix(many) + one)
    return forms - {""}


class _Groups:
    """Sets of labels that grow together."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._above = {label: label for label in labels}

    def join(self, one: str, other: str) -> None:
        self._above[self._top(one)] = self._top(other)

    def all(self) -> list[list[str]]:
        members: defaultdict[str, list[str]] = defaultdict(list)
        for label in self._above:
            members[self._top(label)].append(label)
        return list(members.values())

    def _top(self, label: str) -> str:
        while self._above[label] != label:
            label = self._above[label]
        return label
