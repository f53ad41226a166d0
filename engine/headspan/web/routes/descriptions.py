"""Descriptions of a store's classes: a run of them by class beside its baselines, and the descriptions as a list."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from headspan.describe.descriptions.figures import figure_table
from headspan.describe.descriptions.result import Descriptions as Written
from headspan.describe.descriptions.saved import KIND
from headspan.describe.descriptions.summary import attribute_counts, verdict_counts
from headspan.web.answers.descriptions import DescriptionList, Descriptions, Quality, QualityRow, QualityValue
from headspan.web.asked import Asked, AskedStore, named
from headspan.web.described.facts import facts, notices, shares_and_agreement
from headspan.web.described.lists import Asking, Sort, Verdict, chosen_descriptions
from headspan.web.described.runs import (
    asked_descriptions,
    described_classes,
    described_runs,
    description_rows,
    no_run,
)
from headspan.web.failures import RESPONSES
from headspan.web.saved_runs import run_names

router = APIRouter(prefix="/api/stores/{store}/descriptions", tags=["descriptions"], responses=RESPONSES)
Run = Annotated[
    str | None, Query(max_length=100, description="A run of headspan describe write; by default a trained one")
]


@router.get("", response_model=Descriptions)
def descriptions(asked: Asked, run: Run = None) -> Response:
    """A run of descriptions: its classes, figures beside those of its baselines, verdicts, and the training's log."""
    return asked.answer(("description run", run), lambda: _descriptions(asked, run))


@router.get("/list", response_model=DescriptionList)
def description_list(
    asked: Asked,
    run: Run = None,
    words: Annotated[str, Query(max_length=200, description="Words of texts or class names")] = "",
    classes: Annotated[
        list[str] | None,
        Query(alias="class", max_length=1000, description="The name of a class; give it once for each"),
    ] = None,
    verdicts: Annotated[
        list[Verdict] | None, Query(alias="verdict", max_length=4, description="Give it once for each verdict")
    ] = None,
    question: Annotated[int | None, Query(ge=0, le=1 << 30, description="The number of a question, from 0")] = None,
    attribute: Annotated[str, Query(max_length=200, description="What a description teaches")] = "",
    greedy: Annotated[bool, Query(description="Only the most likely answers")] = False,
    sort: Sort = Sort.REWARD,
    descending: bool = True,
    offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    limit: Annotated[int, Query(ge=0, le=1000)] = 50,
) -> Response:
    """One page of the descriptions that pass a filter, in an order."""
    once = tuple(dict.fromkeys(classes or ())), tuple(dict.fromkeys(verdicts or ()))
    asking = Asking(*once, question, attribute, words.strip(), greedy)
    key = ("description list", run, asking, sort, descending, offset, limit)
    return asked.answer(key, lambda: _list(asked, run, asking, sort, descending, offset, limit))


def _descriptions(asked: AskedStore, run: str | None) -> Descriptions:
    if not run_names(asked, KIND) and run is None:
        return Descriptions(
            store=asked.name,
            run=None,
            runs=[],
            model="",
            trained=False,
            target="",
            heads=[],
            texts=0,
            sampled=0,
            classes=[],
            questions=[],
            judges=[],
            verdicts={},
            attributes={},
            shares={},
            agreement=[],
            quality=Quality(columns=[], rows=[]),
            log={},
            facts=[],
            notices=[no_run(asked)],
        )
    found = asked_descriptions(asked, run)
    shares, agreement = shares_and_agreement(found)
    return Descriptions(
        store=asked.name,
        run=found.run,
        runs=described_runs(asked),
        model=found.model,
        trained=found.adapter_sha256 is not None,
        target=str(found.target),
        heads=named(found.target.heads),
        texts=len(found.texts),
        sampled=int(found.times.sum()),
        classes=described_classes(asked, found),
        questions=list(found.questions),
        judges=list(found.inspection.judges if found.inspection is not None else ()),
        verdicts=verdict_counts(found),
        attributes=attribute_counts(found),
        shares=shares,
        agreement=agreement,
        quality=_quality(found),
        log={name: list(values) for name, values in found.log.items()},
        facts=facts(found),
        notices=notices(asked, found),
    )


def _quality(descriptions: Written) -> Quality:
    columns, figures = figure_table(descriptions)
    return Quality(
        columns=list(columns),
        rows=[
            QualityRow(
                name=each.name,
                hint=each.hint,
                share=each.share,
                values=[QualityValue(value=one.value, low=one.low, high=one.high) for one in each.values],
            )
            for each in figures
        ],
    )


def _list(
    asked: AskedStore, run: str | None, asking: Asking, sort: Sort, descending: bool, offset: int, limit: int
) -> DescriptionList:
    found = asked_descriptions(asked, run)
    chosen = chosen_descriptions(found, asking, sort, descending)
    return DescriptionList(
        store=asked.name,
        run=found.run,
        total=len(chosen),
        offset=offset,
        descriptions=description_rows(found, chosen[offset : offset + limit].tolist()),
    )
