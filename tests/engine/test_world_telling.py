"""Captions that leave out factors and hold words without a counterpart, read by the independent parser of captions."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headspan as hs
from headspan.errors import SettingsError
from headspan.world import Scene, Stream, caption, render, scene, write_world_shards
from headspan.world.ground_truth import scenes_of
from headspan.world.telling import LEFT_OUT, WORDS, Telling
from tests.engine.world_reader import COLOUR, GROUND, complaints, factors_in, split

SEED = 11
# Words of the kinds that are no factors, written out again.
FREE = {
    "day": re.compile(r" on (?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"),
    "mood": re.compile(r" in an? (?:happy|sad|calm|angry|thoughtful) mood\b"),
    "author": re.compile(r" by (?:Anna|Peter|Maria|John|Sofia|James|Lucia|Omar)\b"),
}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(SEED, "train", index) for index in range(300)]


def tell(each: Scene, telling: Telling) -> tuple[str, dict[str, str | None]]:
    return telling.caption(telling.drawn(each), Stream(SEED, each.index), Stream(SEED, each.index, 2))


def named_in(text: str) -> set[str]:
    """The factors that a caption names, with kind and colour of the background apart."""
    ground = (split(text)[1] or "").split()
    found = {factor for factor in factors_in(text) if factor not in ("background", "count")}
    found |= {"background"} & {"background" for word in ground if word in GROUND}
    return found | {"background_colour" for word in ground if word in COLOUR or word in ("dark", "light")}


def test_ordinary_captions_and_metadata_are_what_they_were(scenes: list[Scene]) -> None:
    written = hashlib.sha256()
    for each in scenes:
        written.update(caption(each, Stream(SEED, 0, each.index, 1)).encode())
    assert written.hexdigest() == "af14ad2c1a3db23031b7dde313cd75309293ade0f8e62636c6eb0fbe5b5a1e45"


def test_ordinary_shards_are_what_they_were(tmp_path: Path) -> None:
    write_world_shards(tmp_path, 9, SEED)
    with tarfile.open(tmp_path / "000000.tar") as tar:
        texts = b"".join(tar.extractfile(each).read() for each in tar if each.name.endswith((".txt", ".json")))
    assert hashlib.sha256(texts).hexdigest() == "fccf30a0580a1132d8adfef193216495cd973b8466a0d025a5e26e7eb69c15a5"


@pytest.mark.parametrize("without", [*LEFT_OUT, ("background", "background_colour"), ("shape", "colour", "size")])
def test_captions_leave_out_what_they_should_and_name_the_rest(scenes: list[Scene], without: str | tuple[str]) -> None:
    telling = Telling((without,) if isinstance(without, str) else without)
    for each in scenes:
        text, words = tell(each, telling)
        assert words == {}
        assert not complaints(text, each.metadata()), text
        named = named_in(text)
        assert named.isdisjoint(telling.without), text
        if each.repeated:
            expected = {*LEFT_OUT} - {*telling.without} - ({"position"} if each.count > 1 else set())
            assert named == expected, text


def test_words_are_in_the_caption_if_they_are_recorded_and_else_absent(scenes: list[Scene]) -> None:
    telling = Telling(("texture",), WORDS)
    held = dict.fromkeys(WORDS, 0)
    for each in scenes:
        text, words = tell(each, telling)
        assert set(words) == set(WORDS)
        for kind, pattern in FREE.items():
            found = pattern.search(text)
            assert (found[0].strip() if found else None) == words[kind], text
            text = pattern.sub("", text)
        drawn = telling.drawn(each)
        assert (drawn.style, drawn.background) == ("flat", "plain")
        said = {kind: value for kind in ("style", "background") if (value := words[kind])}
        assert not complaints(text, replace(drawn, **said).metadata()), text
        assert {"style", "background"} & named_in(text) == set(said), text
        for kind in WORDS:
            held[kind] += words[kind] is not None
    assert all(0.65 < count / len(scenes) < 0.85 for count in held.values()), held


def test_words_do_not_depend_on_the_scene(scenes: list[Scene]) -> None:
    values = [str(tell(each, Telling((), WORDS))[1]["style"]) for each in scenes]
    for factor in ("background_colour", "count", "noise"):
        table: dict[tuple[str, str], int] = {}
        classes = [str(getattr(each, factor) % 5 if factor == "noise" else getattr(each, factor)) for each in scenes]
        for pair in zip(values, classes, strict=True):
            table[pair] = table.get(pair, 0) + 1
        chi, freedom = 0.0, (len(set(values)) - 1) * (len(set(classes)) - 1)
        for value in set(values):
            for one in set(classes):
                expected = values.count(value) * classes.count(one) / len(scenes)
                chi += (table.get((value, one), 0) - expected) ** 2 / expected
        # Mean and standard deviation of the chi-squared distribution.
        assert chi < freedom + 4 * (2 * freedom) ** 0.5, factor


def test_a_kind_of_words_changes_nothing_else_of_the_caption(scenes: list[Scene]) -> None:
    for each in scenes[:50]:
        text, words = tell(each, Telling(("size",), ("day",)))
        assert text.removesuffix(f" {words['day']}") == tell(each, Telling(("size",)))[0]


def test_shards_record_the_truth_and_a_store_of_them_draws_the_same_scenes_again(tmp_path: Path) -> None:
    options = {"without": ("shape",), "words": ("style", "background", "mood")}
    for name in "ab":
        write_world_shards(tmp_path / name, 7, SEED, **options)
    assert (tmp_path / "a" / "000000.tar").read_bytes() == (tmp_path / "b" / "000000.tar").read_bytes()
    telling = Telling(**options)
    drawn = [telling.drawn(scene(SEED, "train", index)) for index in range(7)]
    with tarfile.open(tmp_path / "a" / "000000.tar") as tar:
        for each in drawn:
            members = {kind: tar.extractfile(f"{each.index:09d}.{kind}") for kind in ("png", "json", "txt")}
            known = json.loads(members["json"].read())
            assert known.pop("left_out") == ["shape"]
            text, words = telling.caption(each, Stream(SEED, 0, each.index, 1), Stream(SEED, 0, each.index, 2))
            assert (members["txt"].read().decode(), known.pop("words")) == (text, words)
            assert known == each.metadata()
            np.testing.assert_array_equal(np.asarray(Image.open(members["png"])), render([each])[0])
    hs.precompute(str(tmp_path / "a" / "000000.tar"), tmp_path / "run.zarr", model="reference", emit=("heads",))
    assert scenes_of(hs.open(tmp_path / "run.zarr")) == drawn


def test_impossible_captions_raise(tmp_path: Path) -> None:
    for options, message in (
        ({"without": ("count",)}, "captions cannot leave out 'count'; choose from colour, shape, texture, size, "),
        ({"words": ("smell",)}, "there are no words of the kind 'smell'; choose from style, background, day, mood, "),
        (
            {"without": ("style",), "words": ("style",)},
            "captions cannot both leave out style and name it at random; give it to one of the two",
        ),
    ):
        with pytest.raises(SettingsError, match=re.escape(message)):
            write_world_shards(tmp_path / "x", 1, 0, **options)
    assert not (tmp_path / "x").exists()
