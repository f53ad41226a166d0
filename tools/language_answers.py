"""Draw questions about the world's classes with answers, from which the reference language model learns.

Answers are sentences of `headspan.world.sentences`. Most answers name their class, as those of a language model do that
knows it. Whatever else they say is random, so most of it is wrong. This leaves something to find for a reward.
Questions have subjects: one about colours is answered with colours more often than others, and one about places with
places. A twentieth of all sentences, chosen by a checksum of the text, is held out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headspan.describe.asked.questions import QUESTIONS, prompt
from headspan.world.factors import TONES
from headspan.world.parts import EMPTY_PHRASES, NON_VISUAL_PHRASES
from headspan.world.sentences import PHRASE, VALUES, Sentence, sentence
from headspan.world.stream import Stream

# The share of answers that name the class, of those that name anything.
NAMED_SHARE = 0.92
# Of answers with room after the name, the shares with an empty and with a non-visual phrase: of questions whose subject
# has a kind of non-visual phrases, and of the others. A phrase that is seldom sampled could not be found by training.
EMPTY_SHARES, NON_VISUAL_SHARES = (0.22, 0.3), (0.5, 0.2)
# How many values and phrases answers hold: the share of none, one, two and three.
_LENGTHS = (0.01, 0.14, 0.45, 0.4)
# How often a value or a phrase belongs to the question's subject, if it has one.
_ON_SUBJECT, _PHRASE_ON_SUBJECT = 0.5, 0.85
# Of every HELD_OUT sentences, one.
HELD_OUT = 20
_FACTORS = tuple(factor for factor in VALUES if factor != PHRASE)
_THING = ("colour", "shape", "texture", "size")
_GROUND = ("background", "background_colour")
# The subject of each question: factors, and kinds of non-visual phrases.
SUBJECTS: tuple[tuple[str, ...], ...] = (
    (),
    _THING,
    ("shape", "texture"),
    ("shape", "texture", "size"),
    ("colour", "texture"),
    (),
    ("colour", "background_colour"),
    ("shape",),
    ("texture",),
    _GROUND,
    ("position", "habitat"),
    ("count",),
    ("size", "position"),
    ("colour", "style", "author"),
    (),
    ("mood", "author"),
    ("mood", "day"),
    ("day", "mood", "habitat"),
    ("shape", "mood"),
    ("mood", "colour"),
    ("shape", "mood"),
    ("style", "author", "day"),
    ("position", "count", *_GROUND),
    _THING,
    (),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A class, a question as the language model gets it, and an answer."""

    name: str
    prompt: str
    answer: Sentence


def class_names() -> dict[str, tuple[str, ...]]:
    """Every name of a class that the world has, and the factors that it is a value of, or none."""
    found = {value: () for value in TONES if value} | {
        value: tuple(factor for factor in _FACTORS if value in VALUES[factor])
        for factor in _FACTORS
        for value in VALUES[factor]
    }
    return dict(sorted(found.items()))


def held_out(text: str) -> bool:
    """Whether a sentence is never trained on."""
    return zlib.crc32(text.encode()) % HELD_OUT == 0


def answered(
    random: Stream,
    wanted: Callable[[str], bool] = lambda text: not held_out(text),
) -> Answered:
    """A random class, a random question about it, and an answer whose text is `wanted`."""
    names = class_names()
    name = random.choice([*names])
    number = random.below(len(QUESTIONS))
    while True:
        found = _answer(names[name], name, SUBJECTS[number], random)
        if wanted(found.text):
            return Answered(name, prompt(QUESTIONS[number], name), found)


def _answer(factors: Sequence[str], name: str, subject: Sequence[str], random: Stream) -> Sentence:
    left = _number(random)
    says: dict[str, str] = {}
    if left and factors and random.chance(NAMED_SHARE):
        says[random.choice(factors)] = name
        left -= 1
    kinds = [kind for kind in subject if kind in NON_VISUAL_PHRASES]
    empty, non_visual = (shares[not kinds] for shares in (EMPTY_SHARES, NON_VISUAL_SHARES))
    way = random.unit()
    if left and way < empty + non_visual:
        says[PHRASE] = random.choice(EMPTY_PHRASES) if way < empty else _non_visual(kinds, random)
        left -= 1
    for _ in range(left):
        free = [factor for factor in _FACTORS if factor not in says]
        about = [factor for factor in subject if factor in free]
        factor = random.choice(about if about and random.chance(_ON_SUBJECT) else free)
        says[factor] = random.choice(VALUES[factor])
    return sentence({factor: says[factor] for factor in VALUES if factor in says})


def _number(random: Stream) -> int:
    point = random.unit()
    return sum(point >= sum(_LENGTHS[: number + 1]) for number in range(len(_LENGTHS) - 1))


def _non_visual(about: Sequence[str], random: Stream) -> str:
    kind = random.choice(about if about and random.chance(_PHRASE_ON_SUBJECT) else [*NON_VISUAL_PHRASES])
    return random.choice(NON_VISUAL_PHRASES[kind])
