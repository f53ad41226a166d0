"""The errors that headspan raises on purpose. Each is one sentence: what came, what was expected, where, what to do.

The command line prints the sentence and exits with code 2. `assert` is for headspan's own mistakes; these classes are
for those of users and of the world.
"""

from __future__ import annotations

from typing import Any

from headspan.escapes import escaped
from headspan.redact import redact


class HeadspanError(Exception):
    """Base class of all errors that headspan raises on purpose.

    Its text is one line, without the secrets of urls and without characters that control a terminal.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(escaped(redact(sentence)))


class SettingsError(HeadspanError):
    """A setting that contradicts another, is out of range, or does not exist."""


class SourceError(HeadspanError):
    """A shard, or a pattern of shards, that cannot be read."""


class ModelError(HeadspanError):
    """An unknown or unsupported model, or weights that do not belong to it."""


class StoreError(HeadspanError):
    """A store that is missing, incomplete, of another format, or made with other settings."""


class NotSavedError(StoreError):
    """A result was computed, but the store cannot be written; `result` holds it."""

    def __init__(self, sentence: str, result: Any, read_only: bool) -> None:
        super().__init__(sentence)
        self.result = result
        # Whether its user may only read the store, rather than that its disk is full or failed.
        self.read_only = read_only


class TextsError(HeadspanError):
    """A text pool that cannot be used."""


class LanguageModelError(HeadspanError):
    """A language model that does not respond, gives unusable answers, or would exceed the budget."""


def one_line(error: BaseException) -> str:
    """The text of another library's error on one line, to be put into a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, letters: int = 500) -> str:
    """`text`, cut after the last word that ends within `letters` characters, with an ellipsis. Shorter texts stay."""
    if len(text) <= letters:
        return text
    kept = text[: letters + 1].rpartition(" ")[0] or text[:letters]
    return f"{kept} …"


def counted(count: int, noun: str) -> str:
    """The count with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def percent(share: float, decimals: int = 1) -> str:
    """A share as a percentage: "50.2 %"."""
    return f"{100 * share:.{decimals}f} %"
