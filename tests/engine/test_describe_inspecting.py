"""Judges of descriptions: what language models are asked, how votes are counted, kept and added, and what fails."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.describe import (
    Descriptions,
    Verdict,
    compare_inspections,
    inspect,
    inspection_summary,
    read_verdict_sheet,
    write_verdict_sheet,
)
from headspan.describe.descriptions.result import NON_VISUAL, SPURIOUS, UNDECIDED, VERDICTS, VISUAL, Inspection
from headspan.describe.descriptions.saved import read_descriptions, save_descriptions
from headspan.describe.inspecting.ballot import open_ballot
from headspan.describe.inspecting.inspect_run import missing_verdicts
from headspan.describe.inspecting.majority import common_attributes, majority
from headspan.describe.inspecting.verdict import Described
from headspan.describe.inspecting.wording import VERDICT, verdict_prompt
from headspan.errors import LanguageModelError, SettingsError, TextsError
from headspan.llm import AnswerCache, Asker, Endpoint, NotAsAskedError
from tests.engine.chat_server import ChatServer, Handler, chat_server
from tests.engine.hand_made_descriptions import hand_made_descriptions

# What the server's models answer about the end of the texts of `hand_made_descriptions`.
TAUGHT = {
    "a round, red thing": {"teaches": 1, "visual": 1, "attribute": "shape"},
    "click to enlarge": {"teaches": 0, "visual": 0, "attribute": "none"},
    "it is <b>used</b> in games & parks": {"teaches": 1, "visual": 0, "attribute": "use"},
    "four equal sides": {"teaches": 1, "visual": 1, "attribute": "shape"},
    "a gift for every child": {"teaches": 0, "visual": 1, "attribute": "feeling"},
}
EXPECTED = [VISUAL, SPURIOUS, NON_VISUAL, VISUAL, SPURIOUS]


def note_of(prompt: str) -> tuple[str, str]:
    """The class and the note that a prompt ends with."""
    lines = prompt.splitlines()
    return json.loads(lines[-3].removeprefix("Class: ")), json.loads(lines[-2].removeprefix("Note: "))


def answer(model: str, prompt: str) -> str:
    return json.dumps(TAUGHT[note_of(prompt)[1]])


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chat_server() as running:
        running.answer = answer
        yield running


def plain(**changed: Any) -> Descriptions:
    return hand_made_descriptions(inspected=False, **changed)


def asker(chat: ChatServer, folder: Path, max_calls: int | None = None) -> Asker:
    endpoint = Endpoint.from_environment(chat.url, None, 5.0, 1)
    return Asker(endpoint, AnswerCache(folder), max_calls)


def with_verdicts(descriptions: Descriptions, *votes: list[int]) -> Descriptions:
    cast = np.array(votes, np.int8)
    names = tuple(tuple("colour" if each > SPURIOUS else "" for each in row) for row in votes)
    verdicts = majority(cast)
    inspection = Inspection(
        tuple(f"judge {n}" for n in range(len(votes))), cast, verdicts, common_attributes(cast, names, verdicts), names
    )
    return replace(descriptions, inspection=inspection)


def test_a_judge_is_asked_once_for_each_text_and_its_answers_are_kept(
    toy_copy: Path, chat: ChatServer, tmp_path: Path
) -> None:
    store = hs.open(toy_copy)
    # The first text also answers another question: six descriptions, five different ones.
    hand = plain()
    twice = plain(
        texts=(hand.texts[0], *hand.texts),
        **{name: np.insert(getattr(hand, name), 0, getattr(hand, name)[0])
           for name in ("class_of", "question_of", "times", "greedy", "rewards", "log_ratios", "cut", "ended")},
    )  # fmt: skip
    save_descriptions(store, replace(twice, question_of=np.array([0, 1, 0, 2, 0, 2])))
    found = inspect(store, "hand", models=["m"], asker=asker(chat, tmp_path))
    assert found.inspection is not None
    assert found.inspection.verdicts.tolist() == [VISUAL, *EXPECTED]
    assert found.inspection.attributes == ("shape", "shape", "", "use", "shape", "")
    assert len(chat.requests) == 5
    assert sorted(map(note_of, chat.prompts())) == sorted(
        ({0: "ball", 1: "cube box"}[number], text)
        for number, text in zip(hand.class_of.tolist(), hand.texts, strict=True)
    )
    stored = read_descriptions(hs.open(toy_copy), "hand")
    assert stored.inspection is not None
    assert stored.inspection.votes.tolist() == [[VISUAL, *EXPECTED]]
    assert [each["text"] for each in stored.inspection.answers] == list(hand.texts)
    assert [json.loads(each["replies"][-1]["content"]) for each in stored.inspection.answers] == [
        TAUGHT[text] for text in hand.texts
    ]
    # Another inspection by the same judge needs neither the model nor the cache.
    again = inspect(store, "hand", models=["m"], asker=asker(chat, tmp_path / "empty"))
    assert len(chat.requests) == 5
    assert again.lineage == stored.lineage == found.lineage


def test_an_interrupted_inspection_goes_on_where_it_ended(toy_copy: Path, chat: ChatServer, tmp_path: Path) -> None:
    store = hs.open(toy_copy)
    save_descriptions(store, plain())
    with pytest.raises(LanguageModelError, match=r"budget of 3 calls .* 3 of 5 answers are cached"):
        inspect(store, "hand", models=["m"], asker=asker(chat, tmp_path, max_calls=3))
    assert read_descriptions(store, "hand").inspection is None
    found = inspect(store, "hand", models=["m"], asker=asker(chat, tmp_path))
    assert len(chat.requests) == 5
    assert found.inspection is not None
    assert found.inspection.verdicts.tolist() == EXPECTED


def test_a_missing_vote_is_asked_for_again_and_no_vote_at_all_is_an_error(
    toy_copy: Path, chat: ChatServer, tmp_path: Path
) -> None:
    store = hs.open(toy_copy)
    save_descriptions(store, plain())
    chat.answer = lambda model, prompt: "I like it" if "click" in prompt.splitlines()[-2] else answer(model, prompt)
    found = inspect(store, "hand", models=["m"], asker=asker(chat, tmp_path)).inspection
    assert found is not None
    assert found.verdicts.tolist() == [VISUAL, UNDECIDED, NON_VISUAL, VISUAL, SPURIOUS]
    assert missing_verdicts(found) == {"m": 1}
    asked = len(chat.requests)
    chat.answer = answer
    found = inspect(store, "hand", models=["m"], asker=asker(chat, tmp_path)).inspection
    assert found is not None
    assert found.verdicts.tolist() == EXPECTED
    assert len(chat.requests) == asked + 1
    chat.answer = lambda model, prompt: "no"
    with pytest.raises(LanguageModelError, match="n gave no usable verdict on 5 descriptions: its answer contains no"):
        inspect(store, plain(), models=["n"], asker=asker(chat, tmp_path))


def test_votes_of_other_judges_are_kept_or_replaced_only_on_request(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    save_descriptions(store, plain())

    def always(number: int) -> Callable[[str, str], Verdict]:
        return lambda text, class_name: Verdict(number, f"seen in {class_name}" if number > SPURIOUS else "")

    inspect(store, "hand", judges={"first": always(VISUAL)})
    with pytest.raises(SettingsError, match=r"descriptions/hand has votes by first; keep them with --add, or replace"):
        inspect(store, "hand", judges={"second": always(SPURIOUS)})
    both = inspect(store, "hand", judges={"second": always(SPURIOUS)}, add=True).inspection
    assert both is not None
    assert both.judges == ("first", "second")
    assert both.verdicts.tolist() == [UNDECIDED] * 5
    assert both.attributes == ("",) * 5
    three = inspect(store, "hand", judges={"third": always(VISUAL)}, add=True).inspection
    assert three is not None
    assert three.verdicts.tolist() == [VISUAL] * 5
    assert three.attributes == ("seen in ball",) * 3 + ("seen in cube box",) * 2
    alone = inspect(store, "hand", judges={"second": always(SPURIOUS)}, overwrite=True).inspection
    assert alone is not None
    assert alone.judges == ("second",)
    assert read_descriptions(store, "hand").inspection.judges == ("second",)  # type: ignore[union-attr]


def test_nothing_is_written_unless_asked_and_never_over_other_descriptions(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    judges = {"all": lambda text, class_name: Verdict(SPURIOUS)}
    assert inspect(store, plain(), judges=judges).inspection is not None
    assert "hand" not in [run.name for run in hs.runs(toy_copy)]
    save_descriptions(store, plain(seed=5))
    with pytest.raises(hs.HeadspanError, match="already exists with other content"):
        inspect(store, plain(), judges=judges, save=True)
    assert read_descriptions(store, "hand").seed == 5
    read = read_descriptions(store, "hand")
    inspect(store, read, judges=judges, save=True)
    found = read_descriptions(store, "hand")
    assert found.inspection is not None
    assert found.seed == 5


@pytest.mark.parametrize(
    ("models", "judges", "sentence"),
    [
        ([], [], "nobody is named who judges the descriptions; give a language model, a person's votes, or another"),
        (["a", "b", "a"], [], "the judge 'a' is named twice; each judge has one vote, so name it once"),
        (["a"], ["a"], "the judge 'a' is named twice"),
    ],
)
def test_judges_have_names_of_their_own(models: list[str], judges: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        open_ballot(plain(), models, judges)


def test_models_need_an_asker(toy_copy: Path) -> None:
    with pytest.raises(SettingsError, match="m: language models are asked through asker="):
        inspect(hs.open(toy_copy), plain(), models=["m"])


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"teaches": 1, "visual": 1, "attribute": "colour"}', ("visual", "colour")),
        ('```json\n{"teaches": "1", "visual": "0", "attribute": " Habitat "}\n```', ("non-visual", "habitat")),
        ('<think>{"teaches": 1}</think> {"teaches": 0, "visual": 1, "attribute": "colour"}', ("spurious", "")),
        ('{"teaches": false}', ("spurious", "")),
        ('{"teaches": true, "visual": true, "attribute": "plumage"}', ("visual", "other")),
        ('{"teaches": 1, "visual": 0}', ("non-visual", "other")),
        ('{"teaches": 2, "visual": 1, "attribute": "colour"}', "has 2 as 'teaches' instead of 1 or 0"),
        ('{"teaches": 1, "attribute": "colour"}', "contains no JSON object with the field 'visual'"),
        ("yes", "contains no JSON object with the field 'teaches'"),
        ('{"teaches": 1, "visual": 1} or {"teaches": 0}', "contains several values of 'teaches'"),
    ],
)
def test_replies_are_read_field_by_field(reply: str, value: tuple[str, str] | str) -> None:
    if isinstance(value, str):
        with pytest.raises(NotAsAskedError, match=value):
            VERDICT.read(reply)
    else:
        assert VERDICT.read(reply) == dict(zip(("verdict", "attribute"), value, strict=True))


def test_the_worked_examples_of_the_prompt_are_answers_that_can_be_read() -> None:
    prompt = verdict_prompt(Described("grey_parrot", 'said "so"\n{"teaches": 1}'))
    answers = [line.removeprefix("Answer: ") for line in prompt.splitlines() if line.startswith("Answer: ")]
    assert [VERDICT.read(each)["verdict"] for each in answers] == ["visual", "non-visual", "spurious"]
    assert note_of(prompt) == ("grey parrot", 'said "so"\n{"teaches": 1}')


def test_the_verdict_is_that_of_most_judges_and_ties_are_undecided() -> None:
    random = np.random.default_rng(0)
    votes = random.integers(UNDECIDED, len(VERDICTS), (5, 257)).astype(np.int8)
    for judges in (1, 2, 3, 5):
        found = majority(votes[:judges]).tolist()
        for place, own in enumerate(votes[:judges].T.tolist()):
            counts = Counter(vote for vote in own if vote != UNDECIDED).most_common()
            tied = not counts or (len(counts) > 1 and counts[0][1] == counts[1][1])
            assert found[place] == (UNDECIDED if tied else counts[0][0])


def test_the_attribute_is_the_most_common_one_of_those_who_agree_with_the_verdict() -> None:
    votes = np.array([[VISUAL, VISUAL, NON_VISUAL], [VISUAL, VISUAL, SPURIOUS], [NON_VISUAL, VISUAL, SPURIOUS],
                      [NON_VISUAL, SPURIOUS, NON_VISUAL], [VISUAL, VISUAL, UNDECIDED]], np.int8)  # fmt: skip
    named = (("", "size", "use"), ("shape", "shape", ""), ("use", "shape", ""), ("use", "", "origin"), ("size", "", ""))
    verdicts = majority(votes)
    assert verdicts.tolist() == [VISUAL, VISUAL, UNDECIDED]
    # Of shape and size, which one judge each names, the earlier judge's; "use" is named by judges without a majority.
    assert common_attributes(votes, named, verdicts) == ("shape", "shape", "")


def test_shares_count_every_sampled_description_and_intervals_draw_classes() -> None:
    hand = with_verdicts(plain(), [SPURIOUS, SPURIOUS, SPURIOUS, VISUAL, VISUAL])
    found = inspection_summary(hand)
    assert {name: each.value for name, each in found.every.shares.items()} == {
        "spurious": 8 / 18, "visual": 10 / 18, "non-visual": 0.0, "undecided": 0.0,
    }  # fmt: skip
    # One class is all spurious and the other all visual, so a sample of two classes may be either alone.
    assert (found.every.shares["spurious"].low, found.every.shares["spurious"].high) == (0.0, 1.0)
    assert found.every.texts == 5
    assert found.by_judge == {"judge 0": found.every}
    assert found.classes["ball"].times == 8
    assert found.classes["ball"].shares["spurious"].low == 1.0
    assert found.attributes == {"visual": {"colour": 10}, "non-visual": {}}
    assert [row["class"] for row in json.loads(found.as_json())] == [None, "ball", "cube box"]


def test_the_bootstrap_matches_one_in_plain_python() -> None:
    random = np.random.default_rng(3)
    count, classes = 91, 7
    class_of, times = random.integers(0, classes, count), random.integers(0, 4, count)
    verdicts = np.where(random.random(count) < np.linspace(0, 1, classes)[class_of], VISUAL, SPURIOUS).astype(np.int8)
    names = tuple("colour" if each == VISUAL else "" for each in verdicts.tolist())
    same = {name: np.zeros(count) for name in ("rewards", "log_ratios", "cut", "ended", "greedy")}
    hand = plain(
        classes=tuple("abcdefg"), texts=tuple(f"text {n}" for n in range(count)), class_of=class_of,
        question_of=np.zeros(count, np.int64), times=times,
        inspection=Inspection(("j",), verdicts[None], verdicts, names, (names,)), **same,
    )  # fmt: skip
    share = inspection_summary(hand, samples=2000).every.shares["visual"]
    drawn = []
    for _ in range(2000):
        chosen = random.integers(0, classes, classes)
        seen = sum(times[(class_of == each) & (verdicts == VISUAL)].sum() for each in chosen)
        drawn.append(seen / sum(times[class_of == each].sum() for each in chosen))
    assert share.value == pytest.approx(times[verdicts == VISUAL].sum() / times.sum())
    # The ends of two bootstraps of 2,000 samples differ by less than an eighth of the interval.
    assert np.abs(np.quantile(drawn, (0.025, 0.975)) - (share.low, share.high)).max() < (share.high - share.low) / 8


def test_agreement_counts_equal_texts_once_and_leaves_out_missing_votes() -> None:
    hand = plain()
    same = replace(hand, texts=(hand.texts[0], hand.texts[0], *hand.texts[2:]))
    judged = with_verdicts(same, [VISUAL, VISUAL, NON_VISUAL, SPURIOUS, UNDECIDED],
                           [VISUAL, VISUAL, VISUAL, SPURIOUS, VISUAL])  # fmt: skip
    (pair,) = inspection_summary(judged).agreement
    assert (pair.first, pair.second, pair.verdicts.pairs) == ("judge 0", "judge 1", 3)
    assert pair.verdicts.same == pytest.approx(2 / 3)
    # By hand: expected agreement (1 · 2 + 1 · 1 + 0) / 9 = 1/3.
    assert pair.verdicts.kappa.value == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    assert pair.same_attribute == 1.0


def test_runs_are_compared_side_by_side() -> None:
    one = with_verdicts(plain(quality={"zero_shot": 0.75}), [SPURIOUS, SPURIOUS, SPURIOUS, VISUAL, VISUAL])
    other = with_verdicts(plain(run="other", adapter_sha256=None), [VISUAL] * 5)
    found = compare_inspections([("a.zarr", one), ("b.zarr", other)])
    frame = found.to_frame()
    assert frame["spurious"].tolist() == [8 / 18, 0.0]
    assert frame["trained"].tolist() == [True, False]
    assert frame["zero_shot"].tolist() == [0.75, 0.875]
    assert frame["visual attributes"].tolist() == ["colour 10", "colour 18"]
    assert found.comparable
    assert not compare_inspections([("a.zarr", one), ("b.zarr", replace(other, classes=("ball", "box")))]).comparable
    with pytest.raises(SettingsError, match="descriptions/hand are not inspected yet; run headspan describe inspect"):
        inspection_summary(plain())


def fill(path: Path, verdicts: dict[str, tuple[str, str]]) -> None:
    """Fill a sheet as a person does in a spreadsheet."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")
        writer.writeheader()
        for row in rows:
            verdict, attribute = verdicts.get(row["text"], ("", ""))
            writer.writerow({**row, "verdict": verdict, "attribute": attribute})


def test_a_person_judges_on_a_sheet_that_shows_neither_rewards_nor_votes(tmp_path: Path) -> None:
    hand = hand_made_descriptions(texts=("=1+1", "click  to\nenlarge", *hand_made_descriptions().texts[2:]))
    path = tmp_path / "ann.csv"
    assert write_verdict_sheet(hand, path, count=4) == 4
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["class", "text", "verdict", "attribute"]
    assert len(rows) == 4
    path.unlink()
    assert write_verdict_sheet(hand, path) == 5
    fill(path, {"'=1+1": (" Visual ", "Shape"), "click to enlarge": ("spurious", "size")})
    assert read_verdict_sheet(hand, path) == {
        ("ball", "=1+1"): Verdict(VISUAL, "shape"),
        ("ball", "click  to\nenlarge"): Verdict(SPURIOUS),
    }
    with pytest.raises(SettingsError, match=r"ann\.csv: already exists and may contain votes"):
        write_verdict_sheet(hand, path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text, "no verdict is filled in; write spurious, visual, non-visual into the column verdict"),
        (lambda text: text.replace("sides,,", "sides,red,"), "the verdict is 'red'; write spurious, visual or non-vis"),
        (lambda text: text.replace("sides,,", "edges,visual,"), "its text is not among the descriptions of its class"),
        (lambda text: text.replace("ball,click", "cube box,click"), "its text is not among the descriptions of its"),
        (lambda text: text + "cube box,four equal sides,,\r\n", "repeats the text of another line; keep one of them"),
        (lambda text: text.replace("verdict", "mine"), "line 2: lacks one of the columns class, text, verdict, attrib"),
    ],
)
def test_an_invalid_sheet_is_refused_with_the_line_and_what_to_do(
    change: Callable[[str], str], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "ann.csv"
    write_verdict_sheet(plain(), path)
    path.write_bytes(change(path.read_bytes().decode()).encode())
    with pytest.raises(TextsError, match=sentence):
        read_verdict_sheet(plain(), path)


def test_the_command_asks_counts_and_shows(
    toy_copy: Path, chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_descriptions(hs.open(toy_copy), plain())
    command = ["describe", "inspect", str(toy_copy)]
    asking = ["--base-url", chat.url, "--cache", str(tmp_path / "answers"), "--parallel", "1"]
    assert main(command) == 2
    assert "descriptions/hand are not inspected yet" in capsys.readouterr().err
    assert main([*command, "--judge", "m", "--dry-run", *asking]) == 0
    assert 'Note: "four equal sides"' in (said := capsys.readouterr().out)
    assert "nothing was sent (--dry-run)" in said
    assert not chat.requests
    assert main([*command, "--judge", "m", "--judge", "n", *asking]) == 0
    said = capsys.readouterr().out
    assert "made 10 calls and used 500 tokens" in said
    assert "judged by m, n" in said
    assert "non-visual: use 1" in said
    assert [line for line in said.splitlines() if line.startswith("judge  ")]
    assert "m and n: 5 texts, verdict 100.0 % the same, attribute 100.0 %, κ 1.000" in said
    # A person, whose name is that of the file, disagrees on one text.
    sheet = tmp_path / "ann.csv"
    assert main([*command, "--write", str(sheet)]) == 0
    fill(sheet, {"four equal sides": ("non-visual", "use"), "click to enlarge": ("spurious", "")})
    assert main([*command, "--human", str(sheet), "--add", "--json", "-"]) == 0
    said = capsys.readouterr().out
    rows = json.loads(said[said.index("[") :])
    assert [json.loads(row["reply of n"]) for row in rows] == [*TAUGHT.values()]
    assert [row["vote of ann"] for row in rows] == [None, "spurious", None, "non-visual", None]
    assert [row["verdict"] for row in rows] == [VERDICTS[each] for each in EXPECTED]
    save_descriptions(hs.open(toy_copy), hand_made_descriptions(run="another"))
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("small-model, trained") == 2
    assert "shares of runs with other classes or judges do not compare" in said


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--price", "1,2"], "--price has no effect without a language model; name one with --judge"),
        (["--add"], "--add and --overwrite are about the votes of judges; name one with --judge"),
        (["--write", "x.csv", "--annotations"], "--write judges nothing; name judges and tables in a second command"),
        (["--human", "a/ann.csv", "--human", "b/ann.csv"], "--human ann: two files have this name"),
        (["--annotations", "--run", "a", "--run", "b"], "descriptions are judged one run at a time; name one store"),
        (["--annotations"], "no image's metadata has a value of 'class_name'"),
    ],
)
def test_flags_that_cannot_work_are_refused(
    flags: list[str], sentence: str, toy_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_descriptions(hs.open(toy_copy), plain())
    assert main(["describe", "inspect", str(toy_copy), *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_server_that_fails_is_named(toy_copy: Path, chat: ChatServer, tmp_path: Path) -> None:
    def refuse(handler: Handler) -> None:
        handler.fail(401, "no key", "invalid_api_key")

    chat.always = refuse
    with pytest.raises(LanguageModelError, match="set OPENAI_API_KEY"):
        inspect(hs.open(toy_copy), plain(), models=["m"], asker=asker(chat, tmp_path))
