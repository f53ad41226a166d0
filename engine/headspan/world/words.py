"""The words and grammar of captions, prompts and the text pool.

Each value of a factor has one or more words or phrases. Captions, prompts and the pool use no other words.
"""

from __future__ import annotations

from collections.abc import Sequence

from headspan.world.factors import COLOURS, COUNTS, POSITIONS, SHAPES, SIZES, TEXTURES

# Nouns for an object whose shape is not named.
NOUNS = ("shape", "object", "figure")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "medium", "mid-sized"),
    "large": ("large", "big"),
}
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "solid": ("solid", "uniform"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
    "gradient": ("gradient", "shaded"),
    "zigzag": ("zigzag", "zigzagged"),
}
# The same textures as phrases after the noun.
TEXTURE_ENDINGS: dict[str, tuple[str, ...]] = {
    "solid": ("without a pattern", "with a solid fill"),
    "striped": ("with stripes", "with a striped pattern"),
    "dotted": ("with dots", "with spots", "with a dotted pattern"),
    "checkered": ("with a checkered pattern", "with checks"),
    "gradient": ("with a gradient", "with a gradient fill"),
    "zigzag": ("with a zigzag pattern", "with zigzags"),
}
# Before a plural noun; {} is the number as a word.
COUNTED = ("{}", "{}", "{}", "exactly {}", "a group of {}", "a set of {}")
SINGLE = ("one", "a single", "exactly one", "only one")
STYLE_FRAMES: dict[str, tuple[str, ...]] = {
    "flat": ("a flat drawing of {}", "a flat picture of {}", "{} in a flat style", "a flat illustration of {}"),
    "outlined": ("an outlined drawing of {}", "{} with an outline", "an outlined picture of {}", "{} drawn in outline"),
    "sketch": ("a sketch of {}", "a pencil sketch of {}", "a hand-drawn sketch of {}", "{} in a sketch"),
    "blurred": ("a blurred picture of {}", "a blurry image of {}", "an out-of-focus picture of {}", "{}, blurred"),
    "shadowed": ("{} casting a shadow", "{} with a shadow", "a shadowed picture of {}", "{} above a shadow"),
    "grainy": ("a grainy picture of {}", "a grainy image of {}", "{} in a grainy picture", "a noisy picture of {}"),
}
# Frames that are true of every picture.
FRAMES = (
    "{}", "a picture of {}", "a drawing of {}", "an image of {}", "{} in a picture", "an illustration of {}",
    "a picture with {}", "an image with {}", "a scene with {}", "a picture showing {}", "a drawing with {}",
)  # fmt: skip
GROUND_PREPOSITIONS = ("on", "against", "in front of")
# {} is the background's colour with its tone, or empty.
GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain {}",),
    "gradient": ("{} gradient",),
    "two-tone": ("two-tone {}", "divided {}"),
    "speckled": ("speckled {}",),
    "cloudy": ("cloudy {}", "mottled {}"),
}


def position_phrases(position: str) -> tuple[str, ...]:
    """Phrases for a position: "near the top left", "in the centre", "on the right"."""
    if position == "centre":
        return "in the centre", "in the middle", "at the centre"
    if " " in position:
        return f"near the {position}", f"in the {position} corner", f"at the {position}", f"in the {position}"
    at = "at" if position in ("top", "bottom") else "on"
    return f"{at} the {position}", f"near the {position} edge", f"towards the {position}"


def plural(noun: str) -> str:
    """The plural of a shape or of one of NOUNS."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def with_article(words: str) -> str:
    """`words` after "a" or "an"."""
    vowel = words[0] in "aeiou" and not words.startswith(("uniform", "one"))
    return f"{'an' if vowel else 'a'} {words}"


def listed(parts: Sequence[str]) -> str:
    """ "this", "this and that", "this, that and those"."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def ground_phrase(kind: str, colour: str) -> str:
    """A background by kind, by colour or by both; `kind` is a phrase of GROUND_WORDS or empty."""
    words = " ".join((kind.format(colour) if kind else colour).split())
    return f"{with_article(words)} background"


def _of_any(words: Sequence[str]) -> list[str]:
    """Each of the words before each of NOUNS, in singular and plural: "a red shape", "red objects"."""
    forms: list[str] = []
    for word in words:
        for noun in NOUNS:
            forms += [with_article(f"{word} {noun}"), f"{word} {plural(noun)}"]
    return forms


def phrases(factor: str) -> dict[str, list[str]]:
    """Noun phrases for each value of a factor, which name this factor and no other.

    The factors are colour, shape, texture, size, count, position, background and background_colour; style has
    STYLE_FRAMES instead. Raises KeyError for anything else.
    """
    ways = {
        "colour": {colour: _of_any([colour]) for colour in COLOURS},
        "shape": {
            shape: [with_article(shape), plural(shape), f"the shape of {with_article(shape)}"] for shape in SHAPES
        },
        "texture": {
            texture: [
                *_of_any(TEXTURE_WORDS[texture]),
                *(f"{noun} {ending}" for ending in TEXTURE_ENDINGS[texture] for noun in ("a shape", "objects")),
            ]
            for texture in TEXTURES
        },
        "size": {size: _of_any(SIZE_WORDS[size]) for size in SIZES},
        "count": {
            str(count): [
                f"{form.format(NUMBERS[count])} {noun if count == 1 else plural(noun)}"
                for form in (SINGLE if count == 1 else dict.fromkeys(COUNTED))
                for noun in NOUNS
            ]
            for count in COUNTS
        },
        "position": {
            position: [f"{with_article(noun)} {where}" for where in position_phrases(position) for noun in NOUNS]
            for position in POSITIONS
        },
        "background": {
            kind: [
                f"{what} {where} {ground_phrase(word, '')}"
                for word in words
                for where in GROUND_PREPOSITIONS
                for what in ("a shape", "objects", "figures")
            ]
            for kind, words in GROUND_WORDS.items()
        },
        "background_colour": {
            colour: [
                f"{what} {where} {ground_phrase('', colour)}"
                for where in GROUND_PREPOSITIONS
                for what in ("a shape", "objects", "figures")
            ]
            for colour in COLOURS
        },
    }
    return ways[factor]
