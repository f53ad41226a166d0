"""Several models' stores side by side, as the study's table: heads of high, moderate and low consistency.

Source of the table: Madasu, Lal, Howard, arXiv 2503.11103.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headspan.concepts.ccs import ConceptConsistency, read_scores
from headspan.spans.result import read_spans
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class Compared:
    """One store's scores, and how they came about."""

    store: str
    model: str
    run: str
    pool: str
    found: ConceptConsistency

    @property
    def way(self) -> tuple[str, str, str]:
        """Text pool, labeller and judges: scores made in different ways do not compare."""
        return self.pool, self.found.labels.source, self.found.votes.source


def compare(stores: Sequence[Store], run: str | None = None) -> list[Compared]:
    """The CCS run `run` (or the only one) of every store; StoreError where one has none."""
    compared = []
    for store in stores:
        found = read_scores(store, run)
        spans = read_spans(store, found.labels.run)
        pretrained = store.attributes["pretrained"]
        model = f"{store.attributes['model']}{f' {pretrained}' if pretrained else ''}"
        compared.append(Compared(str(store.path), model, found.labels.run, spans.pool.name, found))
    return compared
