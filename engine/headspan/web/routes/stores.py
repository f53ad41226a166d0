"""One store: facts, results, properties, and the grid of its heads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from headspan.errors import counted
from headspan.report.facts import data_set, random_weights_notice, run_facts, store_facts
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.web.answers.stores import Fact, Grid, HeadSummary, Property, Runs, StoreAnswer
from headspan.web.asked import Asked, AskedStore, named
from headspan.web.failures import RESPONSES
from headspan.web.head_results import default_run, summaries

router = APIRouter(prefix="/api/stores/{store}", tags=["stores"], responses=RESPONSES)
# The name of a run, of a head, or of a column.
RunName = Annotated[str | None, Query(max_length=100, description="A TEXTSPAN run; by default the shown one")]
# How many of its texts a head's `explained` counts.
TEXTS_COUNTED = 5


@router.get("", response_model=StoreAnswer)
def store_answer(asked: Asked) -> Response:
    """Facts about a store, its saved results, its properties, and what it lacks."""
    return asked.answer("store", lambda: _store_answer(asked))


@router.get("/grid", response_model=Grid)
def grid(asked: Asked, run: RunName = None) -> Response:
    """Every stored head with its label and numbers."""
    return asked.answer(("grid", run), lambda: _grid(asked, run))


def _grid(asked: AskedStore, run: str | None) -> Grid:
    results = asked.results(run)
    counted_texts = None if results.spans is None else min(TEXTS_COUNTED, results.spans.indices.shape[2])
    return Grid(store=asked.name, run=results.run, texts_counted=counted_texts, heads=head_summaries(asked, run))


def head_summaries(asked: AskedStore, run: str | None) -> list[HeadSummary]:
    """A summary of every stored head, in order."""
    results = asked.results(run)
    return asked.keep(("summaries", results.run), lambda: summaries(asked.store, results))


def _store_answer(asked: AskedStore) -> StoreAnswer:
    store, results = asked.store, asked.results()
    facts = store_facts(store) if results.spans is None else run_facts(store, results.spans, results.found)
    return StoreAnswer(
        name=asked.name,
        facts=[Fact(name=name, value=str(value)) for name, value in [("Data", data_set(store)), *facts]],
        runs=Runs(
            **{kind: runs(store, kind) for kind in ("textspan", "labels", "ccs")},
            default=default_run(store),
        ),
        properties=[Property(label=label, heads=named(heads)) for label, heads in results.properties().items()],
        notices=[*_notices(asked.store), *results.notices],
        classes=asked.class_names,
    )


def _notices(store: Store) -> list[str]:
    """What the store itself lacks."""
    found = []
    if random := random_weights_notice(store):
        found.append(random.replace("The report shows", "The explorer shows"))
    rows = sum(record.rows for record in store.contents.records)
    if rows < store.planned_images:
        found.append(
            f"{rows:,} of {store.planned_images:,} images are computed: the same headspan precompute command goes on."
        )
    if bad := len(store.bad_images()):
        found.append(f"{counted(bad, 'image')} could not be used: headspan info lists the reasons.")
    if not any(sample["caption"] is not None for sample in store.few_samples([0] if store.images else [], ["caption"])):
        found.append(
            "The first image has no caption. Without captions, words cannot choose or colour images: run headspan "
            "precompute on shards with .txt members."
        )
    if "patches" not in store.contents.specs:
        found.append(
            "The store holds no patches, so maps need the model: headspan precompute --emit heads,patches stores them."
        )
    return found
