"""Read the vocabulary of open_clip's tokenizers once a process: each of the many loaded models makes a tokenizer."""

from __future__ import annotations

import functools
from typing import Any

from open_clip.tokenizer import SimpleTokenizer


def keep_vocabularies() -> None:
    """Let tokenizers that are made with the same arguments share what they read, 0.1 s of work each."""
    read = SimpleTokenizer.__init__
    kept: dict[str, dict[str, Any]] = {}

    @functools.wraps(read)
    def made(self: SimpleTokenizer, *arguments: Any, **named: Any) -> None:
        asked = repr((arguments, sorted(named.items())))
        if asked not in kept:
            read(self, *arguments, **named)
            kept[asked] = dict(vars(self))
        vars(self).update(kept[asked])

    SimpleTokenizer.__init__ = made
