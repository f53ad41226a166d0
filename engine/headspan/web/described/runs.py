"""The runs of descriptions that an address names, kept in memory, and their descriptions as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headspan.describe.asked.questions import prompt
from headspan.describe.descriptions.result import UNDECIDED, VERDICTS, Descriptions
from headspan.describe.descriptions.saved import KIND, read_descriptions
from headspan.describe.descriptions.summary import UNDECIDED_NAME, class_summaries, verdict_name
from headspan.errors import HeadspanError
from headspan.store.head_space import Head
from headspan.tasks.truths import CLASS_NAME
from headspan.web.answers.descriptions import DescribedClass, DescriptionRow, DescriptionRun
from headspan.web.asked import AskedStore, named
from headspan.web.samples.metadata import column_of
from headspan.web.saved_runs import known_run, run_names

# What a text takes in memory beside its letters.
_TEXT_BYTES = 100


def asked_descriptions(asked: AskedStore, run: str | None) -> Descriptions:
    """The descriptions of a run, by default of the shown one. Raises Missing if it is not there."""
    name = known_run(asked, KIND, run, no_run(asked)) or default_run(asked)
    return asked.keep(("descriptions", name), lambda: read_descriptions(asked.store, name), bytes_of)


def described_runs(asked: AskedStore) -> list[DescriptionRun]:
    """All runs with what their texts were rewarded for, and those that cannot be read with the reason."""
    found = []
    for name in run_names(asked, KIND):
        try:
            one = asked_descriptions(asked, name)
        except HeadspanError as error:
            found.append(
                DescriptionRun(run=name, model="", trained=False, target="", heads=[], problem=f"{error}".rstrip("."))
            )
            continue
        found.append(
            DescriptionRun(
                run=name,
                model=one.model,
                trained=one.adapter_sha256 is not None,
                target=str(one.target),
                heads=named(one.target.heads),
                problem=None,
            )
        )
    return found


def default_run(asked: AskedStore) -> str:
    """The run that is shown if none is named: the first one of a trained model and of the whole embedding."""
    found = described_runs(asked)
    return min(found, key=lambda each: (each.problem is not None, not each.trained, bool(each.heads))).run


def runs_rewarded_through(asked: AskedStore, head: Head) -> list[str]:
    """The names of the runs whose texts this head rewarded, alone or with others."""
    return [each.run for each in described_runs(asked) if head in [(one.layer, one.head) for one in each.heads]]


def no_run(asked: AskedStore) -> str:
    """What to do where a store has no run."""
    path = asked.store.path
    return (
        f"{asked.name}: has no descriptions: `headspan describe train {path} --language-model MODEL --out trained` "
        f"trains a language model by what {asked.store.attributes['model']} prefers, and `headspan describe write "
        f"{path} --trained trained` writes descriptions with it."
    )


def bytes_of(descriptions: Descriptions) -> int:
    """The memory of a run's arrays and texts."""
    inspection = descriptions.inspection
    values = [getattr(descriptions, name) for name in descriptions.__slots__]
    texts = [*descriptions.texts, *descriptions.best_texts]
    if inspection is not None:
        values += [inspection.votes, inspection.verdicts]
        texts += inspection.attributes
    return sum(_TEXT_BYTES + len(text) for text in texts) + sum(
        value.nbytes for value in values if isinstance(value, np.ndarray)
    )


def described_classes(asked: AskedStore, descriptions: Descriptions) -> list[DescribedClass]:
    """The classes with their images and the descriptions with the highest rewards."""
    queries = _image_queries(asked, descriptions)
    rows = np.zeros((len(queries), 0), np.int64) if descriptions.class_rows is None else descriptions.class_rows
    shown = np.isin(rows, asked.store.rows)
    found = []
    for number, each in enumerate(class_summaries(descriptions)):
        found.append(
            DescribedClass(
                name=each.name,
                images=rows[number][shown[number]].tolist(),
                images_query=queries[number],
                texts=each.texts,
                sampled=each.sampled,
                reward=each.reward,
                verdicts=each.verdicts,
                best=next(iter(description_rows(descriptions, each.best[:1].tolist())), None),
            )
        )
    return found


def description_rows(descriptions: Descriptions, chosen: Sequence[int]) -> list[DescriptionRow]:
    """Some descriptions as rows of a list, in this order."""
    return [_row(descriptions, each) for each in chosen]


def _row(descriptions: Descriptions, each: int) -> DescriptionRow:
    inspection, class_name = descriptions.inspection, descriptions.classes[descriptions.class_of[each]]
    votes = {}
    if inspection is not None:
        votes = {
            judge: UNDECIDED_NAME if vote == UNDECIDED else VERDICTS[vote]
            for judge, vote in zip(inspection.judges, inspection.votes[:, each].tolist(), strict=True)
        }
    return DescriptionRow(
        description=each,
        text=descriptions.texts[each],
        class_name=class_name,
        question=prompt(descriptions.questions[descriptions.question_of[each]], class_name).strip(),
        times=descriptions.times[each],
        greedy=descriptions.greedy[each],
        reward=descriptions.rewards[each],
        log_ratio=descriptions.log_ratios[each],
        cut=descriptions.cut[each],
        ended=descriptions.ended[each],
        verdict=verdict_name(descriptions, each),
        attribute="" if inspection is None else inspection.attributes[each],
        votes=votes,
    )


def _image_queries(asked: AskedStore, descriptions: Descriptions) -> list[dict[str, str]]:
    """What chooses the images of each class among the store's, as the screen of selections asks for them."""
    kind, _, name = descriptions.classes_from.partition(" ")
    numbers = {known: str(number) for number, known in asked.class_names.items()}
    if kind == "key" and name != CLASS_NAME:
        return _column_queries(asked, name.split("."), descriptions)
    return [{"classes": numbers[each]} if each in numbers else {} for each in descriptions.classes]


def _column_queries(asked: AskedStore, path: Sequence[str], descriptions: Descriptions) -> list[dict[str, str]]:
    """The same where classes are values of the metadata, each found in the metadata of one of its images.

    A path of keys such as `objects.shape` is a column with the number of the list's entry, such as `objects/0/shape`.
    """
    rows = np.zeros((len(descriptions.classes), 0), np.int64)
    if descriptions.class_rows is not None:
        rows = descriptions.class_rows
    images = [asked.store.images_of_rows(own[np.isin(own, asked.store.rows)][:1]).tolist() for own in rows]
    known = [image for each in images for image in each]
    samples = asked.store.few_samples(known, ["metadata"]) if known else []
    texts = dict(zip(known, (each["metadata"] for each in samples), strict=True))
    found = []
    for name, own in zip(descriptions.classes, images, strict=True):
        # Without an image, only a single key is known to be a column.
        column = column_of(texts[own[0]], path) if own else (path[0], name) if len(path) == 1 else None
        found.append({} if column is None else {"column": column[0], "value": column[1]})
    return found
