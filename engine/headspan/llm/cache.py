"""Answers on disk, one file each, found by model, prompt, form and temperature: a question is paid for once.

Files are whole or not there, so that several processes may share a folder. What cannot be read as an answer any
more counts as no answer, and is asked again. Endpoint and key are no part of what an answer is found by; the
endpoint is noted in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.errors import LanguageModelError, StoreError
from headspan.io.files import make_folder, write_atomically
from headspan.llm.forms import Form

# Tokens that an answer may have where nothing else is said.
ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """One question to one model."""

    model: str
    prompt: str
    form: Form
    temperature: float = 0.0
    # Tokens that the answer may have, thoughts included.
    answer_tokens: int = ANSWER_TOKENS

    @property
    def sha256(self) -> str:
        """Names the question in the cache."""
        asked = [self.model, self.prompt, self.form.name, self.form.schema, self.temperature]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered: the value that was read, and every reply as it came, the last one read."""

    # None where no reply was as asked; `complaint` then says why.
    value: Any
    replies: tuple[dict[str, Any], ...]
    base_url: str
    complaint: str | None = None
    # Whether it was there before.
    kept: bool = False

    @property
    def served_as(self) -> str | None:
        """The model as the endpoint names it."""
        return self.replies[-1].get("model") if self.replies else None


def default_folder() -> Path:
    """`headspan/answers` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "headspan" / "answers"


class AnswerCache:
    """A folder of answers, made where it is not there."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Raises LanguageModelError where answers could not be kept, before anything is paid for."""
        self.folder = default_folder() if folder is None else Path(folder)
        try:
            make_folder(self.folder.absolute())
        except OSError as error:
            raise self._refusal(error.strerror) from error
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise self._refusal("Permission denied")

    def read(self, question: Question) -> Answer | None:
        """The answer to `question`, if a good one is kept."""
        try:
            content = json.loads(self._path(question).read_bytes())
            replies = tuple(content["replies"])
            return Answer(question.form.read(replies[-1]["content"]), replies, content["base_url"], kept=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(error.strerror) from error
        # A damaged file, or an answer that headspan would no longer take: asked again, and written over.
        except (ValueError, RecursionError, LookupError, TypeError):
            return None

    def write(self, question: Question, answer: Answer) -> None:
        """Keep a good answer."""
        content = {
            "model": question.model,
            "prompt": question.prompt,
            "form": question.form.name,
            "temperature": question.temperature,
            "base_url": answer.base_url,
            "replies": list(answer.replies),
        }
        try:
            write_atomically(self._path(question), [json.dumps(content).encode()])
        except StoreError as error:
            raise self._refusal(getattr(error.__cause__, "strerror", None)) from error

    def all_kept(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        """Those of `questions` that have an answer."""
        found = {question: self.read(question) for question in dict.fromkeys(questions)}
        return {question: answer for question, answer in found.items() if answer is not None}

    def _path(self, question: Question) -> Path:
        name = question.sha256
        return self.folder / name[:2] / f"{name}.json"

    def _refusal(self, reason: str | None) -> LanguageModelError:
        return LanguageModelError(
            f"{self.folder}: answers cannot be kept there ({reason}); make room, or name another folder with --cache"
        )
