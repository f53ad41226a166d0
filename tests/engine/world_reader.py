"""An independent parser of the image world's captions: which factors a text names, and which values are wrong.

It shares no word list and no code with headspan.world.
"""

from __future__ import annotations

import re
from typing import Any

COLOUR = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "grey"]
_SHAPES = ("circle", "square", "triangle", "pentagon", "hexagon", "star", "heart", "cross", "ring", "crescent")
SHAPE = {shape: shape for shape in (*_SHAPES, "diamond", "arrow")}
PLURAL = {**{f"{s}s": s for s in SHAPE if s != "cross"}, "crosses": "cross"}
ANY, ANY_PLURAL = {"shape", "object", "figure"}, {"shapes", "objects", "figures"}
SIZE = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
SIZE |= {"medium": "medium", "medium-sized": "medium", "mid-sized": "medium"}
TEXTURE = {
    "solid": "solid", "uniform": "solid", "striped": "striped", "stripy": "striped", "dotted": "dotted",
    "spotted": "dotted", "checkered": "checkered", "chequered": "checkered", "gradient": "gradient",
    "shaded": "gradient", "zigzag": "zigzag", "zigzagged": "zigzag",
}  # fmt: skip
ENDING = {
    "without a pattern": "solid", "with a solid fill": "solid", "with stripes": "striped",
    "with a striped pattern": "striped", "with dots": "dotted", "with spots": "dotted",
    "with a dotted pattern": "dotted", "with a checkered pattern": "checkered", "with checks": "checkered",
    "with a gradient fill": "gradient", "with a gradient": "gradient", "with a zigzag pattern": "zigzag",
    "with zigzags": "zigzag",
}  # fmt: skip
COUNT = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
STYLE = {
    r"\bflat\b": "flat", r"\boutlined?\b": "outlined", r"\bsketch\b": "sketch",
    r"\bblur\w+|\bout-of-focus\b": "blurred", r"\bshadow(ed)?\b": "shadowed", r"\bgrainy\b|\bnoisy\b": "grainy",
}  # fmt: skip
GROUND = {
    "plain": "plain", "gradient": "gradient", "two-tone": "two-tone", "divided": "two-tone",
    "speckled": "speckled", "cloudy": "cloudy", "mottled": "cloudy",
}  # fmt: skip
NAMED = ("colour", "shape", "texture", "size", "count", "position", "style", "background")

_GROUND = re.compile(r",? (?:on|against|in front of) an? ([\w -]+?) background")
_WHERE = re.compile(
    r" (?:near|in|at|on|towards) the (?P<at>(?:top|bottom) (?:left|right)|top|bottom|left|right|centre|middle)"
    r"(?: (?:corner|edge))?"
)
_STYLED = re.compile(
    r"^an? (?:flat|outlined|pencil|hand-drawn|blurred|blurry|out-of-focus|shadowed|grainy|noisy)? ?"
    r"(?:drawing|picture|illustration|sketch|image|scene) (?:of|with|showing) "
    r"|,? (?:in a (?:flat style|sketch|grainy picture|picture)|with an outline|drawn in outline|blurred"
    r"|casting a shadow|with a shadow|above a shadow)$"
)


def split(text: str) -> tuple[str, str | None, str | None, list[str]]:
    """The text without background, position and style; and these three."""
    ground = _GROUND.search(text)
    rest = _GROUND.sub("", text)
    styles = [style for pattern, style in STYLE.items() if re.search(pattern, rest)]
    while (shorter := _STYLED.sub("", rest)) != rest:
        rest = shorter
    where = _WHERE.search(rest)
    at = where["at"].replace("middle", "centre") if where else None
    return _WHERE.sub("", rest), ground[1] if ground else None, at, styles


def factors_in(text: str) -> list[str]:
    """The factors that a text names, in the order of NAMED."""
    rest, ground, where, styles = split(text)
    named = {"background": ground, "position": where, "style": styles}
    phrases = [read(part) for part in parts(rest)]
    found = {key for phrase in phrases for key, value in phrase.items() if value is not None}
    return [factor for factor in NAMED if named.get(factor) or factor in found]


def parts(rest: str) -> list[str]:
    """The phrases of a list, without "other shapes"."""
    rest = re.sub(r" (?:among|and) (?:other shapes|another shape)$", "", rest)
    return re.split(r", | and ", rest)


def read(phrase: str) -> dict[str, Any]:
    """The factors of one noun phrase. `count` is its number, and `unknown` a word that no caption should have."""
    found: dict[str, Any] = {"texture": None, "size": None, "colour": None, "shape": None, "count": None}
    found |= {"several": None, "unknown": None}
    for ending, texture in ENDING.items():
        if phrase.endswith(f" {ending}"):
            found["texture"], phrase = texture, phrase[: -len(ending) - 1]
            break
    phrase = re.sub(r"^the shape of ", "", phrase)
    if start := re.match(r"a pair of ", phrase):
        found["count"], phrase = 2, phrase[start.end() :]
    phrase = re.sub(r"^(?:exactly|only|a group of|a set of) ", "", phrase)
    if phrase.startswith("a single "):
        found["count"], phrase = 1, phrase[9:]
    *words, noun = phrase.split()
    for word in words:
        if word in ("a", "an"):
            found["several"] = False
        elif word in COUNT:
            found["count"] = COUNT[word]
        elif word in COLOUR:
            found["colour"] = word
        elif word in SIZE:
            found["size"] = SIZE[word]
        elif word in TEXTURE:
            found["texture"] = TEXTURE[word]
        elif word != "different":
            found["unknown"] = word
    many = noun in PLURAL or noun in ANY_PLURAL
    if (found["several"] is False and many) or (found["count"] is not None and many == (found["count"] == 1)):
        found["unknown"] = f"the number of {noun}"
    found["several"] = many or None
    if noun in SHAPE or noun in PLURAL:
        found["shape"] = SHAPE.get(noun) or PLURAL[noun]
    elif noun not in ANY and noun not in ANY_PLURAL:
        found["unknown"] = noun
    return found


def complaints(text: str, scene: dict[str, Any]) -> list[str]:
    """The values in the text that differ from the scene's metadata, and the words that cannot be parsed."""
    rest, ground, where, styles = split(text)
    objects, wrong = scene["objects"], []
    if styles not in ([], [scene["style"]]):
        wrong.append(f"style {styles}")
    if where is not None and (len(objects) != 1 or objects[0]["position"] != where):
        wrong.append(f"position {where}")
    for word in (ground or "").split():
        if (
            word not in (scene["background_tone"], scene["background_colour"])
            and GROUND.get(word) != scene["background"]
        ):
            wrong.append(f"background {word}")
    phrases = parts(rest)
    for phrase in phrases:
        said = read(phrase)
        if said["unknown"]:
            wrong.append(f"unknown {said['unknown']}")
        if said["count"] not in (None, len(objects)) or (said["several"] and len(objects) == 1):
            wrong.append(f"count {said['count']}")
        named = {factor: said[factor] for factor in ("colour", "shape", "texture", "size") if said[factor]}
        fits = [all(thing[factor] == value for factor, value in named.items()) for thing in objects]
        # "Red circles" describes all objects, "a red circle" one of them.
        if not (all(fits) if said["several"] else any(fits)):
            wrong.append(f"no {named}")
        if (
            not said["several"]
            and said["count"] is None
            and len(phrases) == 1
            and len(objects) > 1
            and scene["repeated"]
        ):
            wrong.append("one of many equal ones")
    if len(phrases) not in (1, len(objects)):
        wrong.append(f"{len(phrases)} objects")
    if re.search(r"other shapes$", rest) and len(objects) < 3:
        wrong.append("other shapes")
    return wrong


def skeleton(text: str) -> str:
    """The text with the words of each factor replaced by the factor's name."""

    def word(found: re.Match[str]) -> str:
        said = found[0]
        tables = {"C": COLOUR, "S": {**SHAPE, **PLURAL}, "Z": SIZE, "T": TEXTURE, "N": COUNT, "G": GROUND}
        return next((name for name, table in tables.items() if said in table), said)

    return re.sub(r"\ban\b", "a", re.sub(r"[\w-]+", word, text))
