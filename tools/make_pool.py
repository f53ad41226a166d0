"""Write the general text pool that ships with headspan: engine/headspan/texts/pools/general.tsv.

    python -m tools.make_pool      # rewrites the file and prints the number of texts of each concept

A text consists of a frame ("A photo of {}"), a form ("{} and its young") and a word ("a giraffe"), which come from
pool_words.toml. Words and forms belong to one concept. Frames are shared by many concepts, so that a frame does not
imply a concept. Nothing is random: forms and frames alternate. Each line of the output is `text<TAB>concept`, without a
header. The script does not check whether a text is good English.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORDS = Path(__file__).with_name("pool_words.toml")
POOL = Path(__file__).resolve().parents[1] / "engine" / "headspan" / "texts" / "pools" / "general.tsv"

# Beginnings of words after "a(n)" whose sound differs from their first letter.
SPOKEN_WITH_VOWEL = ("hour",)
SPOKEN_WITH_CONSONANT = ("one", "uni", "use", "eu")


@dataclass(frozen=True, slots=True)
class Group:
    """Words of one concept that have the same forms and frames; each word gives `each` texts."""

    concept: str
    words: tuple[str, ...]
    forms: tuple[str, ...]
    frames: tuple[str, ...]
    each: int


def read_groups(path: Path) -> list[Group]:
    """The groups of a words file, in the file's order."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Group(
            concept=group["concept"],
            words=tuple(" ".join(word.split()) for word in group["words"].split(",")),
            forms=tuple(group.get("forms", ["{}"])),
            frames=tuple(tables["frames"][group["frames"]]),
            each=group.get("each", 1),
        )
        for group in tables["group"]
    ]


def with_articles(text: str) -> str:
    """`text` with every "a(n)" replaced by "a" or "an", by the sound of the next word."""

    def article(found: re.Match[str]) -> str:
        word = found[1]
        vowel = word[0].lower() in "aeiou" and not word.lower().startswith(SPOKEN_WITH_CONSONANT)
        return ("an " if vowel or word.startswith(SPOKEN_WITH_VOWEL) else "a ") + word

    return re.sub(r"\ba\(n\) (\S+)", article, text)


def texts(group: Group) -> Iterator[str]:
    """The group's texts, word by word, `each` texts for a word, with alternating forms and frames."""
    for turn in range(len(group.words) * group.each):
        word = group.words[turn // group.each]
        form = group.forms[turn % len(group.forms)]
        frame = group.frames[turn % len(group.frames)]
        text = with_articles(frame.format(form.format(word)))
        yield text[0].upper() + text[1:]


def make_pool(groups: list[Group]) -> dict[str, str]:
    """Every text with its concept, in the groups' order. Asserts that no text occurs twice in the words file."""
    concepts: dict[str, str] = {}
    seen: set[str] = set()
    for group in groups:
        for text in texts(group):
            assert text.lower() not in seen, f"{text!r} occurs twice, the second time under {group.concept}"
            seen.add(text.lower())
            concepts[text] = group.concept
    return concepts


def as_tsv(concepts: dict[str, str]) -> str:
    """The file's content: one `text<TAB>concept` a line."""
    return "".join(f"{text}\t{concept}\n" for text, concept in concepts.items())


def main() -> None:
    """Rewrite the pool and print the number of texts of each concept."""
    concepts = make_pool(read_groups(WORDS))
    POOL.parent.mkdir(exist_ok=True)
    POOL.write_text(as_tsv(concepts), encoding="utf-8", newline="\n")
    for concept, count in Counter(concepts.values()).items():
        print(f"{count:5}  {concept}")
    print(f"{len(concepts):5}  total")


if __name__ == "__main__":
    main()
