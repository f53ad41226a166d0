"""The requests for texts of a pool, and the selection of usable texts from a language model's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.concepts.llm_labels import clean_label
from headspan.errors import SettingsError
from headspan.llm.cache import Question
from headspan.llm.forms import Form, NotAsAskedError, object_of, read_field

_LONGEST_TEXT = 300
_TOKENS_PER_TEXT = 60
# Each list begins with another letter, so that parallel requests get different lists even from a model that repeats.
_LETTERS = "SAPLCTBDMFGWHRENIOJKUVYQZX"

# A text, and its concept if concepts are asked for.
Text = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """A request for texts. Raises SettingsError if `ask` is empty or `texts_per_call` is below 1."""

    model: str
    # Completes "Write a list of …", as in "general image descriptions".
    ask: str
    # Whether each text comes with its concept.
    concepts: bool = False
    texts_per_call: int = 20

    def __post_init__(self) -> None:
        if not self.ask.strip():
            raise SettingsError('--ask is empty; say what to write, as in --ask "general image descriptions"')
        if self.texts_per_call < 1:
            raise SettingsError(f"--per-call {self.texts_per_call} is too small; give at least 1")

    def question(self, number: int, avoid: Sequence[str]) -> Question:
        """The request for list `number`, counted from 0, naming texts to `avoid`."""
        shape = '[{"text": "…", "concept": "…"}, …]' if self.concepts else '["…", …]'
        about = (
            ", each with its concept: the one thing it is about, in one word such as colours, animals or weather"
            if self.concepts
            else ""
        )
        known = "\n".join(json.dumps(text, ensure_ascii=False) for text in avoid)
        prompt = (
            f"Write a list of {self.texts_per_call} {self.ask.strip()}{about}. Every text stands alone, on one line, "
            "without numbers before it, and differs from the others in what it says. This is list "
            f"{number + 1} of many: let it begin with a text whose first letter is {_LETTERS[number % len(_LETTERS)]}. "
            f'Answer with a JSON object of the form {{"texts": {shape}}} and nothing else.'
            + (f"\n\nThese are there already and are not to be repeated:\n{known}" if known else "")
            + "\n\nAnswer:"
        )
        tokens = 100 + _TOKENS_PER_TEXT * self.texts_per_call
        return Question(self.model, prompt, self._form, temperature=1.0, answer_tokens=tokens)

    def read(self, answer: str) -> list[Text]:
        """The usable texts of an answer. Raises NotAsAskedError if there are none."""
        texts: list[Text] = self._form.read(answer)
        return texts

    @property
    def _form(self) -> Form:
        return PAIRS if self.concepts else TEXTS


def text_key(text: str) -> str:
    """The letters and digits of a text in lower case; texts with the same key count as the same."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _clean_text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    text = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", " ".join(value.split())).strip(" \"'“”")
    return text if text_key(text) and len(text) <= _LONGEST_TEXT and text.isprintable() else None


def _read_texts(answer: str) -> list[Text]:
    return _some([(_clean_text(value), None) for value in _list(answer)])


def _read_pairs(answer: str) -> list[Text]:
    pairs: list[tuple[str | None, str | None]] = []
    for value in _list(answer):
        if isinstance(value, dict):
            try:
                pairs.append((_clean_text(value.get("text")), clean_label(value.get("concept"))))
            except NotAsAskedError:
                continue
    return _some(pairs)


def _list(answer: str) -> list[Any]:
    found = read_field(answer, "texts")
    if not isinstance(found, list):
        raise NotAsAskedError("contains texts that are not a list")
    return found


def _some(texts: Iterable[tuple[str | None, str | None]]) -> list[Text]:
    usable = [(text, concept) for text, concept in texts if text is not None]
    if not usable:
        raise NotAsAskedError("contains no usable text")
    return usable


_WORDS: dict[str, Any] = {"type": "string"}
_PAIR = object_of(text=_WORDS, concept=_WORDS)
TEXTS = Form("texts", object_of(texts={"type": "array", "items": _WORDS}), _read_texts)
PAIRS = Form("texts_with_concepts", object_of(texts={"type": "array", "items": _PAIR}), _read_pairs)
