"""The grammar of descriptions that the reference language model writes, and the enumeration of all its sentences.

A sentence names at most three things: values of different factors, and at most one phrase that no image can show. It
uses one wording for each value, out of those of captions:

    a sketch of three small stars on a grey background
    a picture of a red star near the top left, click to enlarge

There are 113,382 sentences, few enough to find the best one for a reward by trying all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

from headspan.world.factors import BACKGROUNDS, COLOURS, COUNTS, POSITIONS, SHAPES, SIZES, STYLES, TEXTURES
from headspan.world.parts import EMPTY_PHRASES, NON_VISUAL_PHRASES, STRUCTURE, parts_of
from headspan.world.words import (
    GROUND_WORDS,
    NOUNS,
    NUMBERS,
    SIZE_WORDS,
    STYLE_FRAMES,
    TEXTURE_WORDS,
    ground_phrase,
    plural,
    position_phrases,
    with_article,
)

# The most values and phrases of a sentence.
MOST = 3
# What a sentence may name besides the factors' values.
PHRASE = "phrase"
PHRASES = (*EMPTY_PHRASES, *(phrase for phrases in NON_VISUAL_PHRASES.values() for phrase in phrases))
VALUES: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "count": tuple(str(count) for count in COUNTS),
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
    "background_colour": COLOURS,
    PHRASE: PHRASES,
}
_FRAME = "a picture of {}"
# The frame of each style that stands before the object.
_STYLE_FRAMES = {
    style: next(frame for frame in frames if frame.endswith("{}")) for style, frames in STYLE_FRAMES.items()
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of the grammar: its text, and what it names, by factor; a phrase is under PHRASE."""

    text: str
    says: Mapping[str, str]


def sentence(says: Mapping[str, str]) -> Sentence:
    """The sentence that names these values, which VALUES must hold."""
    count, shape = says.get("count"), says.get("shape", NOUNS[0])
    words = [SIZE_WORDS[says["size"]][0]] if "size" in says else []
    words += [TEXTURE_WORDS[says["texture"]][0]] if "texture" in says else []
    words += [says["colour"]] if "colour" in says else []
    if count is None:
        thing = with_article(" ".join([*words, shape]))
    else:
        thing = " ".join([NUMBERS[int(count)], *words, shape if count == "1" else plural(shape)])
    if "position" in says:
        thing += f" {position_phrases(says['position'])[0]}"
    text = (_STYLE_FRAMES[says["style"]] if "style" in says else _FRAME).format(thing)
    if "background" in says or "background_colour" in says:
        kind = GROUND_WORDS[says["background"]][0] if "background" in says else ""
        text += f" on {ground_phrase(kind, says.get('background_colour', ''))}"
    if PHRASE in says:
        text += f"{',' if says[PHRASE] in EMPTY_PHRASES else ''} {says[PHRASE]}"
    return Sentence(text, says)


def sentences(most: int = MOST) -> Iterator[Sentence]:
    """All sentences that name at most `most` values and phrases; those that name fewer come first."""
    for number in range(most + 1):
        for factors in combinations(VALUES, number):
            for values in product(*(VALUES[factor] for factor in factors)):
                yield sentence(dict(zip(factors, values, strict=True)))


def read_sentence(text: str, most: int = MOST) -> Sentence | None:
    """The sentence with this text; None if it is not one of the grammar that names at most `most` values."""
    says: dict[str, str] = {}
    for part in parts_of(text):
        if part.kind == STRUCTURE:
            continue
        factor, value = (PHRASE, part.value) if part.value in PHRASES else (part.factor, part.value)
        if factor in says or value not in VALUES.get(factor, ()):
            return None
        says[factor] = value
    found = sentence(says)
    return found if len(says) <= most and found.text == text else None
