"""A pool that a language model is writing: the texts so far, and every answer that they were made from, on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headspan.concepts.merging import merge_labels
from headspan.concepts.pool_writer.request import PoolRequest, Text, text_key
from headspan.errors import SettingsError, StoreError, one_line
from headspan.io.files import write_atomically
from headspan.llm.cache import Question
from headspan.texts.pool import answers_path

# Of the texts that are there, so many of the last are shown, to be avoided.
_AVOIDED = 40
_USUAL_TEXT = 60
_FORMAT = 1


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
        try:
            draft.add(lists)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{beside}: is damaged ({one_line(error)}); give another --out") from error
        return draft

    @property
    def answers_path(self) -> Path:
        """Where the raw answers are kept."""
        return answers_path(self.path)

    def next_round(self, count: int, parallel: int) -> list[Question]:
        """The lists to ask for side by side."""
        avoid = [text for text, _ in self.texts[-_AVOIDED:]]
        return [self.request.question(number, avoid) for number in self._lists_left(count)[:parallel]]

    def expected(self, count: int, parallel: int) -> list[Question]:
        """As many questions as `count` texts take at least: the next round's, and others as long as theirs will be."""
        avoid = ["x" * _USUAL_TEXT] * _AVOIDED
        later = [self.request.question(number, avoid) for number in self._lists_left(count)[parallel:]]
        return self.next_round(count, parallel) + later

    def add(self, lists: Iterable[str]) -> None:
        """Take the model's answers, as they came."""
        for answer in lists:
            self.lists.append(answer)
            for text, concept in self.request.read(answer):
                key = text_key(text)
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

    def _lists_left(self, count: int) -> range:
        """The numbers of the lists that `count` texts take at least, counting from 0."""
        first = len(self.lists)
        return range(first, first + -(-max(0, count - len(self.texts)) // self.request.texts_per_call))

    def _about(self) -> dict[str, Any]:
        request = self.request
        return {"format": _FORMAT, "model": request.model, "ask": request.ask.strip(), "concepts": request.concepts}
