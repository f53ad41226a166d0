"""Every error that a user can cause, each one sentence: what came, what was wanted, where, what to do.

The command line prints the sentence and exits with code 2; from Python they are ordinary exceptions.
`assert` is for headspan's own slips, these classes are for the world's.
"""

from __future__ import annotations

from headspan.escapes import escaped
from headspan.redact import redact


class HeadspanError(Exception):
    """Base of all errors that headspan raises on purpose; catch this one.

    Its text is one line. No secret of a url gets into it, and nothing that steers a terminal.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(escaped(redact(sentence)))


class SettingsError(HeadspanError):
    """A setting that contradicts another, is out of range, or does not exist."""


class SourceError(HeadspanError):
    """A shard or shard pattern that cannot be read as what it claims to be."""


class ModelError(HeadspanError):
    """An unknown or unsupported model, or weights that do not belong to it."""


class StoreError(HeadspanError):
    """A store that is missing, unfinished, of another format, or made with other settings."""


class TextsError(HeadspanError):
    """A text pool that cannot be used."""


class LanguageModelError(HeadspanError):
    """A language model that cannot be asked, does not answer as asked, or would cost more than is allowed."""


def one_line(error: BaseException) -> str:
    """What another library's error says, fit for a place within a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, letters: int = 500) -> str:
    """`text` with an ellipsis behind the last word that ends within `letters`, where it is longer."""
    if len(text) <= letters:
        return text
    kept = text[: letters + 1].rpartition(" ")[0] or text[:letters]
    return f"{kept} …"


def counted(count: int, noun: str) -> str:
    """As in "1 image" and "2,000 images"."""
    return f"{count:,} {noun}" + "s" * (count != 1)
