"""Requests of people who explore a store, in a seeded mix: every kind of stored answer, each about something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

import headspan as hs
from benchmarks.explored_store import CLASSES, WORDS
from headspan.head_names import head_name
from headspan.store.head_space import stored_heads

# A property's heads, and as many random ones, as the page draws them first.
_SETS = (("label", ""), ("random", ":0"))
Make = Callable[[], str]


class Mix:
    """Makes requests about a store with heads, and about one with patches, by kind."""

    def __init__(
        self, store: hs.Store, texts: Sequence[str], labels: Sequence[str], patches: hs.Store, parts: int, seed: int = 0
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._images, self._patches, self._parts = store.images, patches, parts
        self._texts, self._labels = texts, labels
        self._heads = [head_name(*head) for head in stored_heads(store)]
        self._store = "/api/stores/run"
        self.kinds: Mapping[str, Make] = {
            "status": lambda: "/api/status",
            "store": lambda: self._store,
            "grid": lambda: f"{self._store}/grid",
            "head": lambda: f"{self._store}/heads/{self._head()}",
            "extremes of a head": lambda: self._at(f"heads/{self._head()}/extremes", text=self._text()),
            "part of a plane": lambda: self._at(f"planes/{self._of()}/points", part=self._part()),
            "codes of a class or word": lambda: self._at("categories/codes", by=self._by(), part=self._part()),
            "codes of a text": lambda: self._at(
                "categories/codes", by=f"text:{self._text()}", of=self._of(), part=self._part()
            ),
            "neighbours through a head": lambda: self._neighbours(self._head()),
            "neighbours through a property": lambda: self._neighbours(f"label:{self._label()}"),
            "neighbours through random heads": lambda: self._neighbours(f"random:{self._label()}:0"),
            "neighbours by embedding": lambda: self._neighbours("embedding"),
            "neighbours of a text through a head": lambda: self._at(
                "neighbours", text=self._text(), through=self._head()
            ),
            "neighbours of a text by embedding": lambda: self._at("neighbours", text=self._text()),
            "image": lambda: self._at(f"images/{self._image()}"),
            "bars": lambda: self._at(f"images/{self._image()}/bars", text=self._text()),
            "map": lambda: self._at(f"images/{self._below(self._patches.images)}/maps", "patches", text=self._text()),
            "listing by words": lambda: self._at("images", words=self._word()),
            "listing by class": lambda: self._at("images", classes=self._below(CLASSES), offset=100 * self._below(9)),
            "listing by polygon": lambda: self._at("images", plane=self._head(), polygon=self._polygon()),
            "text": lambda: self._at("texts", text=self._text()),
            "known texts": lambda: self._at("texts/known", prefix=self._text()[: 1 + self._below(8)]),
            "what if": lambda: self._at(
                f"what-if/{self._image()}", without=f"{self._head()},{self._head()}", text=[self._text(), self._text()]
            ),
            "picture": lambda: self._at(f"images/{self._image()}/picture", side=224),
        }

    def some(self, count: int) -> tuple[list[str], list[str]]:
        """Kinds and paths of requests, as many of each kind, shuffled."""
        names = list(self.kinds)
        chosen = [names[number % len(names)] for number in range(count)]
        self._random.shuffle(chosen)
        return chosen, [self.kinds[kind]() for kind in chosen]

    def through_all(self) -> list[str]:
        """A word, and neighbours through all sets of heads: what indexes and sketches are built for."""
        sets = [f"{kind}:{label}{seed}" for label in self._labels for kind, seed in _SETS]
        neighbours = [self._neighbours(through) for through in ("embedding", *sets, *self._heads)]
        return [self._at("images", words=self._word()), *neighbours]

    def of_text(self) -> str:
        """Neighbours of a text by embedding: what all numbers are kept in eight bits for, once there are sketches."""
        return self.kinds["neighbours of a text by embedding"]()

    def _at(self, path: str, store: str = "run", **asked: Any) -> str:
        return f"/api/stores/{store}/{path}" + (f"?{urlencode(asked, doseq=True)}" if asked else "")

    def _neighbours(self, through: str) -> str:
        return self._at("neighbours", image=self._image(), through=through)

    def _below(self, count: int) -> int:
        return int(self._random.integers(0, count))

    def _image(self) -> int:
        return self._below(self._images)

    def _head(self) -> str:
        return self._heads[self._below(len(self._heads))]

    def _of(self) -> str:
        return self._head() if self._below(8) else "embedding"

    def _part(self) -> int:
        return self._below(self._parts)

    def _text(self) -> str:
        return self._texts[self._below(len(self._texts))]

    def _label(self) -> str:
        return self._labels[self._below(len(self._labels))]

    def _word(self) -> str:
        return f"word{self._below(WORDS)}"

    def _by(self) -> str:
        return "class" if self._below(2) else f"word:{self._word()},{self._word()}"

    def _polygon(self) -> str:
        x, y = self._random.normal(0, 0.3, 2)
        return ";".join(f"{x + right:.3f},{y + up:.3f}" for right, up in ((-1, -1), (1, -1), (0, 2)))
