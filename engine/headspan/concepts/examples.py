"""Heads labelled by hand, which a language model sees as examples before it labels other heads.

Examples are TOML files of `[[head]]` tables with a `label` and `texts`. One ships with headspan; users may add more.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from headspan.errors import TextsError

_FORM = 'write [[head]], label = "…" and texts = ["…", …] for each head'


@dataclass(frozen=True, slots=True)
class Example:
    """The texts of a head, and the label that a person gave it."""

    label: str
    texts: tuple[str, ...]


def read_examples(added: Sequence[str | Path] = ()) -> tuple[Example, ...]:
    """The examples that ship with headspan, then those of the files `added`. Raises TextsError for an invalid file."""
    shipped = files("headspan.concepts") / "heads.toml"
    examples = _parse(shipped.read_text(encoding="utf-8"), str(shipped))
    for name in added:
        try:
            content = Path(name).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise TextsError(
                f"{name}: cannot be read ({error.strerror}); give a TOML file of labelled heads"
            ) from error
        except UnicodeDecodeError as error:
            raise TextsError(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
        examples += _parse(content, str(name))
    return tuple(examples)


def _parse(content: str, source: str) -> list[Example]:
    try:
        found = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise TextsError(f"{source}: is not TOML ({error}); {_FORM}") from error
    heads = found.get("head")
    if not isinstance(heads, list) or not heads:
        raise TextsError(f"{source}: contains no labelled heads; {_FORM}")
    return [_example(head, f"{source}: head {number}") for number, head in enumerate(heads, start=1)]


def _example(head: Any, where: str) -> Example:
    unknown = sorted(set(head) - {"label", "texts"}) if isinstance(head, dict) else ["a value that is not a table"]
    if unknown:
        raise TextsError(f"{where} contains {', '.join(unknown)}; {_FORM}")
    label, texts = head.get("label"), head.get("texts")
    if not isinstance(label, str) or not label.strip():
        raise TextsError(f"{where} has no label; {_FORM}")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TextsError(f"{where} ({label!r}) has no list of texts; {_FORM}")
    return Example(" ".join(label.split()), tuple(" ".join(text.split()) for text in texts))
