"""What the explorer answers about images: bars, zero-shot, maps, neighbours, mean ablation, and comparisons of stores.

Answers are compared with dense contributions in float64, or with the Python API.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.explore.maps.segments import contrast, segment
from headspan.explore.nearest import kept_sketches, search
from headspan.explore.nearest.neighbours import nearest_ablated, nearest_to_text
from headspan.explore.nearest.property_neighbours import property_neighbours
from headspan.explore.nearest.search import answered
from headspan.prune.direct.ablation import mean_ablated
from headspan.tasks.texts_as_classes import named_classes
from headspan.web.app import application
from headspan.web.samples.metadata import metadata_of
from headspan.web.state.explorer import Explorer
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import BROKEN_ROWS, ToyRun, encoded_image, image_members, write_tar
from tests.engine.model_in_process import InProcess
from tests.engine.test_labels_and_ccs import HEADS, POOL, keep
from tests.tolerances import FLOAT16_STORE, FLOAT32_SUM, relative_error

# Row 12 has the image index 11, since row 5 is broken.
ROW, IMAGE = 12, 11
PLACES = [(0, 0), (0, 2), (1, 0)]
STYLES = ("blurred", "two-tone")


@pytest.fixture(scope="module")
def paths(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of everything with labels and scores; one of the last layer's heads alone; one with classes."""
    folder = tmp_path_factory.mktemp("explored")
    toy = Path(shutil.copytree(toy_run.path, folder / "toy.zarr"))
    store = hs.open(toy)
    keep(store, HEADS)
    concept_consistency(store, label_heads(store, save=True).run, save=True)
    # The first shard alone: 30 of the toy's 67 images.
    shard = Path(shutil.copy(toy_run.shards[0], folder / "moved.tar"))
    settings = {**toy_run.settings(), "layers": "last1", "emit": ("heads",)}
    hs.precompute(out=folder / "heads.zarr", **{**settings, "shards": [str(shard)]})
    members = []
    for row in range(30):
        members.append((f"{row:03d}.png", encoded_image(row, 48, 33, "PNG")))
        members.append((f"{row:03d}.cls", f"{row % 3}".encode()))
        described = {"style": STYLES[row % 2], "class_name": "hat", "of/two~": [{"kinds": STYLES[row % 2]}]}
        members.append((f"{row:03d}.json", json.dumps(described).encode()))
    classed = write_tar(folder / "classed.tar", members)
    hs.precompute(out=folder / "classed.zarr", **{**settings, "shards": [str(classed)]})
    empty = Path(shutil.copytree(toy_run.path, folder / "empty.zarr"))
    shutil.rmtree(empty / "records" / "commits")
    stores = {"toy": toy, "heads": folder / "heads.zarr", "classed": folder / "classed.zarr", "empty": empty}
    return {**stores, "moved": shard}


@pytest.fixture(scope="module")
def client(paths: dict[str, Path]) -> Iterator[TestClient]:
    stores = OpenStores([paths[name] for name in ("toy", "heads", "classed", "empty")])
    with TestClient(application(Explorer(stores, InProcess(), Uploads()))) as found:
        yield found


@pytest.fixture(scope="module")
def store(paths: dict[str, Path]) -> hs.Store:
    return hs.open(paths["toy"])


def answer(client: TestClient, address: str, **parameters: Any) -> Any:
    found = client.get(f"/api/{address}", params=parameters)
    assert found.status_code == 200, found.text
    return found.json()


def dense(store: hs.Store, heads: Sequence[tuple[int, int]] | None) -> np.ndarray:
    """Every image's unit embedding, or its mean contribution through heads."""
    if heads is None:
        embedding = store.embedding.astype(np.float64)
        return np.asarray(embedding / np.linalg.norm(embedding, axis=1)[:, None])
    return np.mean([store.head(*head).astype(np.float64) for head in heads], axis=0)


def ranked(store: hs.Store, scores: np.ndarray, count: int, without: int | None = None) -> list[int]:
    """The rows of the largest scores."""
    order = [image for image in np.argsort(-scores, kind="stable") if image != without]
    return [int(store.rows[image]) for image in order[:count]]


def rows_of(answer: dict[str, Any]) -> list[int]:
    return [hit["row"] for hit in answer["hits"]]


def unit_text(store: hs.Store, text: str) -> np.ndarray:
    (vector,) = hs.text_vectors(store, [text]).astype(np.float64)
    return np.asarray(vector / np.linalg.norm(vector))


def test_an_image_is_what_the_plan_says_of_it_with_the_part_that_the_model_sees(
    client: TestClient, store: hs.Store
) -> None:
    found = answer(client, f"stores/toy/images/{ROW}")
    (sample,) = store.samples([IMAGE]).to_pylist()
    assert found["row"] == sample["row"] == ROW
    assert [found[name] for name in ("key", "caption", "member", "shard")] == [
        sample[name] for name in ("key", "caption", "member", "url")
    ]
    assert (found["id"], found["missing"], found["maps_need_model"]) == (f"{ROW}", None, False)
    width, height = Image.open(io.BytesIO(image_members([ROW])[0][1])).size
    assert (found["width"], found["height"]) == (width, height)
    # The shorter side is resized to the model's, and the middle of the longer one is cropped.
    short = min(width, height)
    seen = [found["seen"][name] for name in ("left", "top", "right", "bottom")]
    wanted = [(width - short) / 2 / width, (height - short) / 2 / height]
    assert seen == pytest.approx([*wanted, 1 - wanted[0], 1 - wanted[1]], abs=1 / 32)
    assert max(seen[2] - seen[0], seen[3] - seen[1]) <= 1.0001


def test_an_image_whose_shard_is_gone_is_answered_but_for_its_picture(
    paths: dict[str, Path], client: TestClient
) -> None:
    before = answer(client, "stores/heads/images/0")
    assert before["missing"] is None
    gone = paths["moved"].rename(paths["moved"].with_suffix(".away"))
    try:
        after = answer(client, "stores/heads/images/0")
        assert after["missing"].startswith("the picture cannot be shown, since its shard cannot be read: ")
        assert "--shards" in after["missing"]
        assert answer(client, "stores/heads/images/0/bars", text="a cat")["bars"]
        refused = client.get("/api/stores/heads/images/0/maps", params={"text": "a cat"})
        assert refused.status_code == 400
        assert "name its shards with --shards" in refused.json()["error"]
    finally:
        gone.rename(paths["moved"])
    unknown = {"width": None, "height": None, "seen": None, "missing": after["missing"]}
    assert after == {**before, **unknown}


def test_metadata_are_shown_whatever_they_are() -> None:
    assert metadata_of(None) == {}
    assert metadata_of('{"a": NaN, "b": [1e999, -Infinity, 2], "c": "\\ud800x"}') == {
        "a": None,
        "b": [None, None, 2],
        "c": "?x",
    }
    assert metadata_of("[1]") == {"metadata": [1]}
    assert metadata_of("no json") == {"metadata": "no json"}
    deep = "[" * 100_000
    assert metadata_of(deep) == {"metadata": deep}
    assert "secret" not in json.dumps(metadata_of('{"url": "https://me:secret@host/a?sig=secret"}'))


def test_bars_are_contributions_along_the_text_and_sum_to_the_cosine(client: TestClient, store: hs.Store) -> None:
    found = answer(client, f"stores/toy/images/{ROW}/bars", text="a cat")
    text = unit_text(store, "a cat")
    unit = dense(store, None)
    assert found["cosine"] == pytest.approx(unit[IMAGE] @ text, abs=1e-15)
    values = [bar["value"] for bar in found["bars"]]
    assert abs(sum(values) - found["cosine"]) < 1e-14
    assert found["sum"] == pytest.approx(found["cosine"], abs=1e-14)
    heads = store.heads().astype(np.float64).reshape(store.images, -1, store.joint)
    terms = store.mlps().astype(np.float64)
    wanted = np.concatenate([heads, terms], axis=1) @ text
    assert relative_error(values[:-1], wanted[IMAGE]) < FLOAT32_SUM
    means = [bar["mean"] for bar in found["bars"]]
    assert relative_error(means[:-1], wanted.mean(axis=0)) < FLOAT16_STORE
    assert sum(means) == pytest.approx((unit @ text).mean(), abs=1e-6)
    names = [bar["name"] for bar in found["bars"]]
    assert names[:3] == ["L0.H0", "L0.H1", "L0.H2"]
    assert names[9:] == ["initial state", "MLP of layer 0", "MLP of layer 1", "MLP of layer 2", "rounding"]
    assert [bar["label"] for bar in found["bars"]][:6] == ["places", "colours", "places", "places", "animals", None]


def test_nothing_but_rounding_remains_of_a_store_that_holds_everything(client: TestClient, store: hs.Store) -> None:
    text = unit_text(store, "a cat")
    found = answer(client, f"stores/toy/images/{ROW}/bars", text="a cat")
    sizes = sum(abs(bar["value"]) for bar in found["bars"])
    assert found["bars"][-1]["value"] == found["remainder"]
    assert abs(found["remainder"]) < FLOAT16_STORE * sizes
    # Each term centred by its own mean, with the biases as terms of their own, sums to the same.
    parts = [store.heads(convention="per_term").reshape(store.images, -1, store.joint), store.mlps("per_term")]
    whole = np.concatenate([*parts, store.biases()], axis=1)[IMAGE].astype(np.float64).sum(axis=0)
    assert whole @ text == pytest.approx(found["cosine"] - found["remainder"], abs=FLOAT16_STORE * sizes)


def test_one_bar_holds_what_the_store_does_not(client: TestClient, store: hs.Store) -> None:
    whole = answer(client, f"stores/toy/images/{ROW}/bars", text="a cat")
    found = answer(client, f"stores/heads/images/{ROW}/bars", text="a cat")
    assert [bar["name"] for bar in found["bars"]] == [
        "L2.H0",
        "L2.H1",
        "L2.H2",
        "attention of layers 0-1, MLPs and initial state",
    ]
    stored = {bar["name"]: bar["value"] for bar in whole["bars"]}
    wanted = sum(value for name, value in stored.items() if not name.startswith("L2."))
    assert found["remainder"] == pytest.approx(wanted, abs=1e-5)
    assert found["cosine"] == pytest.approx(whole["cosine"], abs=1e-6)


def test_probabilities_are_the_softmax_of_the_cosines_at_the_logit_scale(client: TestClient, store: hs.Store) -> None:
    texts = ["a cat", "a dog", "stripes"]
    found = answer(client, f"stores/toy/images/{ROW}/zero-shot", text=texts)
    cosines = np.array([dense(store, None)[IMAGE] @ unit_text(store, text) for text in texts])
    shares = np.exp(100 * cosines) / np.exp(100 * cosines).sum()
    assert [each["text"] for each in found] == texts
    assert [each["cosine"] for each in found] == pytest.approx(cosines.tolist(), abs=1e-12)
    assert [each["probability"] for each in found] == pytest.approx(shares.tolist(), rel=1e-9)
    # The bars of the same text are of the same cosine.
    assert answer(client, f"stores/toy/images/{ROW}/bars", text="a cat")["cosine"] == pytest.approx(
        found[0]["cosine"], abs=1e-15
    )


def test_the_texts_nearest_to_an_image_are_found_among_all_that_the_store_keeps(
    client: TestClient, store: hs.Store
) -> None:
    # `keep` gives the pool's texts the first axes of the joint space as vectors.
    texts = POOL.texts
    cosines = dense(store, None)[IMAGE][: len(texts)]
    found = answer(client, f"stores/toy/images/{ROW}/texts", limit=4)
    assert [each["text"] for each in found] == [texts[place] for place in np.argsort(-cosines)[:4]]
    assert [each["cosine"] for each in found] == pytest.approx(np.sort(cosines)[::-1][:4], abs=1e-6)
    assert answer(client, f"stores/heads/images/{ROW}/texts") == []


def test_maps_are_those_of_the_python_api(client: TestClient, store: hs.Store) -> None:
    texts = ["a cat", "a dog"]
    found = answer(client, f"stores/toy/images/{ROW}/maps", text=texts, through="L2.H1,L0.H0")
    wanted = segment(store, IMAGE, texts, [(0, 0), (2, 1)])
    assert [each["values"] for each in found["maps"]] == wanted.maps[0].tolist()
    assert [each["text"] for each in found["maps"]] == texts
    assert (found["rows"], found["columns"], found["source"], found["notices"]) == (4, 4, "store", [])
    assert found["full"] == wanted.full
    assert [each["total"] for each in found["maps"]] == pytest.approx(wanted.maps.sum(axis=(2, 3))[0].tolist())
    # By the dense contributions of every patch.
    patches = store.patches(IMAGE, 2)[1:, 1] + store.patches(IMAGE, 0)[1:, 0]
    assert relative_error(found["maps"][0]["values"], (patches @ unit_text(store, "a cat")).reshape(4, 4)) < 1e-4


def test_a_map_against_a_text_is_the_difference_and_exactly_antisymmetric(client: TestClient, store: hs.Store) -> None:
    address = f"stores/toy/images/{ROW}/maps"
    one, other = (
        answer(client, address, text=first, against=second)
        for first, second in (("a cat", "a dog"), ("a dog", "a cat"))
    )
    cat, dog = (
        np.array(each["values"], np.float32) for each in answer(client, address, text=["a cat", "a dog"])["maps"]
    )
    assert np.array_equal(np.array(one["maps"][0]["values"], np.float32), cat - dog)
    assert np.array_equal(one["maps"][0]["values"], -np.array(other["maps"][0]["values"]))
    assert one["maps"][0]["values"] == contrast(store, IMAGE, "a cat", "a dog").maps[0, 0].tolist()
    assert one["full"] == other["full"]
    assert one["maps"][0]["against"] == "a dog"
    (same,) = answer(client, address, text="a cat", against="a cat")["maps"]
    assert not np.any(same["values"])


def test_maps_without_some_heads_are_through_the_others(client: TestClient) -> None:
    address = f"stores/toy/images/{ROW}/maps"
    kept = "L0.H0,L0.H1,L0.H2,L1.H0,L1.H1,L2.H0,L2.H2"
    wanted = answer(client, address, text="a cat", through=kept)
    found = answer(client, address, text="a cat", through="all", without="L2.H1,L1.H2")
    assert found["maps"] == wanted["maps"]
    assert found["heads"] == wanted["heads"]
    labelled = answer(client, address, text="a cat", through="label:places")
    assert labelled["maps"] == answer(client, address, text="a cat", through="L0.H0,L0.H2,L1.H0")["maps"]


def test_maps_of_a_store_without_patches_come_from_the_model(client: TestClient) -> None:
    assert answer(client, f"stores/heads/images/{ROW}")["maps_need_model"]
    found = answer(client, f"stores/heads/images/{ROW}/maps", text="a cat", through="L2.H1")
    wanted = answer(client, f"stores/toy/images/{ROW}/maps", text="a cat", through="L2.H1")
    assert (found["source"], wanted["source"]) == ("model", "store")
    assert relative_error(found["maps"][0]["values"], wanted["maps"][0]["values"]) < 3 * FLOAT16_STORE


@pytest.mark.parametrize(
    ("through", "without", "heads"),
    [
        ("embedding", "", None),
        ("all", "", [(layer, head) for layer in range(3) for head in range(3)]),
        ("L2.H1", "", [(2, 1)]),
        ("L2.H1,L0.H2", "", [(0, 2), (2, 1)]),
        ("label:places", "", PLACES),
        ("label:Places", "L0.H2", [(0, 0), (1, 0)]),
    ],
)
def test_neighbours_are_those_of_dense_contributions(
    client: TestClient, store: hs.Store, through: str, without: str, heads: list[tuple[int, int]] | None
) -> None:
    vectors = dense(store, heads)
    found = answer(client, "stores/toy/neighbours", image=ROW, through=through, without=without, count=9)
    scores = vectors @ vectors[IMAGE]
    assert rows_of(found) == ranked(store, scores, 9, without=IMAGE)
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(
        np.sort(np.delete(scores, IMAGE))[:-10:-1], rel=1e-3
    )
    assert found["heads"] == (
        None
        if heads is None
        else [{"layer": layer, "head": head, "name": f"L{layer}.H{head}"} for layer, head in heads]
    )
    scores = vectors @ unit_text(store, "a cat")
    found = answer(client, "stores/toy/neighbours", text="a cat", through=through, without=without, count=9)
    assert rows_of(found) == ranked(store, scores, 9)
    assert found["query"] == "a cat"


def test_random_heads_are_those_of_property_neighbours(client: TestClient, store: hs.Store) -> None:
    drawn = property_neighbours(store, IMAGE, "places", count=5, seed=7, draws=1).columns[2]
    found = answer(client, "stores/toy/neighbours", image=ROW, through="random:places:7", count=5)
    assert tuple((head["layer"], head["head"]) for head in found["heads"]) == drawn.heads
    assert rows_of(found) == [int(store.rows[image]) for image in drawn.neighbours.images]
    assert found["title"] == "3 random heads outside the label places"


def test_a_dropped_in_copy_of_an_image_has_that_image_and_its_neighbours(client: TestClient, store: hs.Store) -> None:
    data = image_members([ROW])[0][1]
    uploaded = client.post("/api/stores/toy/uploads", content=data)
    assert uploaded.status_code == 200, uploaded.text
    name = uploaded.json()["id"]
    known = answer(client, f"stores/toy/images/{name}")
    stored = answer(client, f"stores/toy/images/{ROW}")
    assert (known["row"], known["id"], known["maps_need_model"]) == (None, name, True)
    assert [known[each] for each in ("width", "height", "seen")] == [
        stored[each] for each in ("width", "height", "seen")
    ]
    found = answer(client, "stores/toy/neighbours", image=name, through="label:places", count=4)
    assert rows_of(found)[0] == ROW
    assert rows_of(found)[1:] == rows_of(
        answer(client, "stores/toy/neighbours", image=ROW, through="label:places", count=3)
    )
    bars = answer(client, f"stores/toy/images/{name}/bars", text="a cat")
    wanted = answer(client, f"stores/toy/images/{ROW}/bars", text="a cat")
    assert bars["cosine"] == pytest.approx(wanted["cosine"], abs=1e-5)
    assert bars["bars"][-1]["name"] == "MLPs and initial state"
    assert bars["sum"] == pytest.approx(bars["cosine"], abs=1e-14)
    maps = answer(client, f"stores/toy/images/{name}/maps", text="a cat")
    assert maps["source"] == "model"
    stored_maps = answer(client, f"stores/toy/images/{ROW}/maps", text="a cat")
    assert relative_error(maps["maps"][0]["values"], stored_maps["maps"][0]["values"]) < 3 * FLOAT16_STORE
    changed = answer(client, f"stores/toy/what-if/{name}", without="L2.H1", text=["a cat", "a dog"], count=2)
    assert rows_of(changed["neighbours_after"])[0] == ROW


def test_what_mean_ablation_changes_is_what_the_python_api_says(client: TestClient, store: hs.Store) -> None:
    removed, texts = [(0, 1), (2, 1), (2, 2)], ["a cat", "a dog"]
    found = answer(client, f"stores/toy/what-if/{ROW}", without="L2.H2,L0.H1,L2.H1", text=texts, count=9)
    whole, ablated = dense(store, None), mean_ablated(store, removed).astype(np.float64)
    vectors = np.stack([unit_text(store, text) for text in texts])
    for name, embeddings in (("before", whole), ("after", ablated)):
        cosines = vectors @ embeddings[IMAGE]
        assert [each["cosine"] for each in found[name]] == pytest.approx(cosines.tolist(), abs=1e-6)
        shares = np.exp(100 * cosines) / np.exp(100 * cosines).sum()
        assert [each["probability"] for each in found[name]] == pytest.approx(shares.tolist(), abs=1e-4)
        near = found[f"neighbours_{name}"]
        scores = embeddings @ embeddings[IMAGE]
        assert rows_of(near) == ranked(store, scores, 9, without=IMAGE)
        assert [hit["score"] for hit in near["hits"]] == pytest.approx(
            np.sort(np.delete(scores, IMAGE))[:-10:-1], rel=1e-4
        )
    assert rows_of(found["neighbours_before"]) != rows_of(found["neighbours_after"])
    length = np.linalg.norm(ablated[IMAGE])
    assert found["embedding_cosine"] == pytest.approx(whole[IMAGE] @ ablated[IMAGE] / length, abs=1e-6)
    assert [head["name"] for head in found["without"]] == ["L0.H1", "L2.H1", "L2.H2"]
    nothing = answer(client, f"stores/toy/what-if/{ROW}", text=texts)
    assert nothing["before"] == nothing["after"]
    assert nothing["neighbours_before"]["hits"] == nothing["neighbours_after"]["hits"]
    assert nothing["embedding_cosine"] == pytest.approx(1.0)
    alone = answer(client, "stores/toy/neighbours", image=ROW, without="L0.H1,L2.H1,L2.H2", count=9)
    assert alone["hits"] == found["neighbours_after"]["hits"]


def test_a_sketch_finds_the_same_neighbours_of_ablated_embeddings(
    store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headspan.explore.nearest.neighbours import ablated_vector, nearest
    from headspan.explore.query.query_image import query_image

    removed = [(0, 1), (2, 1)]
    wanted = nearest_ablated(store, IMAGE, removed, 9)
    monkeypatch.setattr(kept_sketches, "_LEAST_BYTES", 0)
    left: list[Any] = []
    survivors = search.survivors
    monkeypatch.setattr(search, "survivors", lambda *asked: (left.append(survivors(*asked)), left[-1])[1])
    vector = ablated_vector(store, query_image(store, IMAGE), removed).astype(np.float32)
    found = nearest(store, vector, None, 9, IMAGE, removed, partial(answered, sketched=True))
    assert found.images.tolist() == wanted.images.tolist()
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert len(left) == 1
    kept_sketches.forget_sketches()


def test_neighbours_of_a_text_without_heads_are_those_of_ablated_embeddings(
    client: TestClient, store: hs.Store
) -> None:
    found = answer(client, "stores/toy/neighbours", text="a cat", without="L2.H1,L0.H2", count=9)
    scores = mean_ablated(store, [(0, 2), (2, 1)]).astype(np.float64) @ unit_text(store, "a cat")
    assert rows_of(found) == ranked(store, scores, 9)
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(np.sort(scores)[:-10:-1], rel=1e-4)
    assert found["title"] == "the whole embedding with L0.H2, L2.H1 at their means"


def test_accuracy_is_that_of_ablated_embeddings_among_the_classes_that_texts_name(
    client: TestClient, paths: dict[str, Path]
) -> None:
    store = hs.open(paths["classed"])
    texts = ["a blurred cat", "it is Two-Tone", "blurred", "no class"]
    asked = {"text": texts, "without": "L2.H0,L2.H1"}
    found = answer(client, "stores/classed/what-if/accuracy", **asked, column="style")
    # As the facets name it.
    column = next(name for name in answer(client, "stores/classed/facets")["columns"] if "kinds" in name)
    by_path = answer(client, "stores/classed/what-if/accuracy", **asked, column=column)
    assert by_path == {**found, "column": column}
    assert found["classes"] == {"blurred": ["a blurred cat", "blurred"], "two-tone": ["it is Two-Tone"]}
    assert (found["images"], found["looked_at"], found["chance"]) == (30, 30, 0.5)
    assert found["notices"] == ["1 text that names no class left out"]
    one, two, three = (unit_text(store, text) for text in texts[:3])
    mean = (one + three) / 2
    vectors = np.stack([mean / np.linalg.norm(mean), two])
    for name, embeddings in (("before", dense(store, None)), ("after", mean_ablated(store, [(2, 0), (2, 1)]))):
        right = (embeddings @ vectors.T).argmax(axis=1) == np.arange(30) % 2
        assert found[name] == pytest.approx(right.mean())


def test_a_text_names_the_class_whose_name_it_contains() -> None:
    found = named_classes(["a photo of a Polar  bear", "a bear", "a bearing", "bear"], ["bear", "polar_bear", None])
    assert (found.names, found.texts) == (("bear", "polar_bear"), ((1, 3), (0,)))
    assert found.numbers(["polar_bear", None, "cat", "bear"]).tolist() == [1, -1, -1, 0]
    numbered = named_classes(["a cat", "a dog"], ["0", "1", "2"])
    assert (numbered.names, numbered.texts) == (("0", "1"), ((0,), (1,)))
    assert named_classes(["a cat"], ["0", "dog"]).names == ()
    assert named_classes([], []).names == ()


def test_without_classes_accuracy_says_so(client: TestClient) -> None:
    found = answer(client, "stores/toy/what-if/accuracy", text="a cat", without="L0.H0")
    assert [found[name] for name in ("images", "before", "after", "chance")] == [0, None, None, None]
    assert found["notices"] == [
        "no image has a class, so there is no accuracy; name a column of the metadata with column="
    ]
    found = answer(client, "stores/classed/what-if/accuracy", text="a cat", column="style/0/x")
    assert found["notices"][0].startswith("no image's metadata has a value of 'style/0/x'")
    found = answer(client, "stores/classed/what-if/accuracy", text="a cat", column="style")
    assert found["notices"] == [
        "no text contains the name of a class, so there is no accuracy; the classes are: blurred, two-tone"
    ]


def test_two_stores_stand_side_by_side(client: TestClient, store: hs.Store, paths: dict[str, Path]) -> None:
    found = answer(client, "compare", a="toy", b="heads")
    keys = [set(each.samples(columns=["key"])["key"].to_pylist()) for each in (store, hs.open(paths["heads"]))]
    assert found["shared_images"] == len(keys[0] & keys[1]) == 30
    assert [label["label"] for label in found["labels"]] == ["places", "animals", "colours"]
    places = found["labels"][0]
    assert [[head["name"] for head in heads] for heads in places["heads"]] == [["L0.H0", "L0.H2", "L1.H0"], []]
    shares = store.magnitudes().variance_share
    assert places["variance_share"] == [pytest.approx(sum(shares[head] for head in PLACES)), None]
    assert places["ccs"] == [pytest.approx(np.mean([5, 2, 5])), None]
    assert found["ccs_counts"] == [[1, 1, 1, 1, 0, 2], []]
    by_chance, unknown = found["ccs_counts_by_chance"]
    # The toy has six heads, of which each has one of the scores.
    assert sum(by_chance) == pytest.approx(6)
    assert unknown == []
    assert found["notices"] == ["heads has no labels; run headspan textspan and headspan label"]
    same = answer(client, "compare", a="toy", b="toy")
    assert same["shared_images"] == store.images
    assert same["labels"][0]["heads"][0] == same["labels"][0]["heads"][1]
    assert same["notices"] == []


def test_neighbours_that_both_stores_name_stand_beside_chance(client: TestClient, paths: dict[str, Path]) -> None:
    key = f"{ROW:05d}"
    found = answer(client, "compare/neighbours", a="toy", b="heads", key=key, count=8)
    assert found["rows"] == [ROW, ROW]
    near = [answer(client, f"stores/{name}/neighbours", image=ROW, count=8) for name in ("toy", "heads")]
    assert [each["hits"] for each in found["neighbours"]] == [each["hits"] for each in near]
    names = [[hit["key"] for hit in each["hits"]] for each in near]
    assert found["shared"] == [name for name in names[0] if name in names[1]]
    # 29 others are in both; 66 and 29 others could be drawn.
    assert found["chance"] == pytest.approx(29 * (8 / 66) * (8 / 29))
    through = answer(client, "compare/neighbours", a="toy", b="heads", key=key, through_b="L2.H1", count=8)
    wanted = answer(client, "stores/heads/neighbours", image=ROW, through="L2.H1", count=8)
    assert through["neighbours"][1] == wanted
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(29), (20_000, 1)), axis=1)[:, :8]
    others = np.random.default_rng(1).permuted(np.tile(np.arange(66), (20_000, 1)), axis=1)[:, :8]
    both = np.mean([len(set(one) & set(other)) for one, other in zip(rows.tolist(), others.tolist(), strict=True)])
    assert found["chance"] == pytest.approx(both, abs=0.05)


BROKEN = BROKEN_ROWS[0]


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        (f"stores/toy/images/{BROKEN}", 404, "shows no image with row '5'"),
        ("stores/toy/images/-1", 404, "shows no image"),
        ("stores/toy/images/99999999999999999999999", 404, "shows no image"),
        ("stores/toy/images/upload-0123456789abcdef/bars?text=a", 404, "drop it in again"),
        (f"stores/toy/images/{ROW}/bars?text=", 422, "text"),
        (f"stores/toy/images/{ROW}/bars?text=%20%0A", 422, "text"),
        (f"stores/toy/images/{ROW}/bars", 422, "text"),
        (f"stores/toy/images/{ROW}/bars?text=a%09b", 400, "without tabs"),
        (f"stores/toy/images/{ROW}/zero-shot?{'&'.join(f'text=a{i}' for i in range(1000))}", 422, "100"),
        (f"stores/toy/images/{ROW}/maps?text=a&through=L9.H0", 404, "L9.H0 is not stored"),
        (f"stores/toy/images/{ROW}/maps?text=a&through=hat", 400, "is no head"),
        (f"stores/toy/images/{ROW}/maps?text=a&through=label:hats", 404, "the labels of run hand are"),
        ("stores/heads/neighbours?text=a&through=label:places", 404, "the store has no labels"),
        ("stores/heads/images/0/maps?text=a&through=random:places:0", 404, "the store has no labels"),
        (f"stores/toy/neighbours?image={ROW}&through=random:places", 400, "a label and a seed"),
        (f"stores/toy/neighbours?image={ROW}&through=random:places:x", 400, "a label and a seed"),
        (f"stores/toy/neighbours?image={ROW}&through=L0.H0&without=L0.H0", 400, "no head is left"),
        (f"stores/toy/neighbours?image={ROW}&without=embedding", 400, "names no heads"),
        (f"stores/toy/neighbours?image={ROW}&text=a", 400, "one of image= and text="),
        ("stores/toy/neighbours", 400, "one of image= and text="),
        (f"stores/toy/neighbours?image={ROW}&count=0", 422, "count"),
        (f"stores/toy/neighbours?image={ROW}&count=101", 422, "count"),
        (f"stores/toy/what-if/{ROW}?without=L0.H9", 404, "L0.H9 is not stored"),
        ("stores/toy/what-if/accuracy", 422, "text"),
        ("stores/empty/images/0", 404, "shows no image"),
        ("stores/empty/neighbours?text=a&without=L0.H0", 400, "no unit is finished yet"),
        ("compare/neighbours?a=empty&b=toy&key=00012", 404, "its unit is not finished"),
        ("stores/nowhere/images/0", 404, "there is no store 'nowhere'"),
        ("compare?a=toy&b=nowhere", 404, "there is no store 'nowhere'"),
        ("compare?a=toy", 422, "b"),
        ("compare/neighbours?a=toy&b=heads&key=nowhere", 404, "no image has the key 'nowhere'"),
        ("compare/neighbours?a=toy&b=heads&key=00060", 404, "no image has the key '00060'"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(client: TestClient, address: str, status: int, words: str) -> None:
    found = client.get(f"/api/{address}")
    assert found.status_code == status, found.text
    failure = found.json()
    assert words in failure["error"]
    assert set(failure) == {"error", "kind"}


def test_a_store_without_finished_images_answers_about_dropped_in_ones(client: TestClient) -> None:
    data = image_members([ROW])[0][1]
    names = [client.post(f"/api/stores/{store}/uploads", content=data).json()["id"] for store in ("empty", "toy")]
    found, wanted = (
        answer(client, f"stores/{store}/images/{name}/bars", text="a cat")
        for store, name in zip(("empty", "toy"), names, strict=True)
    )
    assert [bar["value"] for bar in found["bars"]] == [bar["value"] for bar in wanted["bars"]]
    assert {bar["mean"] for bar in found["bars"]} == {None}
    for through in ("embedding", "all", "L0.H0"):
        assert answer(client, "stores/empty/neighbours", image=names[0], through=through)["hits"] == []
    assert answer(client, f"stores/empty/what-if/{names[0]}", text="a cat")["neighbours_after"]["hits"] == []
    assert answer(client, "stores/empty/what-if/accuracy", text="a cat")["images"] == 0
    beside = answer(client, "compare", a="empty", b="toy")
    assert beside["shared_images"] == 0
    assert beside["labels"][0]["variance_share"][0] is None


def test_accuracy_is_over_a_bounded_number_of_images(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.web.routes.what_if._MOST_IMAGES", 7)
    # Another column, since classes are kept.
    found = answer(client, "stores/classed/what-if/accuracy", text="a hat", column="class_name")
    assert (found["looked_at"], found["images"], found["before"], found["chance"]) == (7, 7, 1.0, 1.0)
    assert found["notices"] == ["over 7 of 30 images, evenly spaced"]


def test_a_text_that_is_too_long_is_cut_and_every_answer_says_so(client: TestClient, store: hs.Store) -> None:
    long = "a cat and a dog " * 20
    found = answer(client, f"stores/toy/images/{ROW}/bars", text=long)
    assert long.startswith(found["cut"])
    assert len(found["cut"]) < len(long)
    cut = answer(client, f"stores/toy/images/{ROW}/bars", text=found["cut"])
    assert cut["cut"] is None
    assert cut["cosine"] == pytest.approx(found["cosine"], abs=1e-6)
    for address in (f"images/{ROW}/maps", "neighbours", f"what-if/{ROW}", "what-if/accuracy"):
        assert "longer than the model's context" in answer(client, f"stores/toy/{address}", text=long)["notices"][0]


def test_a_text_that_is_asked_twice_is_answered_once(client: TestClient) -> None:
    found = answer(client, f"stores/toy/images/{ROW}/zero-shot", text=["a cat", "a cat ", "a dog"])
    assert [each["text"] for each in found] == ["a cat", "a dog"]
    maps = answer(client, f"stores/toy/images/{ROW}/maps", text=["a cat", "a cat"])
    assert len(maps["maps"]) == 1


def test_neighbours_of_a_text_are_those_of_the_python_api(client: TestClient, store: hs.Store) -> None:
    found = answer(client, "stores/toy/neighbours", text="a cat", through="L1.H1", count=100)
    wanted = nearest_to_text(store, "a cat", [(1, 1)], 100)
    assert rows_of(found) == store.rows[wanted.images].tolist()
    assert len(rows_of(found)) == store.images
    assert [hit["key"] for hit in found["hits"]] == list(wanted.keys)
    assert [hit["caption"] for hit in found["hits"]] == list(wanted.captions)
