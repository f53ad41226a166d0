"""Merge labels that differ only in plural, in case, or by one being a prefix of the other.

Source: the study's rule (Madasu et al., arXiv 2409.06579). The rule joins pairs; groups are the connected sets of
pairs, so the order of labels does not matter: "geo" joins "geography" and "geo-location". Prefixes also join words
that mean different things ("car", "carpet"), so results store the original labels too.
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
# Endings of plurals and of their singulars. All are tried, since the ending does not decide the singular.
_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))


def merge_labels(labels: Iterable[str | None], prefixes: bool = True) -> dict[str, str]:
    """Map every label to the representative of its group: the most common label, then the shortest.

    Without `prefixes`, labels are joined by plural and case only. None among `labels` is ignored.
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
        # In sorted order, the labels that begin with a label follow it directly.
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
    """The letters and digits in lower case: "Geo location" and "geo-location" are equal."""
    return "".join(letter for letter in label.casefold() if letter.isalnum())


def _forms(label: str) -> set[str]:
    """The label and its possible singulars."""
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
    """Disjoint sets of labels, joined step by step (union-find)."""

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
