"""Scenes and shards of the image world: deterministic, with the promised combinations, sizes and placement."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headspan.errors import SettingsError
from headspan.events import Progress
from headspan.shards.plan import list_samples
from headspan.shards.urls import expand, stored_names
from headspan.world import (
    Scene,
    Stream,
    is_held_out,
    prompts,
    render,
    scene,
    write_world_shards,
)
from headspan.world.colours import grounds_for
from headspan.world.factors import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, STYLES, TEXTURES
from tests.engine.world_reader import complaints


def test_a_scene_is_the_same_in_every_batch_and_every_process(train: list[Scene]) -> None:
    # 257 scenes: more than four chunks, the last with one scene.
    together = render(train[:257])
    assert together.shape == (257, 64, 64, 3)
    for index in (0, 1, 63, 64, 130, 256):
        assert scene(7, "train", index) == train[index]
        np.testing.assert_array_equal(render([train[index]])[0], together[index])
    np.testing.assert_array_equal(render(train[256:199:-1]), together[256:199:-1])
    program = (
        "import hashlib; from headspan.world import *;"
        "print(hashlib.sha256(render([scene(7, 'train', i) for i in range(100, 203)]).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(together[100:203].tobytes()).hexdigest()


def test_seed_split_and_index_each_give_another_scene() -> None:
    pictures = {render([scene(*key)]).tobytes() for key in ((0, "train", 0), (1, "train", 0), (0, "train", 1))}
    assert len(pictures | {render([scene(0, "held_out", 0)]).tobytes()}) == 4


def test_a_stream_draws_the_upper_53_bits_of_pcg64() -> None:
    stream = Stream(1, 2, 3)
    drawn = [stream.unit() for _ in range(200)]
    words = np.random.PCG64(np.random.SeedSequence((1, 2, 3))).random_raw(200)
    assert drawn == [(int(word) >> 11) / 2**53 for word in words]


def test_held_out_triples_are_a_seventh_and_every_pair_of_values_occurs_in_training() -> None:
    every = list(itertools.product(COLOURS, SHAPES, TEXTURES))
    training = [triple for triple in every if not is_held_out(*triple)]
    assert 0.13 <= 1 - len(training) / len(every) <= 0.17
    for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        assert {tuple(t[a] for a in axes) for t in training} == {tuple(t[a] for a in axes) for t in every}


def test_training_scenes_contain_no_held_out_triple_and_the_main_object_of_held_out_scenes_is_one(
    train: list[Scene], held_out: list[Scene]
) -> None:
    assert not any(is_held_out(t.colour, t.shape, t.texture) for each in train for t in each.things)
    mains = [each.things[0] for each in held_out]
    assert all(is_held_out(main.colour, main.shape, main.texture) for main in mains)
    assert not any(
        is_held_out(t.colour, t.shape, t.texture) for each in held_out if not each.repeated for t in each.things[1:]
    )
    seen = {(t.colour, t.shape, t.texture) for each in train for t in each.things}
    for a, b in itertools.combinations(range(3), 2):
        pairs = {(triple[a], triple[b]) for triple in seen}
        assert len(pairs) == len({t[a] for t in seen}) * len({t[b] for t in seen})


def test_every_value_of_every_factor_occurs_and_none_is_rare(train: list[Scene]) -> None:
    mains = [each.things[0] for each in train]
    for counts, values, least in (
        (Counter(t.colour for t in mains), COLOURS, 0.05),
        (Counter(t.shape for t in mains), SHAPES, 0.05),
        (Counter(t.texture for t in mains), TEXTURES, 0.12),
        (Counter(t.size for t in mains), SIZES, 0.2),
        (Counter(each.count for each in train), range(1, 7), 0.05),
        (Counter(t.position for each, t in zip(train, mains, strict=True) if each.count == 1), POSITIONS, 0.08),
        (Counter(each.style for each in train), STYLES, 0.08),
        (Counter(each.background for each in train), BACKGROUNDS, 0.15),
        (Counter(each.background_colour for each in train), COLOURS, 0.04),
    ):
        assert set(counts) == set(values)
        assert min(counts.values()) >= least * counts.total()


def test_any_four_colours_have_a_background_on_which_all_are_visible() -> None:
    assert all(grounds_for(frozenset(four)) for four in itertools.combinations(COLOURS, 4))


def test_sizes_do_not_overlap_in_pixels_and_large_objects_are_at_most_four(train: list[Scene]) -> None:
    radii = {size: [t.radius * 64 for each in train for t in each.things if t.size == size] for size in SIZES}
    assert max(radii["small"]) + 1 < min(radii["medium"])
    assert max(radii["medium"]) + 1 < min(radii["large"])
    assert {each.count for each in train if each.things[0].size == "large"} == {1, 2, 3, 4}
    assert {each.count for each in train if each.things[0].size == "small"} == {1, 2, 3, 4, 5, 6}


def test_objects_are_inside_the_image_and_repeated_ones_do_not_overlap(train: list[Scene]) -> None:
    for each in train:
        for t in each.things:
            assert t.radius <= min(t.x, t.y, 1 - t.x, 1 - t.y)
        if each.repeated:
            assert len({(t.colour, t.shape, t.texture, t.size) for t in each.things}) == 1
            for a, b in itertools.combinations(each.things, 2):
                assert math.hypot(a.x - b.x, a.y - b.y) >= (a.radius + b.radius) * (1 - 1e-9)
        else:
            assert len({t.colour for t in each.things}) == len({t.shape for t in each.things}) == each.count


def test_shards_contain_what_render_draws_and_masks_are_companions_of_images(tmp_path: Path) -> None:
    events: list[Progress] = []
    pattern = write_world_shards(tmp_path / "a", 7, 11, 3, 33, "held_out", events.append)
    assert pattern == f"{tmp_path}/a/{{000000..000002}}.tar"
    assert [event.done for event in events] == [3, 6, 7]
    samples = [
        each for _, found in list_samples(stored_names(expand([pattern])), on_note=lambda note: None) for each in found
    ]
    scenes = [scene(11, "held_out", index) for index in range(7)]
    pixels, masks = render(scenes, 33, masks=True)
    assert [sample.key for sample in samples] == [f"{index:09d}" for index in range(7)]
    for index, sample in enumerate(samples):
        assert sample.metadata is not None
        assert sample.caption is not None
        assert json.loads(sample.metadata) == scenes[index].metadata(33)
        assert not complaints(sample.caption, scenes[index].metadata())
        with tarfile.open(sample.url) as tar:
            image, mask = (
                Image.open(io.BytesIO(tar.extractfile(f"{sample.key}.{kind}").read())) for kind in ("png", "mask.png")
            )
        np.testing.assert_array_equal(np.asarray(image), pixels[index])
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), masks[index])


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_images_in_a_shard(tmp_path: Path) -> None:
    def members(folder: Path) -> list[tuple[str, bytes]]:
        found = []
        for path in sorted(folder.iterdir()):
            with tarfile.open(path) as tar:
                found += [(member.name, tar.extractfile(member).read()) for member in tar]
        return found

    for name, per_shard, seed in (("one", 5, 0), ("again", 5, 0), ("wide", 257, 0), ("other", 5, 1)):
        write_world_shards(tmp_path / name, 11, seed, per_shard)
    one, again = (sorted((tmp_path / name).iterdir()) for name in ("one", "again"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in again]
    assert members(tmp_path / "one") == members(tmp_path / "wide")
    assert members(tmp_path / "one") != members(tmp_path / "other")


def test_impossible_shards_sides_and_factors_raise(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.tar").touch()
    (tmp_path / "file").touch()
    for call, message in (
        (lambda: write_world_shards(tmp_path / "x", 0, 0), "0 images in shards of 1000: nothing to write"),
        (lambda: write_world_shards(tmp_path / "x", 1, 0, 0), "1 image in shards of 0"),
        (lambda: write_world_shards(tmp_path / "x", 1, -1), "scenes and seeds are not negative"),
        (
            lambda: write_world_shards(tmp_path / "x", 1, 0, split="test"),
            "split 'test' does not exist; choose train or",
        ),
        (lambda: write_world_shards(tmp_path / "full", 1, 0), "is not empty"),
        (lambda: write_world_shards(tmp_path / "file", 1, 0), "cannot be written"),
        (lambda: write_world_shards(tmp_path / "x", 1, 0, side=8), "side 8 is out of range; choose from 32"),
        (lambda: prompts("hue"), "factor 'hue' does not exist; choose one of colour"),
    ):
        with pytest.raises(SettingsError, match=re.escape(message)):
            call()
