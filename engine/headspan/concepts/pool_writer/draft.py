"""A pool in progress: the texts so far and the answers that they come from, in two files."""

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
from headspan.user_paths import refuse_missing_folder

# How many of the last texts a request names as texts to avoid.
_AVOIDED = 40
# Assumed letters of a text, to estimate the length of later requests.
_USUAL_TEXT = 60
_FORMAT = 1


class Draft:
    """The texts so far, read from the model's answers in the order of the requests."""

    def __init__(self, path: Path, request: PoolRequest) -> None:
        self.path, self.request = path, request
        self.lists: list[str] = []
        self.texts: list[Text] = []
        self.repeated = 0
        self._known: set[str] = set()
        # Checksums of the last two versions of the pool's file.
        self._digests: list[str] = []

    @classmethod
    def open(cls, path: Path, request: PoolRequest) -> Draft:
        """The draft that an earlier call left at `path`, or an empty one.

        Raises SettingsError if the files at `path` belong to another request or were changed, and StoreError if they
        cannot be read, or if there is no folder for them.
        """
        refuse_missing_folder(path, "pool")
        draft = cls(path, request)
        beside = draft.answers_path
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
            if not beside.exists():
                if digest is None:
                    return draft
                raise SettingsError(f"{path}: already exists, and headspan did not write it; choose another --out")
            found = json.loads(beside.read_bytes())
            about, lists, digests = found["about"], found["lists"], found["sha256"]
            request_of = f"{about['ask']!r} of {about['model']}"
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
        except (ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{beside}: is damaged ({one_line(error)}); choose another --out") from error
        if about != draft._about():
            raise SettingsError(f"{path}: is the pool of another request ({request_of}); choose another --out")
        if digest is not None and digest not in digests:
            raise SettingsError(f"{path}: was changed after headspan wrote it; choose another --out to write more")
        draft._digests = [] if digest is None else [digest]
        try:
            draft.add(lists)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{beside}: is damaged ({one_line(error)}); choose another --out") from error
        return draft

    @property
    def answers_path(self) -> Path:
        """The file of the raw answers."""
        return answers_path(self.path)

    def next_round(self, count: int, parallel: int) -> list[Question]:
        """Requests for the next lists, up to `parallel`, which are sent at the same time."""
        avoid = [text for text, _ in self.texts[-_AVOIDED:]]
        return [self.request.question(number, avoid) for number in self._lists_left(count)[:parallel]]

    def expected(self, count: int, parallel: int) -> list[Question]:
        """All requests that `count` texts take at least; those after the next round name placeholders to avoid."""
        avoid = ["x" * _USUAL_TEXT] * _AVOIDED
        later = [self.request.question(number, avoid) for number in self._lists_left(count)[parallel:]]
        return self.next_round(count, parallel) + later

    def add(self, lists: Iterable[str]) -> None:
        """Add the texts of answers, without those that are there already. Raises NotAsAskedError for an invalid one."""
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
        """Write both files, each atomically; the answers first, since the texts can be read from them."""
        texts = self.texts[:count]
        # Merge the singular and the plural of a concept.
        one = merge_labels((concept for _, concept in texts), prefixes=False)
        lines = [text if concept is None else f"{text}\t{one[concept]}" for text, concept in texts]
        content = "".join(f"{line}\n" for line in lines).encode()
        # If the process is killed between the two files, the older version of the pool is still recognised.
        digests = [*self._digests[-1:], hashlib.sha256(content).hexdigest()]
        kept = {"about": self._about(), "sha256": digests, "lists": self.lists}
        write_atomically(self.answers_path, [json.dumps(kept, ensure_ascii=False).encode()])
        write_atomically(self.path, [content])
        self._digests = digests

    def _lists_left(self, count: int) -> range:
        """The numbers of the lists that `count` texts take at least, from 0."""
        first = len(self.lists)
        return range(first, first + -(-max(0, count - len(self.texts)) // self.request.texts_per_call))

    def _about(self) -> dict[str, Any]:
        request = self.request
        return {"format": _FORMAT, "model": request.model, "ask": request.ask.strip(), "concepts": request.concepts}
