"""The Concept Consistency Score of every head, from judges' votes, and the studies' summaries of these scores.

Source: Madasu, Lal, Howard, "Quantifying Interpretability in CLIP Models with Concept Consistency",
arXiv 2503.11103, and its public code; association and entanglement: Madasu et al., arXiv 2409.06579. UNSOURCED
lists the formulas that are our interpretation, since the papers do not give them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from headspan.concepts.labels import LABELLED_TEXTS, Labels, of_older
from headspan.concepts.nulls import CHANCE_COLUMNS, ConsistencyChance
from headspan.config import as_ranges
from headspan.errors import SettingsError, counted
from headspan.frames import Tabular
from headspan.spans.result import place_of
from headspan.store.lineage import Lineage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A missing vote: the head has no label or no such text, or the judge gave no usable answer.
NO_VOTE = -1
# Printed and stored with every result.
UNSOURCED = {
    "association": "association score: mean over labelled heads of the share of texts that are consistent",
    "entanglement": "entanglement score: share of labelled heads whose label is another head's too",
    "majority": "votes are merged by majority; a tie counts as not consistent",
}


@dataclass(frozen=True, slots=True, repr=False)
class Votes:
    """Every judge's vote on every head's first texts."""

    judges: tuple[str, ...]
    # 1 if judged consistent, 0 if not, or NO_VOTE.
    cast: Int[np.ndarray, "judge layer head text"]
    # How many of the first five texts each head has.
    texts: Int[np.ndarray, "layer head"]

    def __repr__(self) -> str:
        return f"Votes({counted(int((self.cast != NO_VOTE).sum()), 'vote')} by {', '.join(self.judges)})"

    @property
    def consistent(self) -> Bool[np.ndarray, "layer head text"]:
        """Whether more than half of the votes that were cast say so; a tie is not consistent."""
        return 2 * (self.cast == 1).sum(axis=0) > (self.cast != NO_VOTE).sum(axis=0)

    @property
    def source(self) -> str:
        """Who voted, in words."""
        if len(self.judges) == 1:
            return self.judges[0]
        return f"majority of {', '.join(self.judges)}"


@dataclass(frozen=True, slots=True, repr=False)
class ConceptConsistency(Tabular):
    """The Concept Consistency Score of every head, 0 to 5, and the studies' summaries of these scores.

    Arrays follow `labels.layers`, which are the model's layer numbers; methods take these numbers.
    """

    labels: Labels
    votes: Votes
    # What chance gives; None if labels or votes are not those of the pool's concepts (see `concepts.nulls`), or if the
    # texts that they were made from cannot be read.
    chance: ConsistencyChance | None = None
    # Identifies the result, and says what it was made from.
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __repr__(self) -> str:
        groups = ", ".join(f"{count} {name}" for name, count in self.groups.items())
        return (
            f"ConceptConsistency({self.labels.run!r}: {counted(self.scores.size, 'head')}, layers "
            f"{as_ranges(self.labels.layers)}; {groups}{of_older(self.older)})"
        )

    @property
    def older(self) -> str | None:
        """The run that the scores were made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else self.labels.older

    @property
    def consistent(self) -> Bool[np.ndarray, "layer head text"]:
        """Whether each of a head's first texts is consistent with its label, by the majority of votes."""
        return self.votes.consistent

    @property
    def scores(self) -> Int[np.ndarray, "layer head"]:
        """CCS: the number of consistent texts of each head."""
        return self.consistent.sum(axis=2).astype(np.int8)

    @property
    def at_k(self) -> list[float]:
        """CCS@K for K = 0 to 5: the share of heads whose score is K."""
        scores = self.scores
        counts = np.bincount(scores.ravel(), minlength=LABELLED_TEXTS + 1)
        return [float(count) for count in counts / scores.size]

    @property
    def groups(self) -> dict[str, int]:
        """Number of heads in each group: high = 5, moderate = 3, low ≤ 1. Scores 2 and 4 are in no group."""
        scores = self.scores.ravel()
        return {
            "high": int((scores == 5).sum()),
            "moderate": int((scores == 3).sum()),
            "low": int((scores <= 1).sum()),
        }

    @property
    def ccr(self) -> float:
        """Concentrated concept ratio: the number of concepts that several high heads share, divided by the number of
        high heads; NaN without high heads."""
        concepts = Counter(
            name
            for row, names in zip(self.scores.tolist(), self.labels.concepts, strict=True)
            for score, name in zip(row, names, strict=True)
            if score == 5
        )
        high = sum(concepts.values())
        return sum(count > 1 for count in concepts.values()) / high if high else float("nan")

    @property
    def heads_per_concept(self) -> dict[str, int]:
        """How many heads have each concept, most common first, then by name."""
        counts = Counter(name for row in self.labels.concepts for name in row if name is not None)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def association(self) -> float:
        """Mean over labelled heads of the share of their texts that are consistent; NaN without any. See UNSOURCED."""
        known = self.labels.labelled & (self.votes.texts > 0)
        return float((self.scores[known] / self.votes.texts[known]).mean()) if known.any() else float("nan")

    @property
    def entanglement(self) -> float:
        """Share of labelled heads whose concept another head has too; NaN without labelled heads. See UNSOURCED."""
        counts = self.heads_per_concept.values()
        return sum(count for count in counts if count > 1) / sum(counts) if counts else float("nan")

    def score(self, layer: int, head: int) -> int:
        """The CCS of one head. Raises SettingsError if the head is not in the result."""
        return int(self.scores[place_of(self.labels.layers, self.votes.texts.shape[1], layer, head)])

    def group(self, layer: int, head: int) -> str | None:
        """The group of one head, or None for scores 2 and 4; errors as in `score`."""
        return {0: "low", 1: "low", 3: "moderate", 5: "high"}.get(self.score(layer, head))

    def layer(self, layer: int) -> ConceptConsistency:
        """The result restricted to the heads of one layer. Raises SettingsError if the layer is not in it."""
        place, _ = place_of(self.labels.layers, self.votes.texts.shape[1], layer, 0)
        one = slice(place, place + 1)
        labels, votes = self.labels, self.votes
        consistent = None if labels.consistent is None else labels.consistent[one]
        # Labels that were merged over the whole model stay merged.
        concepts = labels.concepts[one]
        return ConceptConsistency(
            Labels(labels.run, labels.source, (layer,), concepts, consistent),
            Votes(votes.judges, votes.cast[:, one], votes.texts[one]),
            self.chance and self.chance.layer(layer),
        )

    def summary(self) -> dict[str, Any]:
        """The summaries as JSON values; None for one that is not defined."""
        found: dict[str, Any] = {"at_k": self.at_k, "groups": self.groups}
        for name in ("ccr", "association", "entanglement"):
            value = getattr(self, name)
            found[name] = None if np.isnan(value) else value
        return found

    def cells(self) -> dict[str, Any]:
        """The summaries beside what chance gives, for a row of a table; None where chance is not known."""
        chance = self.chance
        return {
            "heads": int(self.scores.size),
            **self.groups,
            "beat_chance": chance and int(chance.beating().sum()),
            "beat_chance_by_chance": chance and chance.expected_beating(),
            **{f"{name}_by_chance": chance and chance.expected[name] for name in self.groups},
            **{f"ccs_at_{k}": share for k, share in enumerate(self.at_k)},
            "ccr": self.ccr,
            "association": self.association,
            "entanglement": self.entanglement,
        }

    def by_layer(self) -> LayerTable:
        """A table of the summaries: the first row is for all layers, with `layer` None, then one for each layer."""
        return LayerTable(self)

    def plot(self, by: str = "head", *, ax: Axes | None = None) -> Axes:
        """Draw the score and label of every head as a grid (`by="head"`), or how many heads have each (`by="score"`).

        Where chance is known, the labels of heads that do not beat it (p ≥ 0.05) are replaced by "unlabelled", and
        the numbers of heads stand beside the expected ones. `ax` are matplotlib's axes to draw on; without it, a new
        pyplot figure is made. Returns the axes. Needs matplotlib. Raises SettingsError if `by` is neither.
        """
        from headspan.concepts.drawing import draw_counts_of_scores, draw_scores

        if by not in ("head", "score"):
            raise SettingsError(f"by {by!r}: plot draws by 'head' or by 'score'; name one of them")
        if by == "score":
            expected = None if self.chance is None else self.chance.expected_at_k
            return draw_counts_of_scores(self.scores, expected, ax)
        return draw_scores(self.labels, self.scores, self.chance, ax)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        columns = dict(self.labels._columns())
        heads = zip(columns["layer"], columns["head"], strict=True)
        unknown = {name: [None] * self.scores.size for name in CHANCE_COLUMNS}
        return {
            **columns,
            "score": self.scores.ravel().tolist(),
            "group": [self.group(*head) for head in heads],
            **(self.chance.columns() if self.chance else unknown),
        }


@dataclass(frozen=True, slots=True, repr=False)
class LayerTable(Tabular):
    """The summaries of the scores by layer, after those of all layers."""

    found: ConceptConsistency

    def __repr__(self) -> str:
        return f"LayerTable({self.found!r})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        layers = self.found.labels.layers
        rows = [{"layer": None, **self.found.cells()}]
        rows += [{"layer": layer, **self.found.layer(layer).cells()} for layer in layers]
        return {name: [row[name] for row in rows] for name in rows[0]}
