"""Write the image world's text pool that ships with headspan: engine/headspan/texts/pools/world.tsv.

    python -m tools.make_world_pool      # rewrites the file and prints the number of texts of each concept

A text consists of a frame and a phrase that names a single factor, both in the words of the world's captions. Nothing
is random: frames alternate. Each line is `text<TAB>concept`, without a header.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from headspan.world.colours import GROUNDS
from headspan.world.words import (
    FRAMES,
    GROUND_PREPOSITIONS,
    NOUNS,
    STYLE_FRAMES,
    ground_phrase,
    phrases,
    plural,
    with_article,
)

POOL = Path(__file__).resolve().parents[1] / "engine" / "headspan" / "texts" / "pools" / "world.tsv"

# Factor, concept, and the number of frames for each phrase, chosen so that concepts have similar numbers of texts.
CONCEPTS = (
    ("colour", "colours", 3),
    ("shape", "shapes", 6),
    ("texture", "textures", 2),
    ("count", "counting", 3),
    ("size", "sizes", 4),
    ("position", "positions", 2),
    ("background", "backgrounds", 1),
    ("background_colour", "backgrounds", 1),
)


def make_pool() -> dict[str, str]:
    """Every text with its concept, in a fixed order. Asserts that no text occurs twice."""
    concepts: dict[str, str] = {}
    for text, concept in _texts():
        text = text[0].upper() + text[1:]
        assert text not in concepts, f"{text!r} occurs twice, the second time under {concept}"
        concepts[text] = concept
    return concepts


def _texts() -> Iterator[tuple[str, str]]:
    turn = 0
    for factor, concept, each in CONCEPTS:
        for ways in phrases(factor).values():
            for phrase in ways:
                for _ in range(each):
                    yield FRAMES[turn % len(FRAMES)].format(phrase), concept
                    turn += 1
    for colour, tone in GROUNDS:
        if tone:
            for preposition in GROUND_PREPOSITIONS:
                ground = ground_phrase("", f"{tone} {colour}")
                yield FRAMES[turn % len(FRAMES)].format(f"a shape {preposition} {ground}"), "backgrounds"
                turn += 1
    for frames in STYLE_FRAMES.values():
        for frame in frames:
            for noun in NOUNS:
                yield frame.format(with_article(noun)), "styles"
                yield frame.format(plural(noun)), "styles"


def as_tsv(concepts: dict[str, str]) -> str:
    """The file's content: one `text<TAB>concept` a line."""
    return "".join(f"{text}\t{concept}\n" for text, concept in concepts.items())


def main() -> None:
    """Rewrite the pool and print the number of texts of each concept."""
    concepts = make_pool()
    POOL.write_text(as_tsv(concepts), encoding="utf-8", newline="\n")
    for concept, count in Counter(concepts.values()).items():
        print(f"{count:5}  {concept}")
    print(f"{len(concepts):5}  total")


if __name__ == "__main__":
    main()
