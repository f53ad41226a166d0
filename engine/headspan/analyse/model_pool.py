"""A text pool written by a language model: asked for list after list, until there are enough different texts.

Every list is asked for with some of the texts that are there already, to be avoided. The pool's file comes with a
second one of every raw answer, from which a later run goes on, with the same or a higher count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.analyse.merging import merge_labels
from headspan.analyse.model_labels import clean_label
from headspan.errors import LanguageModelError, SettingsError, StoreError, one_line
from headspan.llm.asking import Asker
from headspan.llm.cache import Question
from headspan.llm.forms import Form, NotAsAskedError, one_field, read_field
from headspan.records import Listener, Progress, ignore
from headspan.store.files import write_atomically

# Of the texts that are there, so many of the last are shown, to be avoided.
_AVOIDED = 40
_USUAL_TEXT, _LONGEST_TEXT = 60, 300
# A model that repeats itself is left after so many rounds without a new text.
_IDLE_ROUNDS = 3
_FORMAT = 1
_TOKENS_PER_TEXT = 60
# Lists begin with different letters, so that two of one round differ even where a model always says the same.
_LETTERS = "SAPLCTBDMFGWHRENIOJKUVYQZX"

Text = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """What is asked for. `ask` completes "Write a list of …"; with `concepts`, each text comes with its concept."""

    model: str
    ask: str
    concepts: bool = False
    texts_per_call: int = 20

    def __post_init__(self) -> None:
        if not self.ask.strip():
            raise SettingsError('--ask is empty; say what to write, as in --ask "general image descriptions"')
        if self.texts_per_call < 1:
            raise SettingsError(f"--per-call {self.texts_per_call} is too small; give at least 1")

    def question(self, number: int, avoid: Sequence[str]) -> Question:
        """List `number`, counting from 0."""
        form = "text and concept" if self.concepts else "text"
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
        )
        tokens = 100 + _TOKENS_PER_TEXT * self.texts_per_call
        return Question(self.model, prompt, PAIRS if form != "text" else TEXTS, temperature=1.0, answer_tokens=tokens)


@dataclass(frozen=True, slots=True)
class WrittenPool:
    """A pool on disk: where, how many texts it has, and how many the model repeated."""

    path: Path
    texts: int
    repeated: int


def write_pool(
    asker: Asker, request: PoolRequest, count: int, path: str | Path, listen: Listener = ignore
) -> WrittenPool:
    """Write `count` different texts to `path`, one a line (with concepts: text, tab, concept).

    Goes on where an earlier call with the same request ended; killed, it goes on as well. Raises SettingsError
    where `path` is something else, LanguageModelError where the model only repeats itself, and what
    `Asker.ask` raises; what is there until then is kept in the file.
    """
    path = Path(path)
    if count < 1:
        raise SettingsError(f"--count {count} is too small; give at least 1")
    draft = Draft.open(path, request)
    idle = 0
    while len(draft.texts) < count:
        before = len(draft.texts)
        questions = draft.next_round(count, asker.endpoint.parallel)
        answers = asker.ask(questions)
        if all(answer.value is None for answer in answers):
            raise LanguageModelError(
                f"{request.model} writes no list as asked: its answer {answers[0].complaint}; name another --llm, or "
                f"ask for fewer texts at once with --per-call ({before} texts are kept in {path})"
            )
        draft.add(
            [[reply["content"] for reply in answer.replies][-1] for answer in answers if answer.value is not None]
        )
        draft.save(count)
        listen(Progress("pool", min(count, len(draft.texts)), count, f"{draft.repeated:,} repeated"))
        idle = idle + 1 if len(draft.texts) == before else 0
        if idle == _IDLE_ROUNDS:
            raise LanguageModelError(
                f"{request.model} repeats itself: {before} of {count} texts after {len(draft.lists)} lists, kept in "
                f"{path}; lower --count, or ask for more with another --ask and another --out"
            )
    draft.save(count)
    return WrittenPool(path, min(count, len(draft.texts)), draft.repeated)


class Draft:
    """The texts so far, made from the model's answers in the order in which they were asked for."""

    def __init__(self, path: Path, request: PoolRequest) -> None:
        self.path, self.request = path, request
        self.lists: list[str] = []
        self.texts: list[Text] = []
        self.repeated = 0
        self._known: set[str] = set()
        # Of the pool's file as it was last written, and the time before.
        self._digests: list[str] = []

    @classmethod
    def open(cls, path: Path, request: PoolRequest) -> Draft:
        """What an earlier call left, or nothing. SettingsError where that is not this request's."""
        draft = cls(path, request)
        beside = draft.answers_path
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
            if not beside.exists():
                if digest is None:
                    return draft
                raise SettingsError(f"{path}: is there already, and no pool that headspan wrote; give another --out")
            found = json.loads(beside.read_bytes())
            about, lists, digests = found["about"], found["lists"], found["sha256"]
            told = f"{about['ask']!r} of {about['model']}"
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); give another --out") from error
        except (ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{beside}: is damaged ({one_line(error)}); give another --out") from error
        if about != draft._about():
            raise SettingsError(f"{path}: was asked for otherwise ({told}); give another --out")
        if digest is not None and digest not in digests:
            raise SettingsError(f"{path}: was changed since headspan wrote it; give another --out to write more")
        draft._digests = [] if digest is None else [digest]
        draft.add(lists)
        return draft

    @property
    def answers_path(self) -> Path:
        """Where the raw answers are kept."""
        return self.path.with_name(f"{self.path.name}.answers.json")

    def next_round(self, count: int, parallel: int) -> list[Question]:
        """The lists to ask for side by side."""
        lists = -(-max(0, count - len(self.texts)) // self.request.texts_per_call)
        avoid = [text for text, _ in self.texts[-_AVOIDED:]]
        first = len(self.lists)
        return [self.request.question(first + number, avoid) for number in range(min(parallel, lists))]

    def expected(self, count: int, parallel: int) -> list[Question]:
        """As many questions as `count` texts take at least: the next round's, and others as long as theirs will be."""
        lists = -(-max(0, count - len(self.texts)) // self.request.texts_per_call)
        first = len(self.lists)
        avoid = ["x" * _USUAL_TEXT] * _AVOIDED
        later = [self.request.question(first + number, avoid) for number in range(min(lists, parallel), lists)]
        return self.next_round(count, parallel) + later

    def add(self, lists: Iterable[str]) -> None:
        """Take the model's answers, as they came."""
        form = PAIRS if self.request.concepts else TEXTS
        for answer in lists:
            self.lists.append(answer)
            for text, concept in form.read(answer):
                key = _key(text)
                if key in self._known:
                    self.repeated += 1
                else:
                    self._known.add(key)
                    self.texts.append((text, concept))

    def save(self, count: int) -> None:
        """Write both files, each whole; the answers first, as the texts can be made from them."""
        texts = self.texts[:count]
        # A concept in its plural and its singular is one.
        one = merge_labels((concept for _, concept in texts), prefixes=False)
        lines = [text if concept is None else f"{text}\t{one[concept]}" for text, concept in texts]
        content = "".join(f"{line}\n" for line in lines).encode()
        # Killed between the two files, the older texts are still known as ours.
        digests = [*self._digests[-1:], hashlib.sha256(content).hexdigest()]
        kept = {"about": self._about(), "sha256": digests, "lists": self.lists}
        write_atomically(self.answers_path, [json.dumps(kept, ensure_ascii=False).encode()])
        write_atomically(self.path, [content])
        self._digests = digests

    def _about(self) -> dict[str, Any]:
        request = self.request
        return {"format": _FORMAT, "model": request.model, "ask": request.ask.strip(), "concepts": request.concepts}


def _key(text: str) -> str:
    """What makes two texts the same: their letters and digits, in any case."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _clean_text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    text = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", " ".join(value.split())).strip(" \"'“”")
    return text if _key(text) and len(text) <= _LONGEST_TEXT and text.isprintable() else None


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
        raise NotAsAskedError("holds texts that are no list")
    return found


def _some(texts: Iterable[tuple[str | None, str | None]]) -> list[Text]:
    usable = [(text, concept) for text, concept in texts if text is not None]
    if not usable:
        raise NotAsAskedError("holds no usable text")
    return usable


_PAIR = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "concept": {"type": "string"}},
    "required": ["text", "concept"],
    "additionalProperties": False,
}
TEXTS = Form("texts", one_field("texts", {"type": "array", "items": {"type": "string"}}), _read_texts)
PAIRS = Form("texts_with_concepts", one_field("texts", {"type": "array", "items": _PAIR}), _read_pairs)
