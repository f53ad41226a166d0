"""Retrieval by captions: moving objects of the image world, from videos to ranks, against plain loops in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.prune import mean_ablated
from headspan.store.head_space import Head
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.retrieval import Retrieval
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task
from headspan.video import write_frames
from tests.conftest import encoded_image, write_tar
from tests.engine.moving import clips, encode

FRAMES = 3
# Above every bit rate that these small pictures need.
BEST: dict[str, dict[str, str]] = {"mp4": {"crf": "12"}, "webm": {"b": "400000"}, "avi": {"b": "800000"}}


def task(**settings: str | bool) -> Task:
    return Task("clips", "retrieval", settings=settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """A store of the reference model on frames of moving objects, one of whose frames is broken."""
    folder = tmp_path_factory.mktemp("clips")
    members: list[tuple[str, bytes]] = []
    for number, clip in enumerate(clips(90, frames=12)):
        kind = ("mp4", "webm", "avi")[number % 3]
        members.append((f"v{number:03d}.{kind}", encode(clip.pictures, kind, options=BEST[kind])))
        members.append((f"v{number:03d}.json", json.dumps({"captions": clip.captions}).encode()))
    written = write_frames(write_tar(folder / "videos.tar", members), folder / "frames.tar", FRAMES)
    assert (written.videos, written.set_aside) == (90, ())
    # A broken frame among those of the third video.
    data = bytearray((folder / "frames.tar").read_bytes())
    place = data.index(b"v002.001.jpg") + 512
    data[place : place + 200] = bytes(200)
    (folder / "frames.tar").write_bytes(data)
    summary = hs.precompute(str(folder / "frames.tar"), folder / "s.zarr", model="reference")
    assert len(summary.bad) == 1
    return hs.open(folder / "s.zarr")


def plain_ranks(evaluation: Retrieval, store: hs.Store, renormalised: bool) -> np.ndarray:
    """One rank for each caption, by loops in float64 that know the keys of the members only."""
    members = [member.partition(".")[0] for member in store.samples(columns=["member"])["member"].to_pylist()]
    units = store.embedding.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    means = []
    for key in evaluation.keys:
        mean = np.mean([unit for unit, member in zip(units, members, strict=True) if member == key], axis=0)
        means.append(mean / np.linalg.norm(mean) if renormalised else mean)
    texts = hs.text_vectors(store, list(evaluation.captions)).astype(np.float64)
    ranks = []
    for text, truth in zip(texts, evaluation.truths, strict=True):
        scores = [float(text @ mean) for mean in means]
        others = [score for place, score in enumerate(scores) if place != truth]
        higher = sum(score > scores[truth] + 1e-6 for score in others)
        same = sum(abs(score - scores[truth]) <= 1e-6 for score in others)
        ranks.append(1 + higher + same / 2)
    return np.array(ranks)


@pytest.mark.parametrize("captions", ["first", "all"])
@pytest.mark.parametrize("renormalised", [False, True])
def test_ranks_are_those_of_a_plain_loop(store: hs.Store, captions: str, renormalised: bool) -> None:
    evaluation = Retrieval.of(task(captions=captions, renormalised=renormalised), store)
    assert len(evaluation.keys) == 90
    assert evaluation.items == (90 if captions == "first" else 270)
    ranks = plain_ranks(evaluation, store, renormalised)
    found = evaluation.figures(evaluation.outcomes(store.embedding))
    for k in (1, 5, 10, 50):
        assert found[f"R@{k}"] == pytest.approx((ranks <= k).mean())
        assert found[f"chance_R@{k}"] == k / 90
    assert found["median_rank"] == np.median(ranks)
    assert found["mean_rank"] == pytest.approx(ranks.mean())
    assert found["chance_mean_rank"] == found["chance_median_rank"] == 45.5
    assert next(iter(found)) == evaluation.headline == "R@1"


def test_moving_objects_are_found_by_their_captions(store: hs.Store) -> None:
    evaluation = Retrieval.of(task(), store)
    found = evaluation.figures(evaluation.outcomes(store.embedding))
    assert found["R@1"] > 0.9 > 80 * found["chance_R@1"]


def labelled(store: hs.Store) -> dict[str, list[Head]]:
    spans = hs.textspan(store, "world", texts_per_head=10)
    labels = hs.concepts.label_heads(store, spans)
    found: dict[str, list[Head]] = {}
    for layer, concepts in zip(labels.layers, labels.concepts, strict=True):
        for head, concept in enumerate(concepts):
            found.setdefault(str(concept), []).append((layer, head))
    return found


def matched(heads: list[Head], store: hs.Store, random: np.random.Generator) -> list[Head]:
    """As many heads of each layer, none of them among `heads`."""
    found: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        number = sum(each == layer for each, _ in heads)
        others = [head for head in range(store.heads_per_layer) if (layer, head) not in heads]
        found += [(layer, int(head)) for head in random.choice(others, number, replace=False)]
    return found


def test_recall_falls_without_the_heads_of_shapes_and_more_than_without_random_ones(store: hs.Store) -> None:
    shapes = labelled(store)["shapes"]
    # At most half of a layer's heads, so that as many others are left to compare with.
    heads = [head for layer in store.layers for head in [each for each in shapes if each[0] == layer][:3]]
    random = np.random.default_rng(0)
    evaluation = Retrieval.of(task(captions="all"), store)
    whole = evaluation.outcomes(store.embedding)
    without = evaluation.outcomes(mean_ablated(store, heads))
    # Captions of a video are not independent, so videos are drawn.
    draws = random.multinomial(90, [1 / 90] * 90, size=2000).astype(np.float32)[:, evaluation.truths]
    loss = evaluation.resampled(whole, draws) - evaluation.resampled(without, draws)
    assert np.quantile(loss, 0.025) > 0.2
    losses = []
    for _ in range(10):
        others = evaluation.outcomes(mean_ablated(store, matched(heads, store, random)))
        more = evaluation.resampled(others, draws) - evaluation.resampled(without, draws)
        assert np.quantile(more, 0.025) > 0
        losses.append(float((evaluation.resampled(whole, draws) - evaluation.resampled(others, draws)).mean()))
    assert loss.mean() > 2 * max(losses)


def test_a_resampled_recall_is_that_of_the_repeated_captions(store: hs.Store) -> None:
    evaluation = Retrieval.of(task(), store)
    outcomes = evaluation.outcomes(mean_ablated(store, [(4, 2), (5, 1)]))
    random = np.random.default_rng(1)
    counts = random.multinomial(90, [1 / 90] * 90, size=17).astype(np.float32)
    for draw, found in zip(counts, evaluation.resampled(outcomes, counts), strict=True):
        repeated = np.repeat(outcomes, draw.astype(int), axis=0)
        assert found == pytest.approx(evaluation.figures(repeated)["R@1"], abs=1e-6)
    assert evaluation.correct(outcomes).mean() == pytest.approx(evaluation.figures(outcomes)["R@1"])


def test_frames_that_could_not_be_used_leave_the_mean_over_the_others(store: hs.Store) -> None:
    evaluation = Retrieval.of(task(), store)
    assert [int((evaluation.video == number).sum()) for number in range(4)] == [3, 3, 2, 3]
    everything = hs.open(store.path, include_failed=True)
    assert everything.images == store.images + 1
    same = Retrieval.of(task(), everything)
    assert (same.video == -1).sum() == 1
    np.testing.assert_array_equal(same.outcomes(everything.embedding), evaluation.outcomes(store.embedding))


def test_some_images_give_the_videos_of_these_alone(store: hs.Store) -> None:
    images = np.arange(4, 40)
    evaluation = Retrieval.of(task(), store, images=images)
    assert len(evaluation.keys) == len({f"v{image // 3:03d}" for image in range(5, 41)})
    assert evaluation.outcomes(store.embedding[images]).shape == (evaluation.items, 2)


@pytest.mark.parametrize("name", ["msr-vtt", "msvd", "didemo"])
def test_the_shipped_tasks_of_videos_are_evaluated_as_published(name: str, store: hs.Store) -> None:
    found = evaluation_of(read_task(name), store)
    assert isinstance(found, Retrieval)
    wanted = Retrieval.of(task(captions="first", renormalised=False), store)
    assert found.captions == wanted.captions
    np.testing.assert_array_equal(found.outcomes(store.embedding), wanted.outcomes(store.embedding))


def made(vectors: np.ndarray, videos: np.ndarray, truths: list[int], **settings: bool) -> Retrieval:
    """An evaluation of hand-made vectors."""
    names = tuple(f"v{number}" for number in range(len(vectors)))
    return Retrieval(
        task(**settings),
        names,
        tuple(f"caption {number}" for number in range(len(truths))),
        vectors[truths].astype(np.float32),
        np.array(truths),
        videos,
    )


def test_equal_videos_share_their_ranks_and_recall_is_that_of_a_random_order() -> None:
    random = np.random.default_rng(2)
    vectors = np.eye(8)
    for equal in (2, 5, 8):
        embeddings = np.eye(8, dtype=np.float32)
        embeddings[:equal] = np.eye(8)[:equal].mean(axis=0)
        evaluation = made(vectors, np.arange(8), list(range(8)))
        outcomes = evaluation.outcomes(embeddings)
        found = evaluation.figures(outcomes)
        scores = vectors @ (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).T
        hits: dict[int, list[float]] = {1: [], 5: []}
        ranks = []
        for _ in range(4000):
            order = random.permutation(8)
            # A stable sort of shuffled videos breaks ties at random.
            sorted_ones = order[np.argsort(-np.round(scores[:, order], 5), axis=1, kind="stable")]
            rank = 1 + np.argmax(sorted_ones == np.arange(8)[:, None], axis=1)
            ranks.append(rank.mean())
            for k, each in hits.items():
                each.append((rank <= k).mean())
        for k, each in hits.items():
            assert found[f"R@{k}"] == pytest.approx(np.mean(each), abs=0.02)
        assert found["mean_rank"] == pytest.approx(np.mean(ranks), abs=0.05)
        assert evaluation.correct(outcomes).sum() == 8 - equal
    assert found["R@1"] == pytest.approx(found["chance_R@1"])
    assert found["mean_rank"] == pytest.approx(found["chance_mean_rank"])


def test_a_mean_that_is_not_made_unit_again_favours_videos_whose_frames_agree() -> None:
    # The second video's frames differ, so its mean is short.
    frames = np.array([[1, 0.5, 0], [1, 0.5, 0], [1, 2, 0], [1, -1, 0]], np.float32)
    query = np.array([[1, 0, 0], [1, 0, 0]])
    videos = np.array([0, 0, 1, 1])
    assert made(query, videos, [1]).outcomes(frames).tolist() == [[1, 0]]
    assert made(query, videos, [1], renormalised=True).outcomes(frames).tolist() == [[0, 0]]


def test_frames_may_be_apart_and_of_any_length() -> None:
    random = np.random.default_rng(3)
    frames = random.standard_normal((257, 16)).astype(np.float32)
    videos = random.integers(-1, 30, 257)
    evaluation = made(random.standard_normal((30, 16)), videos, [0, 29, 7])
    units = frames / np.linalg.norm(frames, axis=1, keepdims=True)
    wanted = np.stack([units[videos == video].mean(axis=0) for video in range(30)])
    np.testing.assert_allclose(evaluation.video_vectors(frames), wanted, atol=1e-6)
    scaled = frames * random.uniform(0.1, 10, (257, 1)).astype(np.float32)
    np.testing.assert_array_equal(evaluation.outcomes(scaled), evaluation.outcomes(frames))


Members = list[tuple[str, bytes]]


def precomputed(folder: Path, tars: dict[str, Members], model: str) -> hs.Store:
    for name, members in tars.items():
        write_tar(folder / name, members)
    hs.precompute([str(folder / name) for name in tars], folder / "s.zarr", model=model)
    return hs.open(folder / "s.zarr")


def test_an_image_with_captions_is_a_video_of_one_frame(tmp_path: Path) -> None:
    """As CLIP-benchmark has them: a caption a line. Equal keys in two tars are two images."""
    tars: dict[str, Members] = {}
    for tar in ("a.tar", "b.tar"):
        tars[tar] = []
        for number in range(3):
            tars[tar].append((f"{number:04d}.jpg", encoded_image(number + 10 * (tar == "b.tar"))))
            tars[tar].append((f"{number:04d}.txt", f"one {tar} {number}\nanother\n".encode()))
    # Two pictures of one key that are no numbered frames are two images.
    tars["b.tar"] += [(f"pair.{side}.jpg", encoded_image(30 + len(side))) for side in ("left", "right")]
    tars["b.tar"].append(("pair.txt", b"a pair"))
    store = precomputed(tmp_path, tars, "reference")
    evaluation = Retrieval.of(task(captions="all"), store)
    assert len(evaluation.keys) == 8
    assert evaluation.items == 6 * 2 + 2
    assert evaluation.video.tolist() == list(range(8))
    first = Retrieval.of(task(), store)
    assert first.captions[:3] == tuple(f"one a.tar {number}" for number in range(3))


def test_videos_without_captions_are_left_out_and_too_few_are_refused(tmp_path: Path) -> None:
    notes: list[str] = []
    members = [(f"v{number}.{frame:03d}.jpg", encoded_image(number)) for number in range(4) for frame in range(2)]
    captions = [(f"v{number}.txt", f"caption {number}".encode()) for number in (0, 2)]
    ordered = sorted(members + captions)
    store = precomputed(tmp_path, {"a.tar": ordered}, "reference")
    evaluation = Retrieval.of(task(), store, lambda event: notes.append(event.note))
    assert evaluation.keys == ("v0", "v2")
    assert evaluation.video.tolist() == [0, 0, -1, -1, 1, 1, -1, -1]
    assert "task clips: 2 videos without a caption left out" in notes
    with pytest.raises(SettingsError, match="needs videos or images with captions, but 1 of 2 have one"):
        Retrieval.of(task(), store, images=np.arange(4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"captions": "second"}, "captions is 'second'; set it to first or all"),
        ({"renormalised": "yes"}, "renormalised is 'yes'; set it to false or true"),
        ({"renormalised": 1}, "renormalised is 1; set it to false or true"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any], words: str, store: hs.Store) -> None:
    with pytest.raises(SettingsError, match=words):
        Retrieval.of(task(**settings), store)
