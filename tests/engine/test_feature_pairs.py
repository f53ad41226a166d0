"""Pairs of images and captions: every pair once, with the vectors that plain loops give, from one store or several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.decompose.formula import head_coordinates
from headspan.errors import SettingsError
from headspan.events import Progress
from headspan.features.pairs import caption_vectors as kept
from headspan.features.pairs.block import Block
from headspan.features.pairs.image_vectors import directions_in_joint
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.pairs import Pairs
from headspan.features.pairs.space import Space
from tests.engine.captioned_stores import CAPTIONS, USABLE, make_store


@pytest.fixture(scope="module")
def store(captioned_store: hs.Store) -> hs.Store:
    return captioned_store


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    return make_store(tmp_path_factory.mktemp("other"), [["a cat"], ["a bird", "a dog"], []], seed=1)


def rows_of(blocks: Iterator[Block], pairs: Pairs) -> list[tuple[int, int, str]]:
    """Store, image and caption of every pair, in the order of the blocks."""
    return [
        (store, image, pairs.caption_texts(store, [caption])[0])
        for block in blocks
        for store, image, caption in zip(
            block.store.tolist(), block.image.tolist(), block.caption.tolist(), strict=True
        )
    ]


def test_pairs_in_order_are_the_images_with_their_first_captions(store: hs.Store) -> None:
    notes: list[str] = []
    pairs = open_pairs(store, on_progress=lambda event: notes.append(event.note))
    expected = [(CAPTIONS[row] or ["none"])[0] for row in USABLE if CAPTIONS[row]]
    images = [place for place, row in enumerate(USABLE) if CAPTIONS[row]]
    for size in (1, 7, 1000):
        blocks = list(pairs.blocks(size))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert rows_of(iter(blocks), pairs) == [(0, *each) for each in zip(images, expected, strict=True)]
        assert np.array_equal(
            np.concatenate([block.texts for block in blocks if block.texts is not None]),
            pairs.caption_vectors(0)[np.concatenate([block.caption for block in blocks])],
        )
    units = store.embedding / np.linalg.norm(store.embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(blocks[0].images, units[images], atol=1e-6)
    np.testing.assert_allclose(blocks[0].texts, hs.text_vectors(store, expected), atol=1e-6)
    assert (pairs.left_out.unusable, pairs.left_out.without_caption) == (1, 1)
    assert "left out: 1 image that could not be used and 1 image without a caption" in notes
    assert len(pairs) == len(images)


def test_a_seed_decides_the_order_and_every_caption_is_drawn_in_some_epoch(store: hs.Store, other: hs.Store) -> None:
    pairs = open_pairs([store, other])
    plain = rows_of(pairs.blocks(9), pairs)
    first = rows_of(pairs.blocks(9, seed=3), pairs)
    assert [each[:2] for each in first] != [each[:2] for each in plain]
    assert sorted(each[:2] for each in first) == sorted(each[:2] for each in plain)
    assert first == rows_of(pairs.blocks(4, seed=3), pairs)
    assert first != rows_of(pairs.blocks(9, seed=4), pairs)
    assert first[18:] == rows_of(pairs.blocks(9, seed=3, skip=18), pairs)
    assert len(rows_of(pairs.blocks(9, seed=3, drop_last=True), pairs)) == len(plain) // 9 * 9
    drawn: dict[tuple[int, int], set[str]] = {}
    for epoch in range(30):
        for place, image, text in rows_of(pairs.blocks(9, seed=3, epoch=epoch), pairs):
            drawn.setdefault((place, image), set()).add(text)
    assert drawn[0, 0] == {"a red car", "a small car"}
    assert drawn[0, USABLE.index(5)] == {"two cats", "a dog", "a tree by a lake"}
    assert drawn[1, 1] == {"a bird", "a dog"}


def test_small_windows_give_each_pair_once(store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = open_pairs(store)
    whole = rows_of(pairs.blocks(5), pairs)
    monkeypatch.setattr("headspan.features.pairs.pairs._WINDOW_BYTES", 8 * pairs.space.width * 9)
    assert rows_of(pairs.blocks(5), pairs) == whole
    mixed = rows_of(pairs.blocks(5, seed=1), pairs)
    assert sorted(each[1] for each in mixed) == [each[1] for each in whole]
    assert mixed[10:] == rows_of(pairs.blocks(5, seed=1, skip=10), pairs)


def test_coordinates_of_heads_are_those_of_the_moments(store: hs.Store) -> None:
    layer = store.layers[-1]
    chosen = [(layer, 2), (store.layers[0], 1), (layer, 0)]
    pairs = open_pairs(store, "heads", heads=chosen)
    (block,) = pairs.blocks(1000)
    assert block.texts is None
    assert len(block) == store.images
    own = [
        head_coordinates(store.head_coordinates(*head), store.norm, normalised=True)[:, : store.head_dim]
        for head in chosen
    ]
    np.testing.assert_allclose(block.images, np.concatenate(own, axis=1) * pairs.space.scale, rtol=1e-5, atol=1e-7)
    # The scale makes the variances sum to 1, which comes from the moments.
    assert block.images.astype(np.float64).var(axis=0).sum() == pytest.approx(1, rel=1e-3)
    every = open_pairs(store, "heads", layers=[layer])
    assert every.space.heads == tuple((layer, head) for head in range(store.heads_per_layer))
    # Directions map to joint space as the heads' contributions do, but for the mean-and-bias terms.
    mapped = directions_in_joint(store, pairs.space, block.images / np.float32(pairs.space.scale))
    expected = sum(
        store.head(*head)
        - head_coordinates(np.zeros_like(store.head_coordinates(*head)), store.norm, True)
        @ store.head_directions(*head)
        for head in chosen
    )
    np.testing.assert_allclose(mapped, expected, atol=1e-5)


def test_patches_are_those_of_their_image_and_token(store: hs.Store) -> None:
    layer = store.layers[-1]
    pairs = open_pairs(store, "patches", heads=[(layer, 1), (layer, 3)])
    assert len(pairs) == store.images * (store.tokens - store.prefix_tokens)
    seen = set()
    for block in pairs.blocks(100, seed=0):
        assert block.token is not None
        for vector, image, token in zip(block.images[:3], block.image.tolist(), block.token.tolist(), strict=False):
            own = store.patch_coordinates(image, layer)[token, [1, 3]].reshape(-1)
            expected = own / (store.norm[image, 1] * store.norm[image, 2]) * pairs.space.scale
            np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)
        seen |= set(zip(block.image.tolist(), block.token.tolist(), strict=True))
    assert len(seen) == len(pairs)


def test_captions_are_embedded_once_and_an_interrupted_embedding_continues(
    store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.array(open_pairs(store, keep=tmp_path / "a").caption_vectors(0))
    monkeypatch.setattr(kept, "_BATCH", 8)
    events: list[Progress] = []

    def stop(event: Progress) -> None:
        if event.stage == "captions" and event.done > 20:
            raise KeyboardInterrupt
        events.append(event)

    with pytest.raises(KeyboardInterrupt):
        open_pairs(store, keep=tmp_path / "b", on_progress=stop)
    (journal,) = (tmp_path / "b").glob("*/captions.json")
    assert json.loads(journal.read_text())["done"] == 16
    events.clear()
    again = open_pairs(store, keep=tmp_path / "b", on_progress=events.append)
    assert [event.done for event in events if event.stage == "captions"][:1] == [24]
    np.testing.assert_allclose(again.caption_vectors(0), whole, atol=1e-6)
    # Nothing is left to embed, so that no model is loaded.
    monkeypatch.setattr("headspan.model.load.load_stored_model", None)
    assert np.array_equal(open_pairs(store, keep=tmp_path / "b").caption_vectors(0), again.caption_vectors(0))
    with pytest.raises(TypeError):
        open_pairs(store, keep=tmp_path / "c")


def test_a_store_that_may_only_be_read_gives_pairs(store: hs.Store, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*"))
    assert len(open_pairs(store, keep=tmp_path)) > 30
    assert sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*")) == before


def test_a_store_without_captions_is_refused_unless_images_alone_are_wanted(
    toy_store: hs.Store, tmp_path: Path
) -> None:
    bare = make_store(tmp_path, [[], [], []])
    with pytest.raises(SettingsError, match=r"s.zarr: none of its 3 images has a caption, which pairs need; write"):
        open_pairs(bare)
    alone = open_pairs(bare, captions=False)
    (block,) = alone.blocks(8)
    assert block.texts is None
    assert block.caption.tolist() == [-1, -1, -1]
    with pytest.raises(SettingsError) as caught:
        open_pairs([bare, toy_store], captions=False)
    assert str(bare.path) in str(caught.value)
    assert f"and {toy_store.path} are of different spaces (the embedding, " in str(caught.value)
    assert "against the embedding, " in str(caught.value)


def test_spaces_are_checked_in_one_sentence(store: hs.Store) -> None:
    for arguments, sentence in (
        ({"space": "head"}, "space 'head' is unknown; choose from embedding, heads, patches"),
        ({"space": "heads"}, "space 'heads' needs heads, or layers for all heads of them; give one of both"),
        ({"heads": [(0, 0)]}, "heads and layers are of the spaces heads and patches"),
        ({"space": "heads", "heads": [(5, 99)]}, "head 99 does not exist"),
        ({"space": "heads", "heads": [(5, 1), (5, 1)]}, "each named once"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            open_pairs(store, **arguments)  # type: ignore[arg-type]
    space = open_pairs(store, "heads", heads=[(5, 1)]).space
    assert Space.from_json(json.loads(json.dumps(space.as_json()))) == space
    assert space.difference(Space("embedding", 5)) == (
        "the coordinates of L5.H1, 32 numbers against the embedding, 5 numbers"
    )
