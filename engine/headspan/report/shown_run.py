"""Which run of a store's results is shown, and its scores if they are of the run as it is now."""

from __future__ import annotations

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.errors import SettingsError
from headspan.spans.result import HeadSpans
from headspan.store.lineage import older
from headspan.store.reader import Store
from headspan.store.results import only_run, runs

# What is shown without the texts of heads.
_OF_NO_RUN = ("prune", "features", "descriptions")


def shown_run(store: Store, run: str | None = None, heads: str | None = None) -> str | None:
    """`run`, or the only TEXTSPAN run with scores, or else the only TEXTSPAN run.

    None if there is no TEXTSPAN run, but something else to show. `heads` chooses heads to show, which need a run.

    Raises StoreError if there is nothing to show, or if there are several runs and none is named; SettingsError if
    heads are chosen and none is described.
    """
    if run is None and len(scored := runs(store, "ccs")) == 1:
        return scored[0]
    if run is None and not runs(store, "textspan") and any(runs(store, kind) for kind in _OF_NO_RUN):
        if heads is not None:
            raise SettingsError(
                f"--heads {heads}: {store.path} has no textspan run, so no head is described; leave --heads out, or "
                "run headspan textspan first"
            )
        return None
    return only_run(store, "textspan", run)


def scores_of(store: Store, run: str, spans: HeadSpans | None = None) -> ConceptConsistency | None:
    """The scores of the run; None if there are none, or if they were made from an older run of that name.

    `spans` are the run's, where they are read already.
    """
    if run not in runs(store, "ccs") or older_than(store, "ccs", run):
        return None
    return read_scores(store, run, spans)


def older_than(store: Store, kind: str, run: str) -> str | None:
    """The run that a result was made from, if it was replaced or removed since; else None."""
    return older(store.contents.storage, kind, run)
