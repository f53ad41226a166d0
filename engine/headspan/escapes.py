"""Escape text from data before it is shown. Keys, captions, paths and answers may control a terminal.

Control characters, line and paragraph separators, invisible format characters (such as those that reverse the direction
of writing) and halves of surrogate pairs are written as in Python, for example `\\x1b`. All other characters stay, and
so do the two joiners that some scripts and emoji need.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"


def escaped(text: str) -> str:
    """`text` on one line, without characters that control a terminal. Escaping twice changes nothing."""
    if text.isprintable():
        return text
    return "".join(_escape(letter) if _is_hidden(letter) else letter for letter in text)


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN and letter not in _JOINERS


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def shell_command(words: Iterable[str]) -> str:
    """A command line, on one line, that a shell splits into `words`. If it contains `$'…'`, it needs bash or zsh."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if not any(map(_is_hidden, word)):
        return shlex.quote(word)
    return "$'" + "".join(map(_shell_letter, word)) + "'"


def _shell_letter(letter: str) -> str:
    """A character between `$'` and `'`. Escapes have a fixed length, since a digit may follow."""
    if "\udc80" <= letter <= "\udcff":
        # A byte of a file name that is not UTF-8.
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if _is_hidden(letter):
        return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogatepass"))
    return f"\\{letter}" if letter in "\\'" else letter
