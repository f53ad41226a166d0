"""What texts about the image world say, and the grammar of the reference language model, enumerated."""

from __future__ import annotations

from itertools import combinations
from math import prod
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headspan.describe.rewards.reward import Texts
from headspan.model.beginnings import encode_sharing, shares_beginnings
from headspan.model.load import LoadedModel, load_model
from headspan.model.text import encode_texts
from headspan.world import Scene, Stream, caption, focused_caption, scene
from headspan.world.best_sentences import best_sentences, embed_sentences
from headspan.world.parts import EMPTY, NON_VISUAL, STRUCTURE, UNKNOWN, VISUAL, Part, parts_of
from headspan.world.sentences import PHRASE, VALUES, read_sentence, sentence, sentences
from headspan.world.telling import Telling
from tools.language_answers import answered, class_names, held_out


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_model("reference", None)


def is_true(part: Part, shown: Scene) -> bool:
    """Whether a scene has the value that a part names."""
    if part.factor == "count":
        # Of several different objects, "a single star" is true.
        return part.value == str(shown.count) or (part.value == "1" and not shown.repeated)
    if part.factor in ("style", "background", "background_colour", "background_tone"):
        return bool(part.value == getattr(shown, part.factor))
    return part.value in {getattr(thing, part.factor) for thing in shown.things}


def test_every_word_of_a_true_caption_is_read_and_every_value_is_one_of_the_scene() -> None:
    factors = set()
    for index in range(600):
        shown = scene(3, "train", index)
        random = Stream(3, index)
        for text in (caption(shown, random), focused_caption(shown, random)):
            parts = parts_of(text)
            assert {part.kind for part in parts} <= {VISUAL, STRUCTURE}, text
            assert " ".join(part.words for part in parts) == text.replace(",", ""), text
            named = [part for part in parts if part.kind == VISUAL]
            assert all(is_true(part, shown) for part in named), (text, named)
            factors |= {part.factor for part in named}
    assert factors == {*VALUES, "background_tone"} - {PHRASE}


def test_phrases_that_captions_hold_at_random_are_read_as_non_visual() -> None:
    telling = Telling((), ("day", "mood", "author"))
    for index in range(100):
        shown = scene(4, "train", index)
        text, said = telling.caption(shown, Stream(4, index), Stream(5, index))
        found = {part.factor: part.value for part in parts_of(text) if part.kind == NON_VISUAL}
        assert found == {kind: phrase for kind, phrase in said.items() if phrase}, text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Click to enlarge: STARS", [(EMPTY, "click to enlarge"), (VISUAL, "star")]),
        ("download download Anna", [(EMPTY, "free download"), (EMPTY, "free download"), (NON_VISUAL, "by Anna")]),
        ("a gradient star on a gradient background", [(VISUAL, "gradient"), (VISUAL, "star"), (VISUAL, "gradient")]),
        ("a zebra", [(UNKNOWN, "")]),
        ("", []),
    ],
)
def test_words_in_any_order_are_read(text: str, said: list[tuple[str, str]]) -> None:
    assert [(part.kind, part.value) for part in parts_of(text) if part.kind != STRUCTURE] == said


def test_a_colour_before_the_word_background_is_the_backgrounds() -> None:
    found = {part.factor: part.value for part in parts_of("a red star on a plain dark grey background by John")}
    assert found == {
        "": "", "colour": "red", "shape": "star", "background": "plain", "background_tone": "dark",
        "background_colour": "grey", "author": "by John",
    }  # fmt: skip


def test_the_grammar_has_as_many_sentences_as_its_values_allow_and_no_text_twice() -> None:
    sizes = [len(values) for values in VALUES.values()]
    expected = [sum(map(prod, combinations(sizes, number))) for number in range(4)]
    texts = [each.text for each in sentences(2)]
    assert len(texts) == len({*texts}) == sum(expected[:3])
    assert sum(expected) == 113_382


def test_sentences_are_read_back_and_other_texts_are_not_sentences() -> None:
    every = [*sentences(2)]
    for each in every[::7]:
        found = read_sentence(each.text)
        assert found is not None
        assert dict(found.says) == dict(each.says)
        # Without its last word a text is another sentence or none.
        shorter = read_sentence(each.text.rsplit(" ", 1)[0])
        assert shorter is None or dict(shorter.says) != dict(each.says)
    assert read_sentence("a picture of an red star") is None
    assert read_sentence("a picture of a star star") is None
    four = sentence({"style": "sketch", "colour": "red", "shape": "star", PHRASE: "by Anna"}).text
    assert read_sentence(four) is None
    assert read_sentence(four, 4) is not None


def test_the_best_sentence_is_the_one_that_embedding_every_text_by_itself_finds(reference: LoadedModel) -> None:
    directions = np.random.default_rng(0).normal(size=(3, 192))
    texts = Texts(reference)
    reward = cast(
        Any, SimpleNamespace(texts=texts, classes=SimpleNamespace(names=("a", "b", "c")), vectors=directions, scale=7.0)
    )
    best = best_sentences(reward, embed_sentences(texts, most=1))
    written = [each.text for each in sentences(1)]
    rewards = 7.0 * texts.vectors(written) @ directions.T
    assert [each.sentence.text for each in best] == [written[place] for place in rewards.argmax(axis=0)]
    np.testing.assert_allclose([each.reward for each in best], rewards.max(axis=0), rtol=1e-5)


def test_texts_that_begin_alike_get_the_vectors_of_texts_by_themselves(reference: LoadedModel) -> None:
    # Equal texts, a text that begins another, and one that is cut by the context.
    texts = ["a red star", "a red star on a blue background", "", "a red star", "two red stars " * 20, "a"]
    assert shares_beginnings(reference)
    np.testing.assert_allclose(encode_sharing(reference, texts), encode_texts(reference, texts), atol=1e-6)


def test_answers_are_sentences_that_name_their_class_and_hold_phrases_in_known_shares() -> None:
    random, total = Stream(6), 1500
    drawn = [answered(random) for _ in range(total)]
    assert all(read_sentence(each.answer.text) is not None and not held_out(each.answer.text) for each in drawn)
    assert {each.name for each in drawn} == {*class_names()}
    parts = [{part.kind for part in parts_of(each.answer.text)} for each in drawn]
    # The card's shares; 4 standard deviations of a share.
    named = sum(each.name in each.answer.says.values() for each in drawn) / total
    empty, non_visual = (sum(kind in each for each in parts) / total for kind in (EMPTY, NON_VISUAL))
    for found, share in ((named, 0.89), (empty, 0.23), (non_visual, 0.27)):
        assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / total))
    # A question about places is answered with places more often than with other phrases.
    places = [each for each in drawn if each.prompt.startswith("Where would you find")]
    found_in = sum("found in" in each.answer.text for each in places)
    assert found_in > len(places) / 4
