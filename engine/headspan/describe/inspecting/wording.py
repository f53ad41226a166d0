"""The question to a language model: what a description teaches about its class.

Source of the method: Esfandiarpoor, Menghini, Bach, arXiv 2403.16442, who ask whether a snippet adds to students'
knowledge of a class and show one worked example; only that first question is published. The wording and the other two
questions are headspan's own: does it teach anything (no: spurious) → can it be seen → which attribute is it about.

All three are answered in one request, as fields of one JSON object in this order. A model writes the fields one after
another, so that each depends on those before it, as in a chain of requests. The prompt is sent once instead of up to
three times, and one answer in the cache is one complete vote: an interrupted inspection never has half of one. If a
model contradicts itself, the first field counts: what teaches nothing is spurious. The fields are numbers and one word
of a list, because a weak model may not end a sentence that it begins. The worked example has a note of each kind, since
a single one would suggest its own answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from headspan.describe.descriptions.result import NON_VISUAL, SPURIOUS, VERDICTS, VISUAL
from headspan.describe.inspecting.verdict import ATTRIBUTES, Described, Verdict
from headspan.llm.cache import ANSWER_TOKENS, Question
from headspan.llm.forms import Form, NotAsAskedError, object_of, read_field

_NOTHING, _OTHER = "none", "other"


def _read(answer: str) -> dict[str, str]:
    if not _flag(answer, "teaches"):
        return {"verdict": VERDICTS[SPURIOUS], "attribute": ""}
    verdict = VISUAL if _flag(answer, "visual") else NON_VISUAL
    try:
        word = read_field(answer, "attribute")
    except NotAsAskedError:
        word = _OTHER
    # An attribute outside the list is no reason to lose the vote; the raw answer is stored.
    word = word.strip().lower() if isinstance(word, str) else _OTHER
    return {"verdict": VERDICTS[verdict], "attribute": word if word in ATTRIBUTES else _OTHER}


def _flag(answer: str, name: str) -> bool:
    value = read_field(answer, name)
    if value not in (0, 1, "0", "1"):
        raise NotAsAskedError(f"has {json.dumps(value)[:40]} as {name!r} instead of 1 or 0")
    return bool(int(value))


_YES_NO = {"type": "integer", "enum": [0, 1]}
VERDICT = Form(
    "description-verdict",
    object_of(teaches=_YES_NO, visual=_YES_NO, attribute={"type": "string", "enum": [*ATTRIBUTES, _NOTHING]}),
    _read,
)

_EXAMPLES = (
    (Described("barn owl", "A barn owl has a pale, heart-shaped face"), (1, 1, "shape")),
    (Described("barn owl", "A barn owl that nests in old barns and church towers"), (1, 0, "habitat")),
    (Described("barn owl", "The best free barn owl pictures, download now"), (0, 0, _NOTHING)),
)


def verdict_prompt(described: Described) -> str:
    """The prompt that asks a judge about one description."""
    shown = "\n\n".join(f"{_shown(each)}\nAnswer: {_answer(*fields)}" for each, fields in _EXAMPLES)
    return (
        "Somebody wrote notes about the classes of a collection of images. Say what a note teaches a reader who knows "
        "nothing about the class but its name. Answer three questions in this order:\n"
        "1. teaches: 1 if the reader learns something about the class; 0 if the note only repeats the name, is "
        "advertising or filler, is about something else, or is false.\n"
        "2. visual: 1 if what the reader learns can be seen in an image of the class, 0 if not.\n"
        f"3. attribute: what the reader learns about: {', '.join(ATTRIBUTES)}; {_NOTHING} if the note teaches "
        "nothing.\n"
        'Answer with one JSON object such as {"teaches": 1, "visual": 1, "attribute": "colour"} and nothing else.\n\n'
        f"{shown}\n\n{_shown(described)}\nAnswer:"
    )


def verdict_questions(
    described: Iterable[Described], judge: str, answer_tokens: int = ANSWER_TOKENS
) -> dict[Described, Question]:
    """The question to a judge about each of these descriptions."""
    return {each: Question(judge, verdict_prompt(each), VERDICT, answer_tokens=answer_tokens) for each in described}


def verdict_of(value: dict[str, str] | None) -> Verdict | None:
    """The verdict in the value of an answer, which may be stored JSON; None for no usable answer."""
    return None if value is None else Verdict(VERDICTS.index(value["verdict"]), value["attribute"])


def _shown(described: Described) -> str:
    name = described.class_name.replace("_", " ")
    return f"Class: {json.dumps(name, ensure_ascii=False)}\nNote: {json.dumps(described.text, ensure_ascii=False)}"


def _answer(teaches: int, visual: int, attribute: str) -> str:
    return json.dumps({"teaches": teaches, "visual": visual, "attribute": attribute})
