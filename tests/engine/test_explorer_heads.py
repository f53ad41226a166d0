"""The explorer's answers about heads, planes, categories, texts and selections.

They are compared with direct calls of the Python API, or with computations from the dense contributions.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads, read_labels
from headspan.concepts.votes import read_votes
from headspan.describe.descriptions.saved import save_descriptions
from headspan.errors import StoreError
from headspan.explore.heads.alike import covariance_overlaps, effective_ranks
from headspan.report.describe import describe_heads
from headspan.report.shown_run import scores_of
from headspan.spans.saved import read_spans
from headspan.store.head_space import stored_heads
from headspan.texts.vectors import text_vectors
from headspan.web import planes
from headspan.web.app import application
from headspan.web.regions import PlaneGrid
from headspan.web.samples.database import samples_of
from headspan.web.samples.filters import inside
from headspan.web.samples.metadata import column_of
from headspan.web.state.explorer import Explorer
from headspan.web.state.kept import Kept
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests import tolerances
from tests.conftest import ToyRun, encoded_image, write_tar
from tests.engine.hand_made_descriptions import hand_made_descriptions
from tests.engine.model_in_process import InProcess
from tests.tolerances import relative_error

COLOURS, THINGS, PLACES = ("red", "green", "blue"), ("dog", "cat", "tree", "boat"), ("in rain", "in snow", "indoors")
POOL = hs.Pool(
    "pictures",
    tuple(f"a {colour} {thing} {place}" for colour in COLOURS for thing in THINGS for place in PLACES),
    tuple(what for _ in COLOURS for what in ("animals", "animals", "plants", "boats") for _ in PLACES),
)
IMAGES, BROKEN = 47, (4, 30)
# Texts with what a query must not interpret.
AWKWARD = 'it\'s "50%" {x} $y; DROP'


def metadata(row: int) -> dict[str, Any]:
    """What the `.json` member of an image holds."""
    found = {"style": ("flat", "grainy", AWKWARD)[row % 3], "count": row % 4, "nothing": None, "row": row}
    return {**found, "objects": [{"shape": f"s{row % 2}"}], "class_name": f"the {THINGS[row % 4]}"}


def caption(row: int) -> str | None:
    """An image's caption; every ninth image has none."""
    if row % 9 == 8:
        return None
    return f"A {COLOURS[row % 3]} {THINGS[row % 4]}, {PLACES[row % 3]} of the {THINGS[(row + 1) % 4].upper()}s"


@pytest.fixture(scope="module")
def path(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 45 usable images in units of 16, with captions, classes, metadata, texts, labels and scores."""
    folder = tmp_path_factory.mktemp("explored")
    members = []
    for row in range(IMAGES):
        data = encoded_image(row)
        members.append((f"{99 - row:03d}.jpg", data[:40] if row in BROKEN else data))
        members.append((f"{99 - row:03d}.json", json.dumps(metadata(row)).encode()))
        members.append((f"{99 - row:03d}.cls", str(row % 4 - 1).encode()))
        if (text := caption(row)) is not None:
            members.append((f"{99 - row:03d}.txt", text.encode()))
    shard = write_tar(folder / "0.tar", members)
    settings = toy_run.settings(shards=[str(shard)], unit_images=16, emit=("heads",))
    hs.precompute(out=folder / "ex[a]'mple.zarr", **settings)
    store = hs.open(folder / "ex[a]'mple.zarr")
    hs.textspan(store, POOL, texts_per_head=8, draws=20, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    return store.path


@pytest.fixture(scope="module")
def store(path: Path) -> hs.Store:
    return hs.open(path)


def explorer_of(*paths: Path) -> Explorer:
    """An explorer whose models are in this process."""
    return Explorer(OpenStores(paths), InProcess(), Uploads())


@pytest.fixture(scope="module")
def client(path: Path) -> TestClient:
    return TestClient(application(explorer_of(path)))


@pytest.fixture(scope="module")
def plain(toy_run: ToyRun) -> TestClient:
    """The toy store: without results, classes and metadata."""
    return TestClient(application(explorer_of(toy_run.path)))


def get(client: TestClient, address: str, **parameters: Any) -> Any:
    """The answer as JSON. Asserts that the request succeeds."""
    (name,) = client.app.state.explorer.stores.names  # type: ignore[attr-defined]
    answer = client.get(f"/api/stores/{name}{address}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.headers["content-type"] == "application/json" else answer.content


def refused(client: TestClient, address: str, **parameters: Any) -> tuple[int, str]:
    """The status and the sentence of a refused request."""
    (name,) = client.app.state.explorer.stores.names  # type: ignore[attr-defined]
    answer = client.get(f"/api/stores/{name}{address}", params=parameters)
    assert answer.status_code >= 400
    return answer.status_code, answer.json()["error"]


def usable() -> list[int]:
    """The rows of the images that could be used."""
    return [row for row in range(IMAGES) if row not in BROKEN]


def covariance(store: hs.Store, layer: int, head: int) -> np.ndarray:
    """The covariance of a head's contributions in joint space, from the dense contributions."""
    return np.cov(store.head(layer, head).astype(np.float64), rowvar=False)


def test_overlaps_and_effective_ranks_are_those_of_dense_covariances(store: hs.Store) -> None:
    dense = {head: covariance(store, *head) for head in stored_heads(store)}
    ranks = [np.trace(each) ** 2 / (each**2).sum() for each in dense.values()]
    assert relative_error(effective_ranks(store).ravel(), ranks) < tolerances.FLOAT16_STORE
    for one, own in dense.items():
        wanted = [(own * each).sum() / np.linalg.norm(own) / np.linalg.norm(each) for each in dense.values()]
        found = covariance_overlaps(store, one)
        assert found[store.layers.index(one[0]), one[1]] == pytest.approx(1)
        assert relative_error(found.ravel(), wanted) < tolerances.FLOAT16_STORE


def test_a_store_is_described_by_its_facts_runs_properties_and_class_names(client: TestClient, store: hs.Store) -> None:
    answer = get(client, "")
    labels = read_labels(store)
    assert answer["runs"] == {
        "textspan": ["pictures"],
        "labels": ["pictures"],
        "ccs": ["pictures"],
        "default": "pictures",
    }
    for found in answer["properties"]:
        heads = [(head["layer"], head["head"]) for head in found["heads"]]
        assert heads == [head for head in stored_heads(store) if labels.name(*head) == found["label"]]
    assert sum(len(found["heads"]) for found in answer["properties"]) == int(labels.labelled.sum())
    assert {each["name"]: each["value"] for each in answer["facts"]}["Images"] == "45 good, 2 bad"
    assert answer["classes"] == {str(number - 1): f"the {THINGS[number]}" for number in range(4)}
    assert any("2 images could not be used" in notice for notice in answer["notices"])


def test_the_grid_has_the_numbers_of_the_report_for_every_stored_head(client: TestClient, store: hs.Store) -> None:
    spans = read_spans(store)
    wanted = {(each.layer, each.head): each for each in describe_heads(store, spans, scores_of(store, "pictures"))}
    answer = get(client, "/grid")
    assert (answer["run"], answer["texts_counted"]) == ("pictures", 5)
    assert [(each["layer"], each["head"]) for each in answer["heads"]] == stored_heads(store)
    for found in answer["heads"]:
        head = wanted[found["layer"], found["head"]]
        assert (found["name"], found["label"], found["ccs"]) == (head.name, head.label, head.score)
        assert found["texts"] == spans.texts(head.layer, head.head, 10)
        numbers = (head.variance_share, head.squared_length_share, head.first.explained, head.effective_rank)
        names = ("variance_share", "squared_length_share", "explained", "effective_rank")
        assert [found[name] for name in names] == pytest.approx(numbers, nan_ok=True)
        assert head.first.chance is not None
        assert (found["excess"], found["p"]) == pytest.approx((head.first.chance.excess, head.first.chance.p))


def test_a_head_has_its_texts_with_chance_and_every_vote_its_spectrum_and_heads_like_it(
    client: TestClient, store: hs.Store
) -> None:
    spans, votes = read_spans(store), read_votes(store)
    layer, head = store.layers[-1], 1
    answer = get(client, f"/heads/L{layer}.H{head}")
    assert [each["text"] for each in answer["spans"]] == spans.texts(layer, head)
    explained = [each["explained"] for each in answer["spans"]]
    assert explained == pytest.approx(spans.explained[store.layers.index(layer), head, : len(explained)].tolist())
    assert np.cumsum([each["added"] for each in answer["spans"]]) == pytest.approx(explained)
    for number, found in enumerate(answer["spans"]):
        assert found["chance"] == pytest.approx(spans.chance(layer, head, number + 1).mean)
        assert POOL.concepts is not None
        assert found["concept"] == POOL.concepts[POOL.texts.index(found["text"])]
        if number < 5:
            text = votes.head(layer, head).texts[number]
            assert found["consistent"] == text.consistent
            assert found["votes"] == {vote.judge: vote.fits for vote in text.votes}
        else:
            assert (found["consistent"], found["votes"]) == (None, {})
    variances = np.linalg.eigvalsh(covariance(store, layer, head))[::-1]
    some = np.array(answer["spectrum"])
    assert relative_error(some, variances[: len(some)] / variances.sum()) < tolerances.FLOAT16_STORE
    own = covariance(store, layer, head)
    for like in answer["alike"]:
        other = covariance(store, like["layer"], like["head"])
        wanted = (own * other).sum() / np.linalg.norm(own) / np.linalg.norm(other)
        assert like["overlap"] == pytest.approx(wanted, rel=tolerances.FLOAT16_STORE)
    overlaps = [like["overlap"] for like in answer["alike"]]
    assert overlaps == sorted(overlaps, reverse=True)
    assert len(overlaps) == len(stored_heads(store)) - 1


def test_the_extremes_are_both_ends_of_all_images_with_their_true_scores(client: TestClient, store: hs.Store) -> None:
    layer, head = store.layers[0], 0
    for text in (None, "a yellow bird"):
        answer = get(client, f"/heads/L{layer}.H{head}/extremes", count=5, **({"text": text} if text else {}))
        assert answer["text"] == (text or read_spans(store).texts(layer, head)[0])
        scores = store.head(layer, head) @ text_vectors(store, [answer["text"]])[0]
        order = np.argsort(scores)
        assert [each["row"] for each in answer["top"]] == store.rows[order[::-1][:5]].tolist()
        assert [each["row"] for each in answer["bottom"]] == store.rows[order[:5]].tolist()
        assert [each["score"] for each in answer["bottom"]] == pytest.approx(scores[order[:5]], rel=1e-4)
    first = answer["top"][0]
    row = first["row"]
    assert (first["key"], first["caption"], first["label"]) == (f"{99 - row:03d}", caption(row), row % 4 - 1)
    assert first["class_name"] == f"the {THINGS[row % 4]}"


def test_a_spectrum_is_what_the_model_s_weights_give(client: TestClient, store: hs.Store) -> None:
    head = (store.layers[-1], 0)
    answer = get(client, f"/heads/L{head[0]}.H0/spectrum")
    wanted = hs.explore.spectra(store, [head], POOL)
    assert [each["strength"] for each in answer["directions"]] == pytest.approx(wanted.singular_values[0])
    assert [each["variance_share"] for each in answer["directions"]] == pytest.approx(wanted.share[0])
    for number, found in enumerate(answer["directions"]):
        ends = [wanted.texts(*head, number, against=against) for against in (False, True)]
        assert found["texts"] == ends[0] + ends[1]
        sides = [wanted.weights[0, number, side][: len(ends[side])] for side in (0, 1)]
        assert found["weights"] == pytest.approx([*sides[0], *-sides[1]])


def points(client: TestClient, of: str, part: int) -> tuple[list[int], np.ndarray]:
    """The rows and the points of one part of a plane."""
    content = get(client, f"/planes/{of}/points", part=part)
    count = int(np.frombuffer(content, "<u4", 1)[0])
    assert len(content) == 4 + 12 * count
    rows = np.frombuffer(content, "<u4", count, 4).tolist()
    return rows, np.frombuffer(content, "<f4", offset=4 + 4 * count).reshape(2, count).T


@pytest.mark.parametrize("of", ["L2.H1", "embedding"])
def test_a_plane_is_the_first_two_principal_coordinates_in_parts_that_sample_all_images_evenly(
    path: Path, store: hs.Store, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planes, "_PART_POINTS", 10)
    monkeypatch.setattr(planes, "_BLOCK", 3)
    client = TestClient(application(explorer_of(path)))
    answer = get(client, f"/planes/{of}")
    assert (answer["images"], answer["parts"]) == (45, 5)
    parts = [points(client, of, part) for part in range(5)]
    for number, (rows, _) in enumerate(parts):
        assert rows == [int(store.rows[image]) for image in range(45) if image // 3 % 5 == number]
    rows, found = np.concatenate([rows for rows, _ in parts]), np.concatenate([each for _, each in parts])
    whole = found[np.argsort(rows)]
    dense = store.head(2, 1) if of != "embedding" else store.embedding / store.norm[:, 2:]
    centred = dense.astype(np.float64) - dense.mean(axis=0)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    wanted = left[:, :2] * sizes[:2]
    wanted *= np.sign((wanted * whole).sum(axis=0))
    assert relative_error(whole, wanted) < tolerances.FLOAT16_STORE
    assert answer["shares"] == pytest.approx((sizes[:2] ** 2 / (sizes**2).sum()).tolist(), rel=1e-2)
    first = parts[0][1]
    x0, x1, y0, y1 = answer["extent"]
    assert (first > [x0, y0]).all()
    assert (first < [x1, y1]).all()
    signs = np.sign((centred @ directions[:2].T * whole).sum(axis=0))
    along = text_vectors(store, POOL) @ (directions[:2].T * signs)
    ends = [POOL.texts[place] for axis in (0, 1) for place in (along[:, axis].argmin(), along[:, axis].argmax())]
    assert answer["ends"] == ends
    assert refused(client, f"/planes/{of}/points", part=5)[0] == 404


def test_an_image_is_placed_where_its_point_is_whether_stored_or_dropped_in(client: TestClient) -> None:
    explorer = client.app.state.explorer  # type: ignore[attr-defined]
    dropped = explorer.uploads.add(encoded_image(7))
    for of in ("L1.H0", "embedding"):
        rows, found = points(client, of, 0)
        wanted = found[rows.index(7)]
        stored = get(client, f"/planes/{of}/place/7")
        assert [stored["x"], stored["y"]] == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-5)
        answer = get(client, f"/planes/{of}/place/{dropped}")
        scale = float(np.abs(found).max())
        assert [answer["x"], answer["y"]] == pytest.approx(wanted.tolist(), abs=5e-3 * scale)
    assert refused(client, "/planes/embedding/place/4")[0] == 404


def codes(client: TestClient, by: str, **more: Any) -> list[int]:
    return list(get(client, "/categories/codes", by=by, **more))


def test_images_are_coloured_by_class_by_words_and_by_columns(client: TestClient) -> None:
    rows = usable()
    answer = get(client, "/categories", by="class")
    names = [f"the {THINGS[row % 4]}" for row in rows]
    assert [answer["names"][code] for code in codes(client, "class")] == names
    assert answer["counts"] == [names.count(name) for name in answer["names"]]
    assert answer["counts"] == sorted(answer["counts"], reverse=True)
    # The first word counts, words match as a whole, and case is ignored: "DOGs" is not "dog".
    words = ("dog", "RED", "snow")

    def first(text: str | None) -> int:
        has = [re.search(rf"(?<!\w){word}(?!\w)", text or "", re.IGNORECASE) for word in words]
        return next((place for place, found in enumerate(has) if found), 255)

    wanted = [first(caption(row)) for row in rows]
    assert set(wanted) == {0, 1, 2, 255}
    assert codes(client, "word:" + ",".join(words)) == wanted
    assert get(client, "/categories", by="word:" + ",".join(words))["counts"] == [
        wanted.count(code) for code in range(3)
    ]
    for column, value in (
        ("style", lambda row: metadata(row)["style"]),
        ("objects/0/shape", lambda row: f"s{row % 2}"),
    ):
        answer = get(client, "/categories", by=f"column:{column}")
        assert [answer["names"][code] for code in codes(client, f"column:{column}")] == [value(row) for row in rows]


def test_frequent_values_of_a_column_have_names_and_the_others_share_one(client: TestClient) -> None:
    answer = get(client, "/categories", by="column:row")
    assert len(answer["names"]) == 21
    assert answer["names"][-1] == "other"
    # All values are of one image; which of them are named is decided by all rows, usable or not.
    assert sum(answer["counts"]) == 45
    found = codes(client, "column:row")
    named = [code for code in found if code < 20]
    assert len(named) == len(set(named))
    for row, code in zip(usable(), found, strict=True):
        assert code == 20 or answer["names"][code] == f"{row}"


@pytest.mark.parametrize("of", ["L2.H0", "embedding"])
def test_a_text_colours_images_by_their_scores_through_the_plane_s_head(
    client: TestClient, store: hs.Store, of: str
) -> None:
    by = f"text:{POOL.texts[3]}"
    answer = get(client, "/categories", by=by, of=of)
    dense = store.head(2, 0) if of != "embedding" else store.embedding / store.norm[:, 2:]
    scores = dense @ text_vectors(store, POOL)[3]
    low, high = np.quantile(scores, (0.01, 0.99))
    assert (answer["continuous"], answer["names"]) == (True, [])
    assert [answer["low"], answer["high"]] == pytest.approx([low, high], rel=1e-3, abs=1e-5)
    wanted = np.rint(((scores - low) / (high - low)).clip(0, 1) * 254)
    assert np.abs(np.array(codes(client, by, of=of)) - wanted).max() <= 1


def test_a_part_of_a_plane_has_the_same_codes_in_whatever_order_parts_are_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = f"text:{POOL.texts[3]}"
    monkeypatch.setattr(planes, "_PART_POINTS", 10)
    monkeypatch.setattr(planes, "_BLOCK", 3)
    first, others = (TestClient(application(explorer_of(path))) for _ in range(2))
    whole = [codes(others, by, of="L2.H0", part=part) for part in (0, 1, 2, 3, 4)]
    assert [len(part) for part in whole] == [9] * 5
    for part in (3, 0, 3, 1):
        found = np.array(codes(first, by, of="L2.H0", part=part))
        # The last bits of float32 products differ with the number of rows.
        assert np.abs(found - whole[part]).max() <= 1


def test_facets_are_the_classes_words_and_columns_of_the_images(client: TestClient) -> None:
    answer = get(client, "/facets")
    assert answer["classes"] == {str(label): [row % 4 - 1 for row in usable()].count(label) for label in (-1, 0, 1, 2)}
    assert answer["class_names"]["-1"] == "the dog"
    texts = [text.lower() for row in range(IMAGES) if (text := caption(row)) is not None]
    assert answer["captions_counted"] == len(texts)
    counts = {word["word"]: word["images"] for word in answer["words"]}
    for word in ("red", "dog", "snow", "boats"):
        assert counts[word] == sum(word in re.findall(r"\w+", text) for text in texts)
    assert not {"a", "of", "the", "in"} & counts.keys()
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert {"style", "count", "objects/0/shape", "class_name"} <= set(answer["columns"])
    assert "nothing" not in answer["columns"]
    assert set(answer["values"]["style"]) == {"flat", "grainy", AWKWARD}


def rows_of(client: TestClient, **parameters: Any) -> list[int]:
    answer = get(client, "/images", **{"limit": 100, **parameters})
    rows = [image["row"] for image in answer["images"]]
    assert answer["total"] == len(rows)
    return rows


def test_images_are_listed_by_words_classes_keys_and_metadata(client: TestClient, store: hs.Store) -> None:
    assert rows_of(client) == usable()
    assert rows_of(client, words="dog,red") == store.select(words=["dog", "red"]).rows.tolist()
    either = store.select(words=["dog", "red"], any_word=True).rows.tolist()
    assert rows_of(client, words="dog,red", any_word=True) == either
    assert rows_of(client, classes="-1,2") == [row for row in usable() if row % 4 in (0, 3)]
    assert rows_of(client, keys=["099", "060", "095", "none"]) == [0, 39]
    assert rows_of(client, column="style", value=AWKWARD) == [row for row in usable() if row % 3 == 2]
    assert rows_of(client, column="count", value="3") == [row for row in usable() if row % 4 == 3]
    both = rows_of(client, words="cat", classes="0", column="style", value="flat")
    assert both == [row for row in store.select(words="cat", classes=0).rows.tolist() if row % 3 == 0]
    answer = get(client, "/images", words="cat", classes="0")
    assert answer["words"] == "whose caption has the word cat, of class the cat"
    for values in ({"words": "zebra"}, {"column": "style", "value": "' OR 1=1 --"}, {"keys": "%"}, {"classes": "77"}):
        assert rows_of(client, **values) == []


def test_a_described_class_leads_to_all_its_images_whatever_its_values_are_a_path_of(
    path: Path, tmp_path: Path
) -> None:
    copy = hs.open(shutil.copytree(path, tmp_path / "described.zarr"))
    first = usable()[:8]
    for run, key, value in (
        ("nested", "objects.shape", lambda row: f"s{row % 2}"),
        ("number", "count", lambda row: str(row % 4)),
    ):
        names = (value(first[0]), value(first[1]))
        shown = [[row for row in first if value(row) == name][:2] for name in names]
        hand = hand_made_descriptions(
            run=run, classes=names, classes_from=f"key {key}", class_rows=np.array(shown, np.int64)
        )
        save_descriptions(copy, hand)
        client = TestClient(application(explorer_of(copy.path)))
        for name, each in zip(names, get(client, "/descriptions", run=run)["classes"], strict=True):
            assert rows_of(client, **each["images_query"]) == [row for row in usable() if value(row) == name]
    kept = {"a/b": [{"c~d": True}, {"c~d": 1.5}]}
    assert column_of(json.dumps(kept), ("a/b", "c~d")) == ("a~1b/0/c~0d", "true")
    assert column_of(json.dumps(kept), ("a/b", "1", "c~d")) == ("a~1b/1/c~0d", "1.5")
    assert [column_of(text, ("a",)) for text in (None, "[]", "{", '{"a": {}}')] == [None] * 4


def test_a_listing_has_pages_in_the_order_of_rows_or_keys(client: TestClient) -> None:
    page = get(client, "/images", offset=40, limit=3)
    assert page["total"] == 45
    assert [image["row"] for image in page["images"]] == usable()[40:43]
    assert get(client, "/images", offset=1000)["images"] == []
    # Keys fall while rows rise.
    assert rows_of(client, order="key", words="dog") == rows_of(client, words="dog")[::-1]


def test_a_polygon_chooses_the_points_inside(client: TestClient) -> None:
    rows, found = points(client, "L2.H1", 0)
    middle, spread = found.mean(axis=0), found.std(axis=0)
    # A triangle, and a bow tie whose edges cross: a point in both of its halves is inside.
    triangle = middle + spread * np.array([(-2, -2), (2, -2), (0, 2)])
    tie = middle + spread * np.array([(-2, -2), (2, 2), (2, -2), (-2, 2)])

    def in_triangle(point: np.ndarray, corners: np.ndarray) -> bool:
        sides = [
            (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0])
            for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)
        ]
        return min(sides) > 0 or max(sides) < 0

    halves = (np.array([tie[0], middle, tie[3]]), np.array([tie[1], middle, tie[2]]))
    for polygon, wanted in (
        (triangle, [row for row, point in zip(rows, found, strict=True) if in_triangle(point, triangle)]),
        (tie, [row for row, each in zip(rows, found, strict=True) if any(in_triangle(each, half) for half in halves)]),
    ):
        assert 0 < len(wanted) < 45
        text = ";".join(f"{x},{y}" for x, y in polygon)
        assert rows_of(client, plane="L2.H1", polygon=text) == wanted


def test_a_selection_is_described_as_textspan_and_beside_store_do(client: TestClient, store: hs.Store) -> None:
    answer = get(client, "/selection/heads", words="red", texts_per_head=6)
    spans = hs.textspan(store, POOL, 6, images=store.select(words="red"), draws=0)
    wanted = hs.explore.beside_store(store, spans)
    assert answer["images"] == len(store.select(words="red"))
    assert [(each["layer"], each["head"]) for each in answer["heads"]] == list(wanted.heads)
    for place, found in enumerate(answer["heads"]):
        assert found["texts"] == spans.texts(*wanted.heads[place])
        assert found["towards"] == wanted.towards[place]
        numbers = [found[name] for name in ("variance_share", "store_variance_share", "ratio", "shift")]
        own = [getattr(wanted, name)[place] for name in ("variance_share", "store_variance_share", "ratio", "shift")]
        assert numbers == pytest.approx(own)


def test_of_many_selected_images_an_even_sample_is_described_and_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headspan.web.routes.selections._DESCRIBED", 20)
    answer = get(TestClient(application(explorer_of(path))), "/selection/heads")
    assert answer["images"] == 45
    assert "20 of the 45 images are described, taken evenly over their rows." in answer["notices"]


def test_a_text_has_the_shares_of_every_head_and_says_if_it_was_cut(client: TestClient, store: hs.Store) -> None:
    for text in (POOL.texts[0], "a text that nobody stored"):
        answer, wanted = get(client, "/texts", text=text), hs.explore.text_shares(store, text)
        assert [(each["layer"], each["head"]) for each in answer["heads"]] == wanted.ranking()
        assert [each["share"] for each in answer["heads"]] == pytest.approx(
            [wanted.of(*head) for head in wanted.ranking()]
        )
        assert wanted.percentile is not None
        percentiles = [wanted.percentile[store.layers.index(layer), head] for layer, head in wanted.ranking()]
        assert [each["percentile"] for each in answer["heads"]] == pytest.approx(percentiles)
        assert (answer["pool"], answer["cut"]) == ("pictures", None)
        assert answer["score_deviation"] == pytest.approx(wanted.score_deviation)
    long = "a very long text " * 20
    assert 0 < len(get(client, "/texts", text=long)["cut"]) < len(long)


def test_known_texts_begin_with_the_prefix_or_have_it_within(client: TestClient) -> None:
    assert get(client, "/texts/known", prefix="A RED  dog")["texts"] == [f"a red dog {place}" for place in PLACES]
    within = get(client, "/texts/known", prefix="boat in", limit=5)["texts"]
    assert within == [text for text in POOL.texts if "boat in" in text][:5]
    assert get(client, "/texts/known", prefix="zebra")["texts"] == []


@pytest.mark.parametrize(
    ("address", "parameters", "status", "message"),
    [
        ("/heads/L9.H0", {}, 404, "L9.H0 is not stored; stored are layers"),
        ("/heads/L0.H9", {}, 404, "L0.H9 is not stored"),
        ("/heads/dog", {}, 404, "'dog' is no head; write L2.H0"),
        ("/grid", {"run": "nope"}, 404, "has no run 'nope'; the runs are: pictures"),
        ("/planes/L9.H0", {}, 404, "is not stored"),
        ("/planes/L1.H0/place/999", {}, 404, "shows no image with row '999'"),
        ("/planes/L1.H0/place/upload-00", {}, 404, "no longer kept"),
        ("/categories", {"by": "colour"}, 400, "is no colouring; give class, word:dog,cat"),
        ("/categories", {"by": "word: ,"}, 400, "the list of words is empty"),
        ("/categories", {"by": "word:" + ",".join(map(str, range(21)))}, 400, "give at most 20"),
        ("/categories", {"by": "column:nope"}, 400, "no image has metadata 'nope'"),
        ("/categories", {"by": "text: "}, 400, "names no text"),
        ("/images", {"classes": "dog"}, 400, "are no numbers of classes"),
        ("/images", {"classes": "9" * 30}, 400, "are no numbers of classes"),
        ("/images", {"column": "style"}, 400, "column and value go together"),
        ("/images", {"plane": "L1.H0"}, 400, "plane and polygon go together"),
        ("/images", {"plane": "L1.H0", "polygon": "1,2;3,4"}, 400, "is no polygon; give 3 to 400 corners"),
        ("/images", {"plane": "L1.H0", "polygon": "1,2;nan,4;5,6"}, 400, "is no polygon"),
        ("/selection/heads", {"words": "zebra"}, 400, "no image passes this filter"),
        ("/selection/heads", {"draws": 3}, 400, "too few for a p of 0.05"),
    ],
)
def test_what_is_not_here_or_not_understood_is_refused_in_one_sentence(
    client: TestClient, address: str, parameters: dict[str, Any], status: int, message: str
) -> None:
    found, sentence = refused(client, address, **parameters)
    assert (found, message in sentence, "\n" in sentence) == (status, True, False), sentence


def test_a_store_without_results_classes_and_metadata_says_what_adds_them(plain: TestClient) -> None:
    answer = get(plain, "")
    assert answer["runs"]["default"] is None
    assert any("headspan textspan" in notice for notice in answer["notices"])
    grid = get(plain, "/grid")
    assert grid["run"] is None
    assert all(head["label"] is None and head["texts"] == [] and head["variance_share"] > 0 for head in grid["heads"])
    head = get(plain, "/heads/L2.H0")
    assert (head["spans"], bool(head["spectrum"]), bool(head["alike"])) == ([], True, True)
    assert "headspan textspan" in head["notices"][0]
    assert get(plain, "/planes/L2.H0")["ends"] == [None] * 4
    facets = get(plain, "/facets")
    assert (facets["classes"], facets["columns"]) == ({}, [])
    assert get(plain, "/texts/known")["texts"] == []
    for address, parameters, message in (
        ("/heads/L2.H0/extremes", {}, "L2.H0 has no texts; give a text"),
        ("/categories", {"by": "class"}, "no image of this store has a class"),
        ("/images", {"classes": "3"}, "no image has a class"),
        ("/selection/heads", {}, "run headspan textspan"),
    ):
        status, sentence = refused(plain, address, **parameters)
        assert (status, message in sentence) == (400, True), sentence


def test_a_store_without_a_finished_unit_shows_no_images_and_says_so(path: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(path, tmp_path / "begun.zarr"))
    for file in (begun / "records" / "commits").iterdir():
        if file.name != "planned.json":
            file.unlink()
    client = TestClient(application(explorer_of(begun)))
    assert any("0 of 47 images are computed" in notice for notice in get(client, "")["notices"])
    assert all(head["texts"] and head["variance_share"] is None for head in get(client, "/grid")["heads"])
    assert get(client, "/images")["total"] == 0
    assert get(client, "/heads/L2.H0")["spectrum"] == []
    assert get(client, "/heads/L2.H0/extremes")["top"] == []
    assert get(client, "/facets")["words"] == []
    for address in ("/planes/embedding", "/selection/heads", "/categories"):
        assert refused(client, address)[0] == 400
    assert "no unit is finished yet" in refused(client, "/texts", text=POOL.texts[0])[1]


def test_the_database_of_samples_opens_nothing_else_and_cannot_be_configured(store: hs.Store, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    database = samples_of(store)
    for query in (
        f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
        "SET enable_external_access = true",
        f"COPY (SELECT 1) TO '{tmp_path}/written.csv'",
        "INSTALL httpfs",
    ):
        with pytest.raises(StoreError):
            database.rows(query)
    assert not (tmp_path / "written.csv").exists()


def test_what_is_kept_is_bounded_computed_once_and_dropped_with_an_earlier_store(toy_run: ToyRun) -> None:
    one, other, kept = hs.open(toy_run.path), hs.open(toy_run.path), Kept(most_small_bytes=100 + 3 * 1024)
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    for number in (1, 2, 1, 3, 1):
        assert kept.get("s", one, number, lambda number=number: make(number), lambda _: 40) == number  # type: ignore[misc]
    assert made == [1, 2, 3]
    assert kept.bytes == 2 * (40 + 1024)
    assert kept.get("s", other, 1, lambda: make(4), lambda _: 40) == 4
    # A request that began with the earlier store gets its own answer, which is not kept.
    assert kept.get("s", one, 1, lambda: make(5), lambda _: 40) == 5
    assert kept.get("s", other, 1, lambda: make(6), lambda _: 40) == 4
    with pytest.raises(ZeroDivisionError):
        kept.get("s", other, 7, lambda: 1 // 0)
    assert kept.get("s", other, 7, lambda: make(7), lambda _: 40) == 7
    found, begun = [], threading.Barrier(4)

    def ask() -> None:
        begun.wait()
        found.append(kept.get("s", other, 8, lambda: make(8), lambda _: 40))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [8] * 4
    assert made.count(8) == 1


def test_results_that_are_added_are_shown_by_the_next_answers(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.web.state.open_stores._CHECK_SECONDS", 0.0)
    client = TestClient(application(explorer_of(toy_copy)))
    assert get(client, "/grid")["run"] is None
    hs.textspan(hs.open(toy_copy), POOL, texts_per_head=5, draws=0, save=True)
    answer = get(client, "/grid")
    assert answer["run"] == "pictures"
    assert all(head["texts"] for head in answer["heads"])
    assert all(head["chance"] is None and head["p"] is None for head in answer["heads"])
    assert any("headspan label" in notice for notice in get(client, "")["notices"])


def test_stored_answers_need_no_torch(path: Path) -> None:
    program = """
import sys
from fastapi.testclient import TestClient
from headspan.web.app import application
from headspan.web.state.explorer import Explorer
from headspan.web.state.model_processes import ModelProcesses
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
explorer = Explorer(OpenStores([sys.argv[1]]), ModelProcesses(None, ()), Uploads())
client = TestClient(application(explorer))
(name,) = explorer.stores.names
for address in (
    "", "/grid", "/heads/L2.H1", "/heads/L2.H1/extremes", "/planes/L2.H1", "/planes/embedding/points?part=0",
    "/planes/embedding/place/7", "/categories?by=class", "/categories/codes?by=text:a red dog in rain&of=L2.H1",
    "/texts?text=a red dog in rain", "/facets", "/images?words=dog", "/selection/heads?words=dog",
):
    answer = client.get(f"/api/stores/{name}{address}")
    assert answer.status_code == 200, (address, answer.text)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_large_things_that_are_kept_do_not_replace_small_ones(toy_run: ToyRun) -> None:
    store, kept, made = hs.open(toy_run.path), Kept(most_bytes=5 << 20, most_small_bytes=4096), []

    def ask(key: str, size_bytes: int) -> None:
        kept.get("s", store, key, lambda: made.append(key), lambda _: size_bytes)

    for key, size_bytes in (("small", 9), ("large", 2 << 20), ("larger", 4 << 20), ("small", 9), ("large", 2 << 20)):
        ask(key, size_bytes)
    assert made == ["small", "large", "larger", "large"]
    assert kept.bytes == 9 + (2 << 20) + 2 * 1024


@pytest.mark.parametrize("points", [0, 1, 70_001])
def test_a_grid_chooses_the_points_that_comparing_all_of_them_chooses(points: int) -> None:
    random = np.random.default_rng(points)
    plane = np.asfortranarray(random.normal((0.01, -3), (0.05, 0.7), (points, 2)).astype(np.float32))
    if points > 1:
        # Points on a line, and points on the corners of polygons.
        plane[:9, 1], plane[9:12] = -3, [(0, -3), (0.1, -3), (0.05, -2)]
    grid, shares = PlaneGrid(plane), []
    for number in range(40):
        scale = 10.0 ** random.uniform(-3, 5 if number % 4 == 0 else 0)
        polygon = random.normal((0, -3), scale, (random.integers(3, 9), 2))
        if number % 5 == 0:
            polygon = np.array([(0, -3), (0.1, -3), (0.05, -2)]) * (1, 1 + number / 40)
        corners = tuple(map(tuple, polygon.tolist()))
        expected = inside(plane, corners)
        np.testing.assert_array_equal(grid.inside(corners), expected)
        shares.append(expected.mean() if points else 0)
    assert points < 2 or (min(shares) < 0.01 and max(shares) > 0.5)


def test_parts_of_planes_are_blocks_of_all_images_once(monkeypatch: pytest.MonkeyPatch, toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    monkeypatch.setattr(planes, "_PART_POINTS", store.images // 3)
    monkeypatch.setattr(planes, "_BLOCK", 4)
    parts = [planes.images_of(store, part) for part in range(planes.parts_of(store))]
    assert len(parts) > 2
    assert sorted(np.concatenate(parts).tolist()) == list(range(store.images))
    assert parts[1][:5].tolist() == [4, 5, 6, 7, 4 * (len(parts) + 1)]
