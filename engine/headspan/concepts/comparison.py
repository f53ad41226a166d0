"""Compare the Concept Consistency Scores of several stores, as in the study's table of models.

Source of the table: Madasu, Lal, Howard, arXiv 2503.11103.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.errors import counted
from headspan.frames import Tabular
from headspan.spans.saved import read_spans
from headspan.store.lineage import refuse_older
from headspan.store.reader import Store
from headspan.store.schema import names_without


@dataclass(frozen=True, slots=True)
class Method:
    """How scores were made: the text pool, who gave the labels, who voted."""

    pool: str
    labels: str
    votes: str


@dataclass(frozen=True, slots=True)
class ComparedStore:
    """The scores of one store, and how they were made."""

    store: str
    model: str
    run: str
    method: Method
    found: ConceptConsistency


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Tabular):
    """The scores of several stores."""

    stores: tuple[ComparedStore, ...]

    def __repr__(self) -> str:
        made = "made in the same way" if self.comparable else f"made in {len(self.methods)} different ways"
        return f"Comparison({counted(len(self.stores), 'store')}, {made})"

    def __iter__(self) -> Iterator[ComparedStore]:
        return iter(self.stores)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The different methods, in order of their first store."""
        return tuple(dict.fromkeys(each.method for each in self.stores))

    @property
    def comparable(self) -> bool:
        """Whether all scores were made with one pool, labeller and set of judges."""
        return len(self.methods) < 2

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [
            {
                "model": each.model,
                "store": each.store,
                "run": each.run,
                "method": self.methods.index(each.method) + 1,
                **each.found.cells(),
            }
            for each in self.stores
        ]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def compare(stores: Sequence[Store], run: str | None = None) -> Comparison:
    """The scores of CCS run `run` of every store; without `run`, of the only run of each.

    Raises StoreError if a store has no such run, or one that is of an older run. Scores made by different methods
    cannot be compared; see `comparable`.
    """
    compared = []
    for store in stores:
        found = read_scores(store, run)
        method = method_of(store, found)
        refuse_older(store, "ccs", found.labels.run)
        pretrained = store.attributes["pretrained"]
        model = f"{store.attributes['model']}{f' {pretrained}' if pretrained else ''}"
        model += f" without {without}" if (without := names_without(store.attributes)) else ""
        compared.append(ComparedStore(str(store.path), model, found.labels.run, method, found))
    return Comparison(tuple(compared))


def method_of(store: Store, found: ConceptConsistency) -> Method:
    """How scores of a store were made. Raises StoreError if the texts that they were made from cannot be read."""
    return Method(read_spans(store, found.labels.run).pool.name, found.labels.source, found.votes.source)
