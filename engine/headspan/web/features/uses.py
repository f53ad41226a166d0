"""The saved uses of a run of feature scores, in words, as tables."""

from __future__ import annotations

from headspan.errors import HeadspanError
from headspan.features.pairs.space import EMBEDDING
from headspan.features.scores.result import FeatureScores
from headspan.features.uses.edit_result import EditedImage
from headspan.features.uses.in_words import UseTable as TableInWords
from headspan.features.uses.in_words import in_words
from headspan.features.uses.saved import KIND, read_use
from headspan.store.results import load_settings
from headspan.web.answers.features import FeatureUse, UseRow, UseTable
from headspan.web.asked import AskedStore
from headspan.web.features.one_feature import top_hits
from headspan.web.saved_runs import run_names


def saved_uses(asked: AskedStore, scores: str) -> list[FeatureUse]:
    """The uses that were made from a run of scores, by name; a use that cannot be read says why."""
    return [found for name in run_names(asked, KIND) if (found := _use(asked, name, scores)) is not None]


def no_uses(asked: AskedStore, scores: FeatureScores) -> list[str]:
    """What to do where no use is saved; nothing for features that are not of the embedding, which have no uses."""
    if scores.space is not None and scores.space.kind != EMBEDDING:
        return []
    return [
        f"No use is saved: `headspan features use bias {asked.store.path} --scores {scores.run} --attribute KEY --run "
        "NAME` reads an attribute from images without one class of features, and keeps the result; `attack` and `edit` "
        "are the other uses."
    ]


def _use(asked: AskedStore, run: str, scores: str) -> FeatureUse | None:
    try:
        if load_settings(asked.store, KIND, run).get("scores_run") != scores:
            return None
        found = read_use(asked.store, run)
    except HeadspanError as error:
        return FeatureUse(run=run, use=None, tables=[], images=[], notes=[], remarks=[], problem=f"{error}.")
    words, tables, images = in_words(found), None, []
    if isinstance(found, EditedImage):
        # Pictures stand for the first table, the list of neighbours.
        tables, images = words.tables[1:], top_hits(asked, found.images, found.scores)
    older = f"It is of an older {found.older}, which was replaced or removed since." if found.older else None
    return FeatureUse(
        run=run,
        use=found.use,
        title=words.tables[0].title if images else "",
        tables=[_table(each) for each in (words.tables if tables is None else tables)],
        images=images,
        notes=list(words.notes),
        remarks=list(words.remarks),
        problem=older,
    )


def _table(table: TableInWords) -> UseTable:
    head, *rows = table.rows
    return UseTable(
        title=table.title,
        head=list(head),
        rows=[UseRow(cells=list(row), random=place in table.controls) for place, row in enumerate(rows, 1)],
    )
