"""Captions, prompts and the text pool of the image world, checked with an independent parser."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files

from headspan.world import (
    FACTORS,
    Scene,
    Stream,
    caption,
    focused_caption,
    prompts,
)
from headspan.world.factors import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, STYLES, TEXTURES
from tests.engine.world_reader import NAMED, complaints, factors_in, skeleton
from tools.make_world_pool import as_tsv, make_pool

POOL = files("headspan.texts") / "pools" / "world.tsv"


def test_captions_name_no_wrong_value(train: list[Scene], held_out: list[Scene]) -> None:
    for each in train + held_out:
        random = Stream(5, each.index)
        for _ in range(4):
            text = caption(each, random)
            assert not complaints(text, each.metadata()), (text, complaints(text, each.metadata()))


def test_focused_captions_are_true_and_name_one_factor(train: list[Scene]) -> None:
    found: Counter[str] = Counter()
    for each in train:
        random = Stream(6, each.index)
        text = focused_caption(each, random)
        assert not complaints(text, each.metadata()), (text, complaints(text, each.metadata()))
        named = set(factors_in(text)) - {"count"} or {"count"}
        assert len(named) == 1, (text, named)
        found.update(named)
    assert set(found) == set(NAMED)


def test_the_parser_finds_every_wrong_caption(train: list[Scene]) -> None:
    single = next(each for each in train if each.count == 1 and each.things[0].texture == "dotted")
    metadata = single.metadata()
    thing = metadata["objects"][0]
    right = (
        f"a {thing['size']} spotted {thing['colour']} {thing['shape']} on a {metadata['background_colour']} background"
    )
    assert complaints(right.replace("medium", "medium-sized"), metadata) == []
    other = {f: next(v for v in values if v != thing[f]) for f, values in (("colour", COLOURS), ("shape", SHAPES))}
    for wrong in (
        right.replace("spotted", "striped"),
        right.replace(f"{thing['colour']} {thing['shape']}", f"{other['colour']} {thing['shape']}"),
        right.replace(thing["shape"], other["shape"]),
        f"two {thing['shape']}s",
        f"a {thing['shape']}s",
        f"a {thing['shape']} near the nowhere",
        f"a {thing['shape']} on a {thing['colour']} background",
        f"a {thing['shape']} at the {'top' if thing['position'] != 'top' else 'bottom'}",
        f"a {'sketch' if metadata['style'] != 'sketch' else 'blurred picture'} of a {thing['shape']}",
    ):
        assert complaints(wrong, metadata), wrong


def test_captions_have_many_patterns_and_a_scene_has_several(train: list[Scene]) -> None:
    texts = [caption(each, Stream(1, each.index)) for each in train]
    common = [pattern for pattern, count in Counter(map(skeleton, texts)).items() if count >= 3]
    assert len(common) >= 40
    for factor in NAMED:
        named = sum(factor in factors_in(text) for text in texts)
        assert 0.05 * len(texts) < named < 0.95 * len(texts), factor
    random = Stream(2)
    assert len({caption(train[0], random) for _ in range(30)}) >= 20


def test_articles_and_plurals_are_right(train: list[Scene]) -> None:
    texts = [caption(each, Stream(2, each.index)) for each in train]
    texts += [text.lower() for text in make_pool()]
    texts += [text for factor in FACTORS for ways in prompts(factor).values() for text in ways]
    for text in texts:
        assert not re.search(
            r"\ba (?=[aeio]|un(?!iform))|\ban (?![aeiou])|\ban uniform|crosss|\bcrosses\w|  | ,|\{", text
        ), text
        assert not re.search(
            r"\b(?:two|three|four|five|six) (?:\w+[- ])*?(?:circle|cross|star|shape|object)\b", text.split(" with ")[0]
        ), text


def test_prompts_cover_each_value_and_no_two_are_equal(train: list[Scene]) -> None:
    wanted = {
        "colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES, "position": POSITIONS,
        "count": tuple("123456"), "style": STYLES, "background": BACKGROUNDS, "background_colour": COLOURS,
    }  # fmt: skip
    for factor in FACTORS:
        ways = prompts(factor)
        assert tuple(sorted(ways)) == tuple(sorted(wanted[factor]))
        assert min(map(len, ways.values())) >= 8
        texts = [text for each in ways.values() for text in each]
        assert len(set(texts)) == len(texts)


def test_prompts_and_pool_use_only_words_of_captions(train: list[Scene]) -> None:
    random = Stream(9)
    words = {word for each in train for _ in range(4) for word in re.findall(r"[\w-]+", caption(each, random))}
    for text in [t for factor in FACTORS for ways in prompts(factor).values() for t in ways] + list(make_pool()):
        assert set(re.findall(r"[\w-]+", text.lower())) <= words, text


def test_the_shipped_pool_is_byte_for_byte_what_the_script_writes() -> None:
    assert POOL.read_bytes() == as_tsv(make_pool()).encode("utf-8")


def test_the_pool_is_large_and_balanced_and_no_text_is_repeated() -> None:
    rows = [line.split("\t") for line in POOL.read_text(encoding="utf-8").splitlines()]
    assert len({text.casefold() for text, _ in rows}) == len(rows) >= 1500
    counts = Counter(concept for _, concept in rows)
    assert set(counts) == {
        "colours", "shapes", "textures", "counting", "sizes", "positions", "backgrounds", "styles",
    }  # fmt: skip
    assert max(counts.values()) <= 1.6 * min(counts.values())


def test_each_text_of_the_pool_names_one_factor() -> None:
    concepts = {
        "colour": "colours", "shape": "shapes", "texture": "textures", "count": "counting", "size": "sizes",
        "position": "positions", "background": "backgrounds", "style": "styles",
    }  # fmt: skip
    for text, concept in make_pool().items():
        assert [concepts[factor] for factor in factors_in(text.lower())] == [concept], text
