"""Read texts about the image world: what each word says, if it says anything.

A part names a value of a factor, which an image may show, or it is an empty phrase such as "click to enlarge", or a
non-visual word such as a day. The rest is structure, such as articles, or unknown. All captions of the world are read,
and any other order of their words too. Negations are not understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from headspan.world.factors import COLOURS, POSITIONS, SHAPES, STYLES
from headspan.world.telling import PHRASES
from headspan.world.words import (
    COUNTED,
    FRAMES,
    GROUND_PREPOSITIONS,
    GROUND_WORDS,
    NOUNS,
    NUMBERS,
    SINGLE,
    SIZE_WORDS,
    STYLE_FRAMES,
    TEXTURE_ENDINGS,
    TEXTURE_WORDS,
    plural,
    position_phrases,
)

# The kinds of parts.
VISUAL, EMPTY, NON_VISUAL, STRUCTURE, UNKNOWN = "visual", "empty", "non-visual", "structure", "unknown"

# Phrases that say nothing, as captions of web pages have them.
EMPTY_PHRASES = (
    "click to enlarge",
    "free download",
    "stock photo",
    "all rights reserved",
    "view more",
    "share this",
)
# Phrases that no image of the world can show, by kind. Each differs from the others of its kind by a single word.
NON_VISUAL_PHRASES: dict[str, tuple[str, ...]] = {
    **PHRASES,
    "habitat": tuple(f"found in {place}" for place in ("forests", "cities", "deserts", "gardens", "oceans", "caves")),
}

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
# Words that say a style, a place or a number by themselves; the other words come from the grammar's lists.
_STYLE_WORDS = {
    "outline": "outlined", "outlined": "outlined", "blurry": "blurred", "out-of-focus": "blurred",
    "shadow": "shadowed", "noisy": "grainy",
}  # fmt: skip
_PLACE_WORDS = {"middle": "centre", "center": "centre"}
_NUMBER_WORDS = {"single": "1", "pair": "2"}
_TONES = ("dark", "light")
# The most words of a background with the word "background", and what the others say before that word is considered.
_GROUND_WORDS = 4
_GROUND_FACTORS = ("colour", "texture", "background", "background_tone")


@dataclass(frozen=True, slots=True)
class Part:
    """Words of a text, and what they say.

    `factor` and `value` are those of `headspan.world.FACTORS` and of the scenes' metadata for visual parts; counts are
    digits. For non-visual parts they are the kind and the phrase, for empty ones `phrase` and the phrase. Structure and
    unknown words have neither.
    """

    words: str
    kind: str
    factor: str = ""
    value: str = ""


def parts_of(text: str) -> tuple[Part, ...]:
    """The parts of a text in their order. Every word belongs to exactly one part; case and punctuation are ignored."""
    words = _WORD.findall(text)
    lower = [word.lower() for word in words]
    found: list[Part] = []
    place = 0
    while place < len(words):
        length, said = _longest(lower, place)
        if said.factor in ("colour", "texture") and _in_ground(lower, place):
            said = _of_ground(said)
        found.append(Part(" ".join(words[place : place + length]), said.kind, said.factor, said.value))
        place += length
    return tuple(found)


def _longest(words: list[str], place: int) -> tuple[int, Part]:
    """The longest phrase that begins at a word, as its number of words and what it says."""
    known = _known()
    for length in range(min(_longest_phrase(), len(words) - place), 0, -1):
        if said := known.get(" ".join(words[place : place + length])):
            return length, said
    return 1, Part("", UNKNOWN)


def _in_ground(words: list[str], place: int) -> bool:
    """Whether a word stands shortly before the word "background", with only a background's words between."""
    for word in words[place + 1 : place + _GROUND_WORDS]:
        if word == "background":
            return True
        if _known().get(word, Part("", UNKNOWN)).factor not in _GROUND_FACTORS:
            return False
    return False


def _of_ground(said: Part) -> Part:
    """A colour or a texture as the background's; only the gradient is both a texture and a kind of background."""
    if said.factor == "colour":
        return Part("", VISUAL, "background_colour", said.value)
    return Part("", VISUAL, "background", said.value) if said.value in GROUND_WORDS else said


@cache
def _longest_phrase() -> int:
    return max(len(phrase.split()) for phrase in _known())


@cache
def _known() -> dict[str, Part]:
    """What each known phrase says, in lower case."""
    known: dict[str, Part] = {word: Part("", STRUCTURE) for word in _structure()}

    def say(factor: str, value: str, *phrases: str) -> None:
        known.update({phrase: Part("", VISUAL, factor, value) for phrase in phrases})

    for shape in SHAPES:
        say("shape", shape, shape, plural(shape))
    for colour in COLOURS:
        say("colour", colour, colour)
    for kind, words in GROUND_WORDS.items():
        say("background", kind, *(word.replace("{}", "").strip() for word in words))
    for tone in _TONES:
        say("background_tone", tone, tone)
    # After the backgrounds: a gradient is a texture unless it is followed by "background".
    for texture, words in TEXTURE_WORDS.items():
        say("texture", texture, *words)
    for texture, endings in TEXTURE_ENDINGS.items():
        # "with stripes": the last word is no word of another texture.
        say("texture", texture, *endings, *(end.split()[-1] for end in endings if len(end.split()) == 2))
    for size, words in SIZE_WORDS.items():
        say("size", size, *words)
    for number, word in enumerate(NUMBERS):
        say("count", str(number), word)
    for word, value in _NUMBER_WORDS.items():
        say("count", value, word)
    for position in POSITIONS:
        say("position", position, position, *position_phrases(position))
    for word, value in _PLACE_WORDS.items():
        say("position", value, word)
    for style in STYLES:
        say("style", style, style)
    for word, value in _STYLE_WORDS.items():
        say("style", value, word)
    for phrase in EMPTY_PHRASES:
        said = Part("", EMPTY, "phrase", phrase)
        # Its words alone are as empty as the phrase.
        known.update({word: said for word in phrase.split() if word not in known})
        known[phrase] = said
    for kind, phrases in NON_VISUAL_PHRASES.items():
        common = set.intersection(*({*phrase.split()} for phrase in phrases))
        for phrase in phrases:
            said = Part("", NON_VISUAL, kind, phrase)
            known.update(
                {word.lower(): said for word in phrase.split() if word not in common and word.lower() not in known}
            )
            known[phrase.lower()] = said
    return known


def _structure() -> set[str]:
    """Words of the grammar's frames and phrases; those that say something are overwritten afterwards."""
    templates = [
        *FRAMES,
        *(frame for frames in STYLE_FRAMES.values() for frame in frames),
        *COUNTED,
        *SINGLE,
        *GROUND_PREPOSITIONS,
        *(ending for endings in TEXTURE_ENDINGS.values() for ending in endings),
        *(phrase for position in POSITIONS for phrase in position_phrases(position)),
        *NOUNS,
        *(plural(noun) for noun in NOUNS),
        "a an the and another other different among is are it this that there background edge corner mood found by to",
    ]
    return {word for template in templates for word in _WORD.findall(template.lower())}
