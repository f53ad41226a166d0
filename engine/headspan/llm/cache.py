"""A cache of answers on disk, one file each, keyed by model, prompt, form and temperature.

Files are written atomically, so several processes may share a folder. A file that cannot be read as an answer is
ignored, and its question is asked again. Endpoint and API key are not part of the key; the file names the endpoint.
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
from headspan.user_paths import cache_folder

# Default limit of tokens per answer.
ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Question:
    """One question to one model; `form` reads the answer."""

    model: str
    prompt: str
    form: Form
    temperature: float = 0.0
    # Limit of tokens of the answer, including a reasoning model's thoughts.
    answer_tokens: int = ANSWER_TOKENS

    @property
    def sha256(self) -> str:
        """The key of the question in the cache."""
        asked = [self.model, self.prompt, self.form.name, self.form.schema, self.temperature]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question."""

    # What `form.read` returned; None if no reply was usable.
    value: Any
    # Every raw reply; the value was read from the last one.
    replies: tuple[dict[str, Any], ...]
    base_url: str
    # Why there is no value; completes "The answer …".
    complaint: str | None = None
    # Whether it came from the cache.
    cached: bool = False

    @property
    def served_as(self) -> str | None:
        """The model's name according to the endpoint."""
        return self.replies[-1].get("model") if self.replies else None


def default_folder() -> Path:
    """`headspan/answers` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`)."""
    return cache_folder() / "answers"


class AnswerCache:
    """A folder of answers, by default `headspan/answers` in the user's cache folder."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Create the folder if it is missing. Raises LanguageModelError if it cannot be written."""
        self.folder = default_folder() if folder is None else Path(folder)
        try:
            make_folder(self.folder.absolute())
        except OSError as error:
            raise self._refusal(error.strerror) from error
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise self._refusal("Permission denied")

    def read(self, question: Question) -> Answer | None:
        """The cached answer to `question`; None if there is none that its form accepts."""
        try:
            content = json.loads(self._path(question).read_bytes())
            replies = tuple(content["replies"])
            return Answer(question.form.read(replies[-1]["content"]), replies, content["base_url"], cached=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(error.strerror) from error
        # The file is damaged, or its form now refuses the answer: the question is asked again.
        except (ValueError, RecursionError, LookupError, TypeError):
            return None

    def write(self, question: Question, answer: Answer) -> None:
        """Write a usable answer. Raises LanguageModelError if the folder cannot be written."""
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

    def all_cached(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        """The cached answers to `questions`; questions without one are left out."""
        found = {question: self.read(question) for question in dict.fromkeys(questions)}
        return {question: answer for question, answer in found.items() if answer is not None}

    def _path(self, question: Question) -> Path:
        name = question.sha256
        return self.folder / name[:2] / f"{name}.json"

    def _refusal(self, reason: str | None) -> LanguageModelError:
        return LanguageModelError(
            f"{self.folder}: answers cannot be stored there ({reason}); free space, or name another folder with --cache"
        )
