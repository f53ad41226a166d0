"""Choose images of a store by the keys, the words of the captions, or the classes of their samples.

The table of samples is scanned once, in bounded memory. A word matches as a whole, in capital or small letters: `dog`
is in "A dog." and not in "dogma". Letters are those of all scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from headspan.errors import SettingsError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store.opened import OpenStore
from headspan.store.selection import Selection
from headspan.store.tables import scan_samples

# What may not be next to a word: a letter with its marks, a digit or an underscore.
WORD_CHARACTERS = r"\p{L}\p{M}\p{N}_"
# How many names a message lists.
_SHOWN = 3


@dataclass(slots=True)
class _Criterion:
    """One column's test: one mask of all planned rows for each value that is looked for."""

    column: str
    values: list[str] | list[int]
    # Whether the values must all match, rather than one of them.
    every: bool
    matched: np.ndarray = field(init=False)
    # Rows that have a value in this column.
    present: np.ndarray = field(init=False)

    def begin(self, rows: int) -> None:
        # Keys may be many. One row has one key, so its place among the keys says all.
        self.matched = np.full(rows, -1) if self.column == "key" else np.zeros((len(self.values), rows), bool)
        self.present = np.zeros(rows, bool)

    def scan(self, column: pa.Array, rows: slice) -> None:
        """Test the samples of some rows."""
        self.present[rows] = pc.is_valid(column).to_numpy(zero_copy_only=False)
        if self.column == "key":
            places = pc.index_in(column, value_set=pa.array(self.values, pa.string()))
            self.matched[rows] = pc.fill_null(places, -1).to_numpy(zero_copy_only=False)
            return
        for found, value in zip(self.matched, self.values, strict=True):
            test = (
                pc.match_substring_regex(column, word_pattern(value))
                if isinstance(value, str)
                else pc.equal(column, value)
            )
            found[rows] = pc.fill_null(test, False).to_numpy(zero_copy_only=False)

    def mask(self) -> np.ndarray:
        """The rows that pass."""
        if self.column == "key":
            mask: np.ndarray = self.matched >= 0
            return mask
        return np.asarray(self.matched.all(axis=0) if self.every else self.matched.any(axis=0))

    def counts(self, among: np.ndarray) -> np.ndarray:
        """How many of the rows `among` match each value."""
        if self.column == "key":
            here = self.matched[among]
            return np.bincount(here[here >= 0], minlength=len(self.values))
        return self.matched[:, among].sum(axis=1)


def select(
    store: OpenStore,
    *,
    keys: str | Path | Sequence[str] | None = None,
    words: str | Sequence[str] | None = None,
    any_word: bool = False,
    classes: int | Sequence[int] | None = None,
    on_progress: Listener = ignore,
) -> Selection:
    """Select the usable images that pass every criterion that is given; see `Store.select`."""
    criteria, parts = [], []
    if words is not None:
        texts = [words] if isinstance(words, str) else list(words)
        texts = list(dict.fromkeys(" ".join(word.split()) for word in texts))
        if not all(texts) or not texts:
            raise SettingsError("the list of words is empty or has an empty word; give words such as dog")
        criteria.append(_Criterion("caption", texts, not any_word))
        parts.append(f"whose caption has {listed(texts, 'word', 'or' if any_word else 'and')}")
    if classes is not None:
        numbers = [int(number) for number in ([classes] if isinstance(classes, int | np.integer) else classes)]
        if not numbers:
            raise SettingsError("the list of classes is empty; give numbers such as 3")
        criteria.append(_Criterion("label", list(dict.fromkeys(numbers)), False))
        parts.append(f"of {listed([f'{number}' for number in dict.fromkeys(numbers)], 'class', 'or', 'es', '')}")
    if keys is not None:
        names, source = _keys(keys)
        criteria.append(_Criterion("key", names, False))
        parts.append(source)
    if not criteria:
        raise SettingsError("no images are chosen; give keys, words or classes")
    return Selection(_rows(store, criteria, on_progress), ", ".join(parts))


def _rows(store: OpenStore, criteria: Sequence[_Criterion], on_progress: Listener) -> np.ndarray:
    """The rows of the usable images that pass all criteria. Raises SettingsError if there are none."""
    _scan(store, criteria)
    usable = np.zeros(store.planned_images, bool)
    usable[store.contents.good_rows()] = True
    for each in criteria:
        _refuse_without_match(store, each, usable, on_progress)
    passed = np.logical_and.reduce([each.mask() for each in criteria])
    if not (passed & usable).any():
        alone = "; ".join(_alone(each, usable) for each in criteria)
        raise SettingsError(f"{store.path}: no image has all that was asked for ({alone}); ask for less")
    return np.flatnonzero(passed & usable)


def rows_with_words(store: OpenStore, words: Sequence[str]) -> Bool[np.ndarray, "word row"]:
    """Whether the caption of each planned row has each of the words, as `Store.select` matches them.

    Raises SettingsError if no image has a caption.
    """
    each = _Criterion("caption", [" ".join(word.split()) for word in words], False)
    _scan(store, [each])
    if not each.present.any():
        raise _nothing_in(store, each)
    return each.matched


def _scan(store: OpenStore, criteria: Sequence[_Criterion]) -> None:
    """Test all samples of the plan."""
    for each in criteria:
        each.begin(store.planned_images)
    first = 0
    for batch in scan_samples(store.contents.storage, store.contents.units, [each.column for each in criteria]):
        rows = slice(first, first + len(batch))
        for each in criteria:
            each.scan(batch.column(each.column), rows)
        first = rows.stop


def _refuse_without_match(store: OpenStore, each: _Criterion, usable: np.ndarray, on_progress: Listener) -> None:
    """Raise SettingsError for values that no image has; tell `on_progress` what else is left out."""
    if each.column == "key":
        unknown = [key for key, count in zip(each.values, each.counts(np.ones_like(usable)), strict=True) if not count]
        if unknown:
            first = ", ".join(map(repr, unknown[:_SHOWN]))
            raise SettingsError(
                f"{store.path}: holds no image for {len(unknown):,} of {counted(len(each.values), 'key')} (first: "
                f"{first}); correct or remove them"
            )
        left = int((each.mask() & ~usable).sum())
        if left:
            on_progress(Progress(NOTE, 1, 1, f"left out {counted(left, 'image')} named by key that could not be used"))
        return
    if not each.present[usable].any():
        raise _nothing_in(store, each)
    none = [value for value, count in zip(each.values, each.counts(usable), strict=True) if not count]
    if not none:
        return
    lost = ", ".join(map(str, none))
    if each.column == "label":
        raise SettingsError(f"{store.path}: no image has class {lost}; headspan export --format csv lists the classes")
    sentence = f"no caption has the {'word' if len(none) == 1 else 'words'} {lost}"
    if each.every or len(none) == len(each.values):
        raise SettingsError(f"{store.path}: {sentence}; choose other words, which match as whole words")
    on_progress(Progress(NOTE, 1, 1, sentence))


def _nothing_in(store: OpenStore, each: _Criterion) -> SettingsError:
    """The error for a criterion whose column is empty."""
    what, missing = {"caption": ("caption", "captions"), "label": ("class (.cls member)", "classes")}[each.column]
    return SettingsError(f"{store.path}: no image has a {what}, so {missing} cannot choose images; give keys instead")


def _alone(each: _Criterion, usable: np.ndarray) -> str:
    """How many images have each value, in words."""
    if each.column == "key":
        return f"{counted(int((each.mask() & usable).sum()), 'image')} by key"
    names = "class {}" if each.column == "label" else "{}"
    found = zip(each.values, each.counts(usable), strict=True)
    return ", ".join(f"{names.format(value)} in {counted(int(count), 'image')}" for value, count in found)


def _keys(keys: str | Path | Sequence[str]) -> tuple[list[str], str]:
    """The keys without repeats, and the selection in words. Raises SettingsError if they cannot be read."""
    if not isinstance(keys, str | Path):
        names, source = list(keys), "chosen by key"
    else:
        path = Path(keys).expanduser()
        try:
            names = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise SettingsError(f"{path}: cannot be read ({why}); give a text file with a key in each line") from error
        names, source = (
            [name for name in (name.removesuffix("\r") for name in names) if name],
            f"with a key in {path.name}",
        )
    if not names:
        raise SettingsError(
            f"the list of keys is empty{'' if source == 'chosen by key' else f' ({keys})'}; give keys of images"
        )
    return list(dict.fromkeys(map(str, names))), source


def word_pattern(word: str) -> str:
    """A regular expression for a whole word; several words stand as they are, with any white space between them."""
    inside = r"\s+".join(map(re.escape, word.split()))
    return rf"(?i)(?:^|[^{WORD_CHARACTERS}])(?:{inside})(?:$|[^{WORD_CHARACTERS}])"


def listed(names: Sequence[str], noun: str, last: str, plural: str = "s", article: str = "the ") -> str:
    """A list in words: "the word dog", "the words red and car"."""
    if len(names) == 1:
        return f"{article}{noun} {names[0]}"
    return f"{article}{noun}{plural} {', '.join(names[:-1])} {last} {names[-1]}"
