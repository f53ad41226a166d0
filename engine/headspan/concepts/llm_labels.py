"""Label heads with a language model, which sees labelled examples and a head's first five texts.

Source: Madasu et al., arXiv 2409.06579 (in-context learning). The wording of the prompt is headspan's own: it quotes
the texts and asks for their common characteristic in one word without punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from headspan.concepts.answers import Record, as_array, endpoints, read_records, record, served_as
from headspan.concepts.examples import Example
from headspan.concepts.labels import LABELLED_TEXTS, Labels, check_texts, read_labels, save_labels
from headspan.errors import LanguageModelError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, Question
from headspan.llm.forms import Form, NotAsAskedError, bare, object_of, read_field
from headspan.spans.result import HeadSpans
from headspan.spans.saved import read_spans
from headspan.store import results
from headspan.store.head_space import Head
from headspan.store.lineage import lineage_of
from headspan.store.reader import Store

# The prompt asks for one word. Up to three are accepted and joined by hyphens.
_MOST_WORDS, _MOST_LETTERS = 3, 40
# Words that models use if they find no label.
_NO_LABELS = ("none", "nothing", "unknown", "null", "n-a", "na", "unclear", "various", "miscellaneous", "label")


def clean_label(value: object) -> str:
    """A label in its stored form: lower case, words joined by hyphens. Raises NotAsAskedError if `value` is not one."""
    if not isinstance(value, str):
        raise NotAsAskedError("contains a label that is not a string")
    words = re.sub(r"[\s_/]+", " ", value).strip(" \"'`.,;:!?()[]{}*#").lower().split()
    label = "-".join(words)
    if not label:
        raise NotAsAskedError("contains an empty label")
    if len(words) > _MOST_WORDS or len(label) > _MOST_LETTERS:
        raise NotAsAskedError(f"contains a label of {len(words)} words; one word was asked for")
    if not re.fullmatch(r"\w[\w'’&+-]*", label):
        raise NotAsAskedError("contains a label with punctuation")
    if label in _NO_LABELS:
        raise NotAsAskedError(f"is {label!r} instead of a common characteristic")
    return label


def _read(text: str) -> str:
    # A model without structured output may reply with the word alone.
    if "{" not in text and len(bare(text).split()) == 1:
        return clean_label(bare(text))
    return clean_label(read_field(text, "label"))


LABEL = Form("label", object_of(label={"type": "string"}), _read)


def label_prompt(texts: Sequence[str], examples: Sequence[Example]) -> str:
    """The prompt that asks a language model to label one head."""
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
    # JSON strings, in which quotes and line breaks of a text are escaped.
    return "\n".join(["Texts:", *(json.dumps(text, ensure_ascii=False) for text in texts)])


def label_questions(
    spans: HeadSpans, model: str, examples: Sequence[Example], answer_tokens: int = ANSWER_TOKENS
) -> dict[Head, Question]:
    """The question for every head that has texts. Raises SettingsError if the run has too few texts per head."""
    check_texts(spans)
    return {
        (layer, head): Question(model, label_prompt(texts, examples), LABEL, answer_tokens=answer_tokens)
        for layer, head in spans.heads()
        if (texts := spans.texts(layer, head, LABELLED_TEXTS))
    }


def open_label_questions(
    store: Store, spans: HeadSpans, questions: Mapping[Head, Question], overwrite: bool = False
) -> dict[Head, Question]:
    """Those of `questions` that the stored labels of the run do not answer yet.

    None are open if scores have been made from these labels, since the labels then stay unchanged. Raises StoreError if
    the labels were made differently and `overwrite` is false.
    """
    answered = {} if overwrite else _answered(store, spans, questions)
    if answered and results.made_from(store, "labels", spans.run):
        return {}
    return {head: question for head, question in questions.items() if head not in answered}


def label_by_model(
    store: Store,
    asker: Asker,
    model: str,
    run: str | HeadSpans | None = None,
    examples: Sequence[Example] = (),
    answer_tokens: int = ANSWER_TOKENS,
    on_progress: Listener = ignore,
    overwrite: bool = False,
    *,
    save: bool = False,
) -> Labels:
    """Let a language model label every head of a TEXTSPAN run.

    Source: Madasu et al., arXiv 2409.06579. `run` is the name of the run, or what `textspan` returned; None means the
    store's only run. If a run is named, or with `save`, labels and raw answers are saved as `labels/<run>`; otherwise
    nothing is written.

    `examples` are labelled heads that the model sees first. A head without a usable answer gets no label; the next call
    asks about it again, unless scores have been made from the labels. Saved labels of the same model and prompts are
    reused. `overwrite` asks about every head and replaces different labels; scores made from them stay, marked as of an
    older run.

    Raises StoreError if the run has labels that were made differently and `overwrite` is false; LanguageModelError if
    no head gets a label; NotSavedError, which holds the result, if the store cannot be written; and the errors of
    `Asker.ask`. Answers received before an error stay in the cache.
    """
    spans, saved = run if isinstance(run, HeadSpans) else read_spans(store, run), save or isinstance(run, str)
    questions = label_questions(spans, model, examples, answer_tokens)
    afresh = overwrite or not saved
    wanted = open_label_questions(store, spans, questions, afresh)
    found = {} if afresh else _answered(store, spans, questions)
    if found and not wanted and lineage_of(store, "labels", spans.run).older is None:
        on_progress(Progress(NOTE, 1, 1, f"labels/{spans.run} already has the answers of {model}; it is unchanged"))
        return read_labels(store, spans.run)
    answers = dict(zip(wanted, asker.ask(list(wanted.values()), on_progress), strict=True))
    if answers and not found and all(answer.value is None for answer in answers.values()):
        complaint = next(iter(answers.values())).complaint
        raise LanguageModelError(
            f"{model} gave no usable label for {counted(len(answers), 'head')}: its answer {complaint}; name another "
            "--llm, or allow longer answers with --answer-tokens"
        )
    for (layer, head), answer in answers.items():
        found[layer, head] = record(questions[layer, head], answer, layer=layer, head=head)
    records = [found[head] for head in questions]
    names = tuple(
        tuple(found[layer, head]["value"] if (layer, head) in found else None for head in range(spans.indices.shape[1]))
        for layer in spans.layers
    )
    where = endpoints(records) or [asker.endpoint.shown_url]
    source = f"{model} at {', '.join(where)}, shown {len(examples)} labelled examples"
    labels = Labels(spans.run, source, spans.layers, names, consistent=None, free=True, spans=spans)
    settings = {
        "model": model,
        "endpoints": where,
        "served_as": served_as(records),
        "examples": [example.label for example in examples],
        "unanswered": sum(one["value"] is None for one in records),
    }
    # Existing labels are answers to some of these questions, or the caller allowed to replace them.
    answers_of = {"answers": as_array(records)}
    return save_labels(store, labels, answers_of, settings, saved, overwrite=True, on_progress=on_progress)


def _answered(store: Store, spans: HeadSpans, questions: Mapping[Head, Question]) -> dict[Head, Record]:
    """The usable answers of the stored labels. Raises StoreError if they are not answers to `questions`."""
    if not results.sound(store, "labels", spans.run):
        return {}
    kept = {(one["layer"], one["head"]): one for one in read_records(store, "labels", spans.run)}
    asked = {head: (one["model"], one["prompt"]) for head, one in kept.items()}
    if not kept or asked != {head: (each.model, each.prompt) for head, each in questions.items()}:
        source = read_labels(store, spans.run).source
        raise results.refusal(
            store, "labels", spans.run, f"labels run {spans.run!r} was made differently (by {source})"
        )
    return {head: kept[head] for head in questions if kept[head]["value"] is not None}
