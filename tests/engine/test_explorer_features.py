"""The explorer's answers about sparse features, against the arrays of the run as zarr reads them."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zarr
from fastapi.testclient import TestClient

import headspan as hs
from headspan.events import ignore
from headspan.features.pairs.space import HEADS, Space
from headspan.features.saved import read_scores, save_scores
from headspan.features.uses.saved import keep_use
from headspan.store.write.removal import remove_runs
from headspan.web.app import application
from headspan.web.features.runs import bytes_of
from headspan.web.state.explorer import Explorer
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import ToyRun
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.hand_made_uses import hand_made_attack, hand_made_bias, hand_made_edit, hand_made_edits
from tests.engine.model_in_process import InProcess
from tests.tolerances import FLOAT16_STORE

FEATURES, TOP = 43, 7
HEAD_RUN = ((2, 1), (0, 0), (1, 2))
# The numbers of the classes in the arrays.
CLASSES = {"image-dominant": 2, "cross-modal": 1, "text-dominant": 0, "undecided": -1}


@pytest.fixture(scope="module")
def path(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy store with a named run of the embedding, `hand`, and one of three heads' coordinates, `a-heads`."""
    folder = tmp_path_factory.mktemp("featured")
    store = hs.open(shutil.copytree(toy_run.path, folder / "featured.zarr"))
    rng = np.random.default_rng(5)
    texts = tuple(tuple(f"{word} {feature}" for word in ("Red", "green =")) for feature in range(FEATURES))
    found = hand_made_scores(rng.standard_normal((FEATURES, store.joint)), store.images, TOP)
    # Scores on the edges of bars, where rounding would count them twice or not at all.
    for place, value in ((1, 0.075), (2, 1.0), (4, 0.7), (5, 0.0), (6, 0.175)):
        found.mds[place] = value
    # By intervals, fewer features have a class.
    found.class_by_interval[::2] = -1
    cosines = rng.uniform(0, 1, (FEATURES, 2)).astype(np.float32)
    named = save_scores(store, hand_made_scores(**{**_fields(found), "names": texts, "name_cosines": cosines}))
    for name, use in {"probe": hand_made_bias(), "attacked": hand_made_attack(), "swap": hand_made_edit(store)}.items():
        keep_use(store, use, named, name, False, ignore)
    width = store.head(0, 0).shape[1]
    heads = hand_made_scores(rng.standard_normal((5, 3 * width)), store.images, TOP)
    nothing = {name: np.zeros_like(heads.text_active) for name in ("text_active",)}
    captions = {"top_captions": np.full((5, TOP), -1), "top_caption_codes": np.zeros((5, TOP), np.float32)}
    space = {"run": "a-heads", "space": Space(HEADS, 3 * width, heads=HEAD_RUN)}
    of_heads = save_scores(store, hand_made_scores(**{**_fields(heads), **nothing, **captions, **space}))
    keep_use(store, replace(hand_made_edits(), scores_run="a-heads"), of_heads, "others", False, ignore)
    return store.path


def _fields(scores: Any) -> dict[str, Any]:
    """The fields of scores as keywords that change `hand_made_scores`."""
    named = {name: getattr(scores, name) for name in scores.__slots__ if name not in ("lineage",)}
    return {"directions": scores.directions, "images": 2, **named}


@pytest.fixture(scope="module")
def client(path: Path) -> TestClient:
    return TestClient(application(Explorer(OpenStores([path]), InProcess(), Uploads())))


@pytest.fixture(scope="module")
def run(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the run `hand`."""
    group = zarr.open_group(path / "features" / "hand", mode="r")
    found = {name: np.asarray(group[name][...]) for name in group.array_keys()}
    # Images are saved as rows of the plan.
    shown = hs.open(path).rows.tolist()
    for name in ("top_image", "top_caption"):
        rows = found.pop(f"{name}_rows")
        found[f"{name}s"] = np.array([[shown.index(row) if row >= 0 else -1 for row in each] for each in rows.tolist()])
    return found


def ask(client: TestClient, place: str = "", **parameters: Any) -> Any:
    answer = client.get(f"/api/stores/featured/features{place}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: httpx.Response, status: int = 404) -> str:
    assert answer.status_code == status, answer.text
    sentence: str = answer.json()["error"]
    assert "\n" not in sentence
    return sentence


def test_histograms_and_classes_count_every_feature_of_the_run_once(
    client: TestClient, run: dict[str, np.ndarray]
) -> None:
    found = ask(client)
    assert (found["run"], found["runs"], found["features"]) == ("hand", ["a-heads", "hand"], FEATURES)
    assert found["has_texts"]
    assert found["named"]
    for rule in ("spread", "interval"):
        numbers = run[f"class_by_{rule}"].tolist()
        assert found["classes"][rule] == {name: numbers.count(number) for name, number in CLASSES.items()}
    for histogram in found["histograms"]:
        scores, shuffled = run[histogram["measure"]], run[f"shuffled_{histogram['measure']}"]
        bars = len(histogram["shuffled"])
        for rule in ("spread", "interval"):
            for name, number in CLASSES.items():
                wanted = [0] * bars
                for score in scores[run[f"class_by_{rule}"] == number].tolist():
                    if not math.isnan(score):
                        # Bars as the page has them: the last whose left edge `bar / bars` is not above the score.
                        wanted[max(bar for bar in range(bars) if bar / bars <= score)] += 1
                assert histogram["counts"][rule][name] == wanted
        assert sum(histogram["shuffled"]) + histogram["shuffled_without"] == FEATURES
        assert histogram["without"] == np.isnan(scores).sum() > 0
        assert histogram["shuffled_without"] == np.isnan(shuffled).sum()


@pytest.mark.parametrize("measure", ["mds", "energy"])
def test_the_list_of_a_bar_has_as_many_features_as_the_bar_counts(client: TestClient, measure: str) -> None:
    histogram = next(each for each in ask(client)["histograms"] if each["measure"] == measure)
    counts = np.sum(list(histogram["counts"]["spread"].values()), axis=0)
    bars, listed = len(counts), []
    for bar in np.flatnonzero(counts).tolist():
        found = ask(client, "/list", measure=measure, low=bar / bars, high=(bar + 1) / bars, limit=0)
        assert (found["total"], found["features"]) == (counts[bar], [])
        listed.append(found["total"])
    assert sum(listed) == FEATURES - histogram["without"]


@pytest.mark.parametrize("sort", ["feature", "mds", "energy", "active", "monosemanticity", "gap"])
@pytest.mark.parametrize("descending", [False, True])
def test_features_are_filtered_and_sorted_with_those_without_a_number_last(
    client: TestClient, run: dict[str, np.ndarray], path: Path, sort: str, descending: bool
) -> None:
    keys = {
        "feature": np.arange(FEATURES),
        "gap": np.abs(run["mds"] - run["shuffled_mds"]),
    }.get(sort, run.get(sort, np.zeros(0)))
    rows = hs.open(path).rows
    said = [
        " ".join([f"Red {each} green = {each}", *(f"caption {rows[index]}" for index in run["top_captions"][each, :3])])
        for each in range(FEATURES)
    ]
    wanted = [each for each in range(FEATURES) if run["class_by_interval"][each] in (0, -1) and "3" in said[each]]
    known = [each for each in wanted if not np.isnan(keys[each])]
    unknown = [each for each in wanted if np.isnan(keys[each])]
    known.sort(key=lambda each: -keys[each] if descending else keys[each])
    asking = {"rule": "interval", "class": ["text-dominant", "undecided"], "words": "rED 3"}
    found = ask(client, "/list", sort=sort, descending=descending, limit=1000, **asking)
    assert [row["feature"] for row in found["features"]] == known + unknown
    assert 3 < found["total"] == len(wanted) < FEATURES // 2
    page = ask(client, "/list", sort=sort, descending=descending, offset=2, limit=3, **asking)
    assert [row["feature"] for row in page["features"]] == (known + unknown)[2:5]


def test_a_row_has_the_numbers_of_the_run_with_null_for_those_it_lacks(
    client: TestClient, run: dict[str, np.ndarray], path: Path
) -> None:
    store = hs.open(path)
    for row in ask(client, "/list")["features"]:
        each = row["feature"]
        for name in ("mds", "energy", "shuffled_mds", "shuffled_energy", "monosemanticity", "cross_monosemanticity"):
            assert row[name] == (None if np.isnan(run[name][each]) else run[name][each])
        for name in ("mds", "energy"):
            ends = run[f"{name}_interval"][each].tolist()
            assert [row[f"{name}_low"], row[f"{name}_high"]] == [None if np.isnan(end) else end for end in ends]
        for name in ("active", "image_active", "text_active"):
            assert row[name] == run[name][each]
        for rule in ("spread", "interval"):
            assert CLASSES[row[f"class_by_{rule}"]] == run[f"class_by_{rule}"][each]
        tops = [index for index in run["top_images"][each, :3].tolist() if index >= 0]
        assert row["images"] == store.rows[tops].tolist()
        first = run["top_captions"][each, 0]
        assert row["caption"] == (None if first < 0 else f"caption {store.rows[first]}")


def test_a_number_and_the_words_of_captions_find_features_and_an_image_those_that_it_activates_most(
    client: TestClient, run: dict[str, np.ndarray], path: Path
) -> None:
    store = hs.open(path)
    assert 12 in [row["feature"] for row in ask(client, "/list", words="#12", limit=100)["features"]]
    said = [f"caption {store.rows[index]}" for index in run["top_captions"][9, :3]]
    assert 9 in [row["feature"] for row in ask(client, "/list", words=said[2].upper(), limit=100)["features"]]
    image = int(run["top_images"][9, 5])
    found = ask(client, "/list", image=str(store.rows[image]), limit=100)
    assert [row["feature"] for row in found["features"]] == np.flatnonzero((run["top_images"] == image).any(1)).tolist()
    assert ask(client, "/list", words="no such words")["total"] == 0


def test_a_feature_has_its_images_captions_and_texts_and_the_features_like_it(
    client: TestClient, run: dict[str, np.ndarray], path: Path
) -> None:
    store, each = hs.open(path), 9
    found = ask(client, f"/{each}")
    for side in ("image", "caption"):
        tops = run[f"top_{side}s"][each]
        assert [hit["row"] for hit in found[f"{side}s"]] == store.rows[tops].tolist()
        assert [hit["score"] for hit in found[f"{side}s"]] == pytest.approx(run[f"top_{side}_codes"][each].tolist())
        assert [hit["caption"] for hit in found[f"{side}s"]] == [f"caption {row}" for row in store.rows[tops]]
    assert [text["text"] for text in found["texts"]] == ["Red 9", "green = 9"]
    assert [text["cosine"] for text in found["texts"]] == pytest.approx(run["name_cosines"][each].tolist())
    units = run["directions"].astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosines = units @ units[each]
    nearest = [other for other in np.argsort(-cosines).tolist() if other != each][:12]
    assert [other["feature"] for other in found["alike"]] == nearest
    assert [other["cosine"] for other in found["alike"]] == pytest.approx(cosines[nearest].tolist(), abs=1e-6)
    dead = ask(client, "/3")
    assert (dead["images"], dead["captions"], dead["row"]["mds"]) == ([], [], None)


def test_the_heads_along_a_feature_are_those_whose_contributions_vary_along_it(
    client: TestClient, run: dict[str, np.ndarray], path: Path
) -> None:
    store = hs.open(path)
    found = ask(client, "/9")
    assert found["share"] == "variance"
    unit = run["directions"][9].astype(np.float64)
    unit /= np.linalg.norm(unit)
    embedding = store.embedding[:].astype(np.float64)
    lengths = np.linalg.norm(embedding, axis=1)
    whole = np.var(embedding @ unit / lengths)
    shares = {(head["layer"], head["head"]): head["share"] for head in found["heads"]}
    assert len(shares) == len(store.layers) * store.heads_per_layer
    for (layer, head), share in shares.items():
        # In numbers that are stored as float16, so on the scale of the largest share.
        along = np.var(store.head(layer, head).astype(np.float64) @ unit) / whole
        assert share == pytest.approx(along, abs=10 * FLOAT16_STORE * max(shares.values()))
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_features_of_heads_say_how_much_of_them_is_in_each_head_and_the_head_leads_to_them(
    client: TestClient, path: Path
) -> None:
    found = ask(client, "/2", run="a-heads")
    direction = read_scores(path, "a-heads").directions[2].astype(np.float64)
    parts = {head: float((part**2).sum()) for head, part in zip(HEAD_RUN, np.split(direction, 3), strict=True)}
    wanted = {head: part / sum(parts.values()) for head, part in parts.items()}
    assert found["share"] == "length"
    assert {(head["layer"], head["head"]): head["share"] for head in found["heads"]} == pytest.approx(wanted)
    assert not found["has_texts"]
    about = ask(client, run="a-heads")
    assert [(head["layer"], head["head"]) for head in about["heads"]] == list(HEAD_RUN)
    assert not about["has_texts"]
    # Without names and captions, the caption of the first image stands for a feature.
    top = read_scores(path, "a-heads").top_images[2, 0]
    assert found["row"]["caption"] == f"caption {hs.open(path).rows[top]}"
    for head, runs in (("L2.H1", ["a-heads"]), ("L2.H0", [])):
        assert client.get(f"/api/stores/featured/heads/{head}").json()["feature_runs"] == runs


def test_uses_stand_beside_their_controls_and_belong_to_their_scores(client: TestClient, path: Path) -> None:
    found = ask(client, "/uses")
    assert (found["run"], found["notices"]) == ("hand", [])
    uses = {each["run"]: each for each in found["uses"]}
    assert {name: each["use"] for name, each in uses.items()} == {"attacked": "attack", "probe": "bias", "swap": "edit"}
    (table,) = uses["probe"]["tables"]
    rows = [dict(zip(table["head"], row["cells"], strict=True)) for row in table["rows"]]
    wanted = hand_made_bias()
    assert [row["random"] for row in table["rows"]] == [each.kind == "random" for each in wanted.rows] == [False, True]
    for row, each in zip(rows, wanted.rows, strict=True):
        assert (row["read by"], row["features"]) == (each.reader, str(each.features))
        assert row["accuracy"] == f"{100 * each.figures['accuracy']:.1f} %"
        assert row["change"] == f"{100 * each.change.value:+.1f}"
    assert uses["probe"]["remarks"] == ["a <b> remark"]
    assert "10 images trained the probes" in uses["probe"]["notes"][0]
    # Pictures stand for the list of an edit's neighbours.
    edited, rows_of = hand_made_edit(hs.open(path)), hs.open(path).rows
    assert [hit["row"] for hit in uses["swap"]["images"]] == rows_of[edited.images].tolist()
    assert [hit["score"] for hit in uses["swap"]["images"]] == pytest.approx(edited.scores.tolist())
    assert uses["swap"]["title"] == "a with the cross-modal features of a <b>text</b>"
    (shares,) = uses["swap"]["tables"]
    assert shares["head"][0] == "neighbours with the value of"
    # The donor has no value of the factor; the only random set has the shares of the edit itself.
    cells = ["50.0 %", "-", "-", "25.0 %", "-"]
    assert [(row["cells"][1:], row["random"]) for row in shares["rows"]] == [(cells, False), (cells, True)]
    assert [each["run"] for each in ask(client, "/uses", run="a-heads")["uses"]] == ["others"]


def test_uses_that_are_damaged_or_of_older_scores_say_so_and_without_any_there_is_a_command(
    path: Path, tmp_path: Path
) -> None:
    store = hs.open(shutil.copytree(path, tmp_path / "featured.zarr"))
    chunk = next(
        file for file in (store.path / "uses/swap/embeddings").rglob("*") if file.is_file() and file.name.isdigit()
    )
    chunk.write_bytes(chunk.read_bytes()[:-1])
    scores = read_scores(store, "hand")
    save_scores(store, hand_made_scores(**{**_fields(scores), "pairs": 9}), overwrite=True)
    client = TestClient(application(Explorer(OpenStores([store.path]), InProcess(), Uploads())))
    problems = {each["run"]: each["problem"] for each in ask(client, "/uses")["uses"]}
    assert "uses run 'swap' is damaged" in problems.pop("swap")
    assert problems == dict.fromkeys(
        ("attacked", "probe"), "It is of an older features/hand, which was replaced or removed since."
    )
    remove_runs(store, ["uses/attacked", "uses/probe", "uses/swap", "uses/others"])
    client = TestClient(application(Explorer(OpenStores([store.path]), InProcess(), Uploads())))
    (notice,) = ask(client, "/uses")["notices"]
    assert f"`headspan features use bias {store.path} --scores hand --attribute KEY --run NAME`" in notice
    # Features of heads have no uses.
    assert ask(client, "/uses", run="a-heads")["notices"] == []


def test_runs_and_features_that_are_not_there_are_refused_in_a_sentence(client: TestClient, path: Path) -> None:
    place = "/api/stores/featured/features"
    for where in (place, f"{place}/list", f"{place}/uses", f"{place}/3"):
        assert "has no run 'x' of features; the runs are: a-heads, hand" in refusal(
            client.get(where, params={"run": "x"})
        )
    for feature in (FEATURES, -1, "x", "9" * 30, "٣"):
        assert f"features go from 0 to {FEATURES - 1}" in refusal(client.get(f"{place}/{feature}"))
    assert "shows no image with row '999'" in refusal(client.get(f"{place}/list", params={"image": "999"}))


def test_a_store_without_features_says_which_commands_make_them(toy_run: ToyRun) -> None:
    plain = TestClient(application(Explorer(OpenStores([toy_run.path]), InProcess(), Uploads())))
    found = plain.get("/api/stores/toy/features").json()
    assert (found["run"], found["runs"], found["histograms"]) == (None, [], [])
    (notice,) = found["notices"]
    for command in (f"headspan features train {toy_run.path} ", f"headspan features score {toy_run.path} "):
        assert command in notice
        assert command in refusal(plain.get("/api/stores/toy/features/0"))


def test_a_damaged_run_is_refused_in_a_sentence(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "featured.zarr"))
    chunk = next(file for file in (copy / "features" / "hand" / "mds").rglob("c/*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    client = TestClient(application(Explorer(OpenStores([copy]), InProcess(), Uploads())))
    assert "is damaged" in refusal(client.get("/api/stores/featured/features"), 400)
    assert ask(client, run="a-heads")["features"] == 5


def test_the_memory_of_a_run_is_counted_among_what_the_server_keeps(path: Path, run: dict[str, np.ndarray]) -> None:
    scores = read_scores(path, "hand")
    assert bytes_of(scores) > sum(array.nbytes for array in run.values())
    explorer = Explorer(OpenStores([path]), InProcess(), Uploads())
    with TestClient(application(explorer)) as client:
        ask(client)
    assert explorer.kept.bytes >= bytes_of(scores)
