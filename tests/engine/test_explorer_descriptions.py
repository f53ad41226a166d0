"""The explorer's answers about descriptions of classes, against the run as it was saved."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import headspan as hs
from headspan.describe.descriptions.figures import figure_table
from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
from headspan.describe.rewards.target import Target
from headspan.web.app import application
from headspan.web.described.runs import bytes_of
from headspan.web.state.explorer import Explorer
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import ToyRun
from tests.engine.hand_made_descriptions import ROWS, hand_made_descriptions
from tests.engine.model_in_process import InProcess
from tests.engine.test_explorer_features import refusal

NAMES = ("spurious", "visual", "non-visual", "undecided")


@pytest.fixture(scope="module")
def path(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy store with three runs: inspected ones of the embedding and of a head, and one of an untrained model."""
    store = hs.open(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("described") / "described.zarr"))
    rows = store.rows[[[0, 3, 5], [1, 2, 4]]]
    # Of the second class there are only two images.
    rows[1, 2] = -1
    save_descriptions(store, hand_made_descriptions(class_rows=rows))
    of_head = {"run": "a-head", "target": Target(((2, 1),), contrast=True), "classes_from": "key kind"}
    plain = {"run": "a-plain", "adapter_sha256": None, "classes_from": "key objects.shape", "quality": {}, "log": {}}
    save_descriptions(store, hand_made_descriptions(**of_head))
    save_descriptions(store, hand_made_descriptions(False, **plain))
    return store.path


@pytest.fixture(scope="module")
def client(path: Path) -> TestClient:
    return TestClient(application(Explorer(OpenStores([path]), InProcess(), Uploads())))


def ask(client: TestClient, place: str = "", **parameters: Any) -> Any:
    answer = client.get(f"/api/stores/described/descriptions{place}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_classes_count_sampled_descriptions_and_show_the_best_one_and_their_images(
    client: TestClient, path: Path
) -> None:
    found = ask(client)
    # The trained one of the whole embedding is shown first.
    assert (found["run"], [each["run"] for each in found["runs"]]) == ("hand", ["a-head", "a-plain", "hand"])
    assert [each["trained"] for each in found["runs"]] == [True, False, True]
    assert (found["texts"], found["sampled"]) == (len(ROWS), sum(row[3] for row in ROWS))
    rows = hs.open(path).rows
    for number, known in enumerate(found["classes"]):
        own = [row for row in ROWS if row[1] == number]
        times = sum(row[3] for row in own)
        best = max(own, key=lambda row: row[5])
        assert (known["texts"], known["sampled"]) == (len(own), times)
        assert known["reward"] == pytest.approx(sum(row[3] * row[5] for row in own) / times)
        assert known["best"]["text"] == best[0]
        verdicts = {name: sum(row[3] for row in own if NAMES[row[6]] == name) for name in NAMES}
        assert known["verdicts"] == verdicts
        assert known["images"] == rows[[0, 3, 5] if number == 0 else [1, 2]].tolist()
    assert found["verdicts"] == {name: sum(row[3] for row in ROWS if NAMES[row[6]] == name) for name in NAMES}
    assert found["attributes"] == {"shape": 12, "use": 1}
    assert found["log"]["kl"] == [0.0, 1.5, None]


def test_figures_stand_in_the_columns_of_their_baselines(client: TestClient) -> None:
    table = ask(client)["quality"]
    assert table["columns"] == ["trained", "untrained", "best of 64", "class names", "chance"]
    rows = {each["name"]: each for each in table["rows"]}
    assert [*rows] == ["reward", "KL", "zero-shot accuracy", "distinct words", "cut"]
    values = {name: [value["value"] for value in each["values"]] for name, each in rows.items()}
    assert values["reward"] == [21.9, 18.5, 21.0, None, None]
    assert (rows["reward"]["values"][0]["low"], rows["reward"]["values"][0]["high"]) == (20.5, 23.0)
    assert values["KL"] == [3.2, 0.0, 3.1746, None, None]
    assert values["zero-shot accuracy"] == [0.875, None, None, 0.75, 0.5]
    assert [each["share"] for each in table["rows"]] == [False, False, True, True, True]


def test_gains_over_baselines_stand_below_them_and_only_a_few_of_the_best_of_n(path: Path) -> None:
    quality = {
        **{"reward": 3.0, "kl": 1.0, "untrained_reward": 1.0, "equal_kl_n": 3.5, "equal_kl_reward": 2.0},
        **{f"best_of_{count}_{name}": count / 64 for count in (2, 4, 64) for name in ("reward", "kl")},
        **{"gain": 2.0, "gain_best_of_64": 2.5, "gain_equal_kl": 1.0, "gain_equal_kl_low": -0.5},
        **{"zero_shot": 0.5, "zero_shot_photo": 0.25, "zero_shot_photo_unseen": 0.125},
    }
    columns, figures = figure_table(hand_made_descriptions(quality=quality))
    # Baselines are in the order of their KL.
    assert columns == ("trained", "untrained", "best of 64", "best of 3.5, equal KL", "“a photo of a …”")
    gain = next(each for each in figures if each.name == "gain over it")
    assert [each.value for each in gain.values[1:4]] == [2.0, 2.5, 1.0]
    assert gain.values[3].low == -0.5
    unseen = next(each for each in figures if each.name == "the same, other images")
    assert [each.value for each in unseen.values if not math.isnan(each.value)] == [0.125]
    assert figure_table(hand_made_descriptions(quality={})) == ((), ())


def test_shares_have_intervals_and_judges_their_agreement(client: TestClient) -> None:
    found = ask(client)
    total = found["sampled"]
    for name, count in found["verdicts"].items():
        low, high = found["shares"][name]
        assert low <= count / total <= high
    (pair,) = found["agreement"]
    # The judges differ on one of five texts.
    assert (pair["judges"], pair["texts"], pair["same"]) == (["judge-1", "ann"], 5, 0.8)
    assert (ask(client, run="a-plain")["shares"], ask(client, run="a-plain")["agreement"]) == ({}, [])


@pytest.mark.parametrize(
    ("asking", "wanted"),
    [
        ({}, [1, 3, 0, 2, 4]),
        ({"descending": False}, [4, 2, 0, 3, 1]),
        ({"sort": "times"}, [3, 0, 4, 1, 2]),
        # Those of one class come by falling reward in either order.
        ({"sort": "class", "descending": False}, [1, 0, 2, 3, 4]),
        ({"sort": "log_ratio"}, [4, 3, 2, 1, 0]),
        ({"class": "cube box"}, [3, 4]),
        ({"class": ["cube box", "ball"], "greedy": True}, [3, 0, 4]),
        ({"verdict": ["spurious", "undecided"]}, [1, 4]),
        ({"attribute": "shape"}, [3, 0]),
        ({"question": 2}, [2, 4]),
        ({"words": "BALL round"}, [0]),
        ({"words": "<b>"}, [2]),
        ({"offset": 1, "limit": 2}, [3, 0]),
        ({"verdict": "spurious", "run": "a-plain"}, []),
    ],
)
def test_descriptions_are_filtered_and_sorted(client: TestClient, asking: dict[str, Any], wanted: list[int]) -> None:
    found = ask(client, "/list", **asking)
    assert [each["text"] for each in found["descriptions"]] == [ROWS[each][0] for each in wanted]
    assert found["total"] == (5 if "offset" in asking else len(wanted))


def test_a_description_has_its_question_and_the_votes_of_all_judges(client: TestClient) -> None:
    *_, last = ask(client, "/list")["descriptions"]
    assert (last["verdict"], last["votes"]) == ("undecided", {"judge-1": "spurious", "ann": "visual"})
    assert last["question"] == "How would you recognise a cube box?"
    (plain, *_) = ask(client, "/list", run="a-plain")["descriptions"]
    assert (plain["verdict"], plain["votes"], plain["attribute"]) == (None, {}, "")


def test_a_head_leads_to_the_descriptions_that_it_rewarded(client: TestClient) -> None:
    found = ask(client, run="a-head")
    assert [each["name"] for each in found["heads"]] == ["L2.H1"]
    assert found["target"] == "L2.H1, against the other classes"
    for head, runs in (("L2.H1", ["a-head"]), ("L2.H0", [])):
        assert client.get(f"/api/stores/described/heads/{head}").json()["description_runs"] == runs


def test_what_a_run_lacks_is_said_with_the_command_that_adds_it(client: TestClient, toy_run: ToyRun) -> None:
    assert any("headspan describe inspect" in each for each in ask(client, run="a-plain")["notices"])
    assert [each for each in ask(client)["notices"] if "inspect" in each] == []
    assert any(each.startswith("1 description of 5 filled the context") for each in ask(client)["notices"])
    plain = TestClient(application(Explorer(OpenStores([toy_run.path]), InProcess(), Uploads())))
    found = plain.get("/api/stores/toy/descriptions").json()
    assert (found["run"], found["classes"]) == (None, [])
    assert f"headspan describe train {toy_run.path} " in found["notices"][0]
    assert "headspan describe write" in refusal(plain.get("/api/stores/toy/descriptions/list"))


def test_what_is_not_there_is_refused_in_a_sentence(client: TestClient, path: Path, tmp_path: Path) -> None:
    place = "/api/stores/described/descriptions"
    for where in (place, f"{place}/list"):
        assert "has no run 'x' of descriptions; the runs are: a-head, a-plain, hand" in refusal(
            client.get(where, params={"run": "x"})
        )
    assert "no class 'dog'; choose one of its 2" in refusal(client.get(f"{place}/list", params={"class": "dog"}))
    assert "questions go from 0 to 2" in refusal(client.get(f"{place}/list", params={"question": 3}))
    copy = Path(shutil.copytree(path, tmp_path / "described.zarr"))
    chunk = next(file for file in (copy / "descriptions" / "hand" / "rewards").rglob("c/*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    other = TestClient(application(Explorer(OpenStores([copy]), InProcess(), Uploads())))
    # A run that can be read is shown in its place.
    found = ask(other)
    assert (found["run"], [each["problem"] is None for each in found["runs"]]) == ("a-head", [True, True, False])
    assert "is damaged" in refusal(other.get(place, params={"run": "hand"}), 400)


def test_classes_lead_to_their_images_where_the_store_can_choose_them(client: TestClient) -> None:
    queries = {run: ask(client, run=run)["classes"][0]["images_query"] for run in ("a-head", "a-plain", "hand")}
    # The toy store does not know the names of its classes.
    assert queries == {"a-head": {"column": "kind", "value": "ball"}, "a-plain": {}, "hand": {}}


def test_the_memory_of_a_run_counts_its_arrays_and_texts(path: Path) -> None:
    found = read_descriptions(path, "hand")
    arrays = [value for name in found.__slots__ if isinstance(value := getattr(found, name), np.ndarray)]
    texts = sum(map(len, found.texts))
    assert bytes_of(found) > sum(array.nbytes for array in arrays) + texts
    assert bytes_of(replace(found, texts=())) < bytes_of(found)
    assert math.isnan(found.log["kl"][2])
