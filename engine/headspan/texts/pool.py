"""Text pools: descriptions to choose from, each with or without a concept.

A pool is a text file with one description a line, or with lines of text<TAB>concept (see `pool_file`). Two pools,
`general` and `world`, ship with headspan.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from headspan.errors import TextsError, counted
from headspan.texts.pool_file import read_lines

# Line ends and tabs separate texts and concepts in the checksum. Lone surrogates cannot be encoded.
_NOT_IN_A_TEXT = re.compile(r"[\n\r\t\ud800-\udfff]")


@dataclass(frozen=True, slots=True, repr=False)
class Pool:
    """Descriptions, and the concept of each where they are annotated.

    Raises TextsError if a text or concept is not a string, or contains a line end, a tab or a lone surrogate.
    """

    name: str
    texts: tuple[str, ...]
    # One for each text, or None if the pool is not annotated.
    concepts: tuple[str, ...] | None = None
    # The language model that wrote the pool, if one did.
    author: str | None = None

    def __post_init__(self) -> None:
        # Two texts joined by a line end would have the checksum of one text.
        for text in (*self.texts, *(self.concepts or ())):
            if not isinstance(text, str):
                raise TextsError(f"pool {self.name}: {text!r} is not a string; give strings")
            if found := _NOT_IN_A_TEXT.search(text):
                raise TextsError(
                    f"pool {self.name}: the text {text[:60]!a} contains {found[0]!a}; give each text as one line "
                    "without tabs and lone surrogates"
                )

    def __repr__(self) -> str:
        concepts = "" if self.concepts is None else f", {counted(len(set(self.concepts)), 'concept')}"
        return f"Pool({self.name!r}: {counted(len(self.texts), 'text')}{concepts})"

    @property
    def sha256(self) -> str:
        """Checksum of the texts in their order, and of the concepts if there are any."""
        lines = self.texts if self.concepts is None else map("\t".join, zip(self.texts, self.concepts, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_pool(source: str | Path | Sequence[str] | Pool) -> Pool:
    """Read a pool from a file, make one from a sequence of texts, or find a shipped one (`general`, `world`).

    A file in the working folder comes before a shipped pool of the same name; a Pool is returned as it is. Raises
    TextsError if the file is missing, empty or of another format, or if only some of its lines have a concept.
    """
    if isinstance(source, Pool):
        return source
    if not isinstance(source, str | Path):
        return _pool_of(tuple(source))
    shipped = files("headspan.texts") / "pools" / f"{source}.tsv"
    path = Path(source)
    try:
        content = shipped.read_bytes() if shipped.is_file() and not path.is_file() else path.read_bytes()
    except (OSError, ValueError) as error:
        raise TextsError(
            f"{source}: cannot be read ({getattr(error, 'strerror', None) or error}); give a file with one text per "
            "line, or general or world, which headspan includes"
        ) from error
    columns = list(zip(*read_lines(content, str(source)), strict=True))
    # The name of the pool in a store. The checksum distinguishes pools of one name.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "pool"
    return Pool(name, columns[0], columns[1] if len(columns) > 1 else None, _author(path, content))


def _pool_of(texts: tuple[str, ...]) -> Pool:
    if not texts:
        raise TextsError("the list of texts is empty; give at least one")
    pool = Pool("list", texts)
    return replace(pool, name=f"list-{pool.sha256[:8]}")


def answers_path(pool: Path) -> Path:
    """The file next to a pool that holds the language model's answers that the pool was made from."""
    return pool.with_name(f"{pool.name}.answers.json")


def _author(path: Path, content: bytes) -> str | None:
    """The model that wrote the pool, according to the file of answers next to it; None without such a file."""
    try:
        answers = json.loads(answers_path(path).read_bytes())
        changed = "" if hashlib.sha256(content).hexdigest() in answers["sha256"] else ", changed since"
        return f"{answers['about']['model']}{changed}"
    # The file is missing, or is not one that headspan wrote.
    except (OSError, ValueError, LookupError, TypeError):
        return None
