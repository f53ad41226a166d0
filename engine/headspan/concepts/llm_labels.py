"""Head labels by a language model, in context: it sees hand-labelled heads, then a head's first five texts.

Source: Madasu et al., arXiv 2409.06579. The prompt is headspan's own wording of the study's: the texts, quoted,
and the request for their common characteristic in one word without punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from headspan.concepts.answers import Record, as_array, endpoints, read_records, record, served_as
from headspan.concepts.examples import Example
from headspan.concepts.labels import Labels, check_texts, first_texts, read_labels, save_labels
from headspan.errors import LanguageModelError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, Question
from headspan.llm.forms import Form, NotAsAskedError, bare, object_of, read_field
from headspan.spans.result import HeadSpans, read_spans
from headspan.store import results
from headspan.store.reader import Store

# A head: the layer's place among the described ones, and the head.
Place = tuple[int, int]

# One word is asked for; a few, which become one with hyphens, still name something.
_MOST_WORDS, _MOST_LETTERS = 3, 40
# What models say when they have no answer.
_NO_LABELS = ("none", "nothing", "unknown", "null", "n-a", "na", "unclear", "various", "miscellaneous", "label")


def clean_label(value: object) -> str:
    """A label as it is kept: lower case, words joined by hyphens. NotAsAskedError where `value` is none."""
    if not isinstance(value, str):
        raise NotAsAskedError("holds a label that is no text")
    words = re.sub(r"[\s_/]+", " ", value).strip(" \"'`.,;:!?()[]{}*#").lower().split()
    label = "-".join(words)
    if not label:
        raise NotAsAskedError("holds an empty label")
    if len(words) > _MOST_WORDS or len(label) > _MOST_LETTERS:
        raise NotAsAskedError(f"holds a label of {len(words)} words where one word is asked for")
    if not re.fullmatch(r"\w[\w'’&+-]*", label):
        raise NotAsAskedError("holds a label with punctuation in it")
    if label in _NO_LABELS:
        raise NotAsAskedError(f"says {label!r} where the common characteristic is asked for")
    return label


def _read(text: str) -> str:
    # A model without structured output may give the word alone.
    if "{" not in text and len(bare(text).split()) == 1:
        return clean_label(bare(text))
    return clean_label(read_field(text, "label"))


LABEL = Form("label", object_of(label={"type": "string"}), _read)


def label_prompt(texts: Sequence[str], examples: Sequence[Example]) -> str:
    """What a language model is asked about one head."""
    shown = "\n\n".join(
        f"{_quoted(example.texts)}\nAnswer: {json.dumps({'label': example.label}, ensure_ascii=False)}"
        for example in examples
    )
    return (
        "Each list of texts below describes what one part of an image model responds to. Name the common "
        "characteristic of the texts in one word without punctuation. Where not all texts share one, name what most of "
        'them share. Answer with a JSON object of the form {"label": "word"} and nothing else.\n\n'
        f"{shown}\n\n{_quoted(texts)}\nAnswer:"
    )


def _quoted(texts: Sequence[str]) -> str:
    # As JSON strings, so that a quote or a line break in a text cannot end it.
    return "\n".join(["Texts:", *(json.dumps(text, ensure_ascii=False) for text in texts)])


def label_questions(
    spans: HeadSpans, model: str, examples: Sequence[Example], answer_tokens: int = ANSWER_TOKENS
) -> dict[Place, Question]:
    """A question for every head that has texts, by the layer's place and head."""
    check_texts(spans)
    questions = {}
    for kept in range(len(spans.layers)):
        for head in range(spans.indices.shape[1]):
            if places := first_texts(spans, kept, head):
                prompt = label_prompt([spans.pool.texts[place] for place in places], examples)
                questions[kept, head] = Question(model, prompt, LABEL, answer_tokens=answer_tokens)
    return questions


def open_label_questions(
    store: Store, spans: HeadSpans, questions: Mapping[Place, Question], overwrite: bool = False
) -> dict[Place, Question]:
    """Those of `questions` that the labels of the run, where there are any, do not answer.

    None are open where scores were made from these labels: the labels stay as they are. StoreError where the labels
    were made otherwise, unless `overwrite`.
    """
    answered = {} if overwrite else _answered(store, spans, questions)
    if answered and results.made_from(store, "labels", spans.run):
        return {}
    return {place: question for place, question in questions.items() if place not in answered}


def label_by_model(
    store: Store,
    asker: Asker,
    model: str,
    run: str | None = None,
    examples: Sequence[Example] = (),
    answer_tokens: int = ANSWER_TOKENS,
    on_progress: Listener = ignore,
    overwrite: bool = False,
) -> Labels:
    """Let `model` label every head of a TEXTSPAN run, and keep labels and raw answers as `labels/<run>`.

    A head about which the model says nothing usable has no label, and is asked about again the next time, until scores
    are made from the labels. Labels that are there from the same model and prompts stay; others are refused with a
    StoreError unless `overwrite`, which asks about every head and deletes the scores that were made from the earlier
    labels. Raises LanguageModelError where no head gets a label, and what `Asker.ask` raises; answers that came before
    are kept on disk.
    """
    spans = read_spans(store, run)
    questions = label_questions(spans, model, examples, answer_tokens)
    wanted = open_label_questions(store, spans, questions, overwrite)
    found = {} if overwrite else _answered(store, spans, questions)
    if found and not wanted:
        on_progress(Progress(NOTE, 1, 1, f"labels/{spans.run} are by {model} and the same prompts; left as they are"))
        return read_labels(store, spans.run)
    answers = dict(zip(wanted, asker.ask(list(wanted.values()), on_progress), strict=True))
    if answers and not found and all(answer.value is None for answer in answers.values()):
        complaint = next(iter(answers.values())).complaint
        raise LanguageModelError(
            f"{model} labels none of {counted(len(answers), 'head')}: its answer {complaint}; name another --llm, or "
            "allow longer answers with --answer-tokens"
        )
    for (kept, head), answer in answers.items():
        found[kept, head] = record(questions[kept, head], answer, layer=spans.layers[kept], head=head)
    records = [found[place] for place in questions]
    names = tuple(
        tuple(found[kept, head]["value"] if (kept, head) in found else None for head in range(spans.indices.shape[1]))
        for kept in range(len(spans.layers))
    )
    where = endpoints(records) or [asker.endpoint.shown_url]
    source = f"{model} at {', '.join(where)}, shown {len(examples)} labelled examples"
    labels = Labels(spans.run, source, spans.layers, names, consistent=None, free=True)
    settings = {
        "model": model,
        "endpoints": where,
        "served_as": served_as(records),
        "examples": [example.label for example in examples],
        "unanswered": sum(one["value"] is None for one in records),
    }
    # What is there are answers to some of these questions, or may be overwritten.
    save_labels(store, labels, {"answers": as_array(records)}, settings, overwrite=True, on_progress=on_progress)
    return labels


def _answered(store: Store, spans: HeadSpans, questions: Mapping[Place, Question]) -> dict[Place, Record]:
    """The usable answers of the labels that are there; StoreError where these are not answers to `questions`."""
    if not results.sound(store, "labels", spans.run):
        return {}
    kept = {(one["layer"], one["head"]): one for one in read_records(store, "labels", spans.run)}
    heads = {place: (spans.layers[place[0]], place[1]) for place in questions}
    asked = {head: (one["model"], one["prompt"]) for head, one in kept.items()}
    if not kept or asked != {heads[place]: (each.model, each.prompt) for place, each in questions.items()}:
        source = read_labels(store, spans.run).source
        raise results.refusal(store, "labels", spans.run, f"labels run {spans.run!r} was made otherwise (by {source})")
    return {place: kept[head] for place, head in heads.items() if kept[head]["value"] is not None}
