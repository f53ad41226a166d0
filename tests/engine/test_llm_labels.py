"""Labels and votes by language models: prompts, stored answers, and bad answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.concepts.answers import read_records
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.comparison import Method, compare
from headspan.concepts.consistency import NO_VOTE, ConceptConsistency, Votes
from headspan.concepts.examples import Example, read_examples
from headspan.concepts.labels import Labels, label_heads, read_labels
from headspan.concepts.llm_judges import VOTE, judge_heads, missing_votes, vote_prompt
from headspan.concepts.llm_labels import LABEL, clean_label, label_by_model, label_prompt
from headspan.concepts.votes import JudgesVote, VotesOnText, read_votes
from headspan.errors import LanguageModelError, SettingsError, StoreError, TextsError
from headspan.events import NOTE, Progress
from headspan.llm.asking import Asker
from headspan.llm.cache import AnswerCache
from headspan.llm.endpoint import Endpoint, Patience
from headspan.llm.forms import NotAsAskedError
from headspan.report.collect import write_report
from headspan.spans.saved import read_spans
from headspan.store import results
from headspan.store.write import analyses
from headspan.texts.pool import Pool
from tests.conftest import relative_files, zarr_array
from tests.engine.chat_server import ChatServer, chat_server
from tests.engine.test_labels_and_ccs import HEADS, POOL, keep

PLAIN = Pool("plain", POOL.texts)
# The server's labels of heads, by their first text.
LABELS = {"text 0": "Place", "text 3": "colours", "text 1": "placement", "text 2": "places.", "text 6": "animals"}


def first_of(prompt: str) -> str:
    """The first text of the head that a prompt asks about."""
    return str(json.loads(prompt.rsplit("Texts:\n", 1)[1].splitlines()[0]))


def say(model: str, prompt: str) -> str:
    """Labels from LABELS; votes by the number in the text and the name of the judge."""
    if "Texts:" in prompt:
        return json.dumps({"label": LABELS[first_of(prompt)]})
    number = int(prompt.split('Text: "text ')[1][0])
    yes = {"kind": True, "stern": False, "even": number % 2 == 0, "low": number < 3}[model]
    return json.dumps({"associated": int(yes)})


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chat_server() as server:
        server.answer = say
        yield server


@pytest.fixture
def asker(chat: ChatServer, tmp_path: Path) -> Asker:
    return Asker(Endpoint(chat.url, patience=Patience(first_wait_seconds=0.01)), AnswerCache(tmp_path / "kept"))


@pytest.fixture
def store(toy_copy: Path) -> hs.Store:
    found = hs.open(toy_copy)
    keep(found, HEADS, PLAIN)
    return found


def test_a_model_labels_every_head_that_has_texts(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    labels = label_by_model(store, asker, "m", examples=read_examples(), save=True)
    assert labels.names == (("place", "colours", "placement"), ("places", "animals", None))
    # Plural and prefix: three labels are one concept.
    assert labels.concepts == (("place", "colours", "place"), ("place", "animals", None))
    assert labels.source == f"m at {chat.url}, shown 5 labelled examples"
    assert labels.consistent is None
    assert len(chat.requests) == 5
    again = read_labels(hs.open(store.path))
    assert again == labels
    assert again.concepts == labels.concepts


def test_every_label_can_be_traced_to_its_answer(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    label_by_model(store, asker, "m", save=True)
    records = read_records(store, "labels", "hand")
    assert [(record["layer"], record["head"], record["value"]) for record in records] == [
        (0, 0, "place"),
        (0, 1, "colours"),
        (0, 2, "placement"),
        (1, 0, "places"),
        (1, 1, "animals"),
    ]
    assert records[3]["replies"][0]["content"] == '{"label": "places."}'
    assert {record["prompt"] for record in records} == set(chat.prompts())
    attributes = dict(hs.open(store.path).group["labels/hand"].attrs)
    assert attributes["served_as"] == ["m-0613"]
    assert attributes["concepts"][0] == ["place", "colours", "place"]


def test_the_prompt_holds_the_examples_and_the_first_five_texts_quoted() -> None:
    prompt = label_prompt(['say "cheese"', "two\nlines"], [Example("counting", ("one", "two"))])
    assert (
        'Texts:\n"one"\n"two"\nAnswer: {"label": "counting"}\n\nTexts:\n"say \\"cheese\\""\n"two\\nlines"\n' in prompt
    )
    assert "in one word without punctuation" in prompt


def test_the_prompt_has_only_the_first_five_texts(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    label_by_model(store, asker, "m", save=True)
    shown = next(prompt for prompt in chat.prompts() if first_of(prompt) == "text 3")
    texts = shown.rsplit("Texts:\n", 1)[1].splitlines()[:-1]
    assert [json.loads(text) for text in texts] == ["text 3", "text 0", "text 4", "text 6", "text 5"]


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("Colours", "colours"),
        (' "geo-location". ', "geo-location"),
        ("geo location", "geo-location"),
        ("time_of_day", "time-of-day"),
        ("Städte", "städte"),
        ("**weather**", "weather"),
    ],
)
def test_labels_are_cleaned(said: str, label: str) -> None:
    assert clean_label(said) == label


@pytest.mark.parametrize(
    "said",
    ["", "  ", "...", "None", "N/A", "These texts all describe places", "a,b", "x" * 41, 7, None, ["a"], "half \ud800"],
)
def test_replies_that_are_not_labels_are_refused(said: object) -> None:
    with pytest.raises(NotAsAskedError):
        clean_label(said)


def test_a_bare_word_is_a_label_and_a_bare_sentence_is_not() -> None:
    assert LABEL.read("Colours.") == "colours"
    assert LABEL.read("<think>hm</think>\n`weather`") == "weather"
    with pytest.raises(NotAsAskedError):
        LABEL.read("They are all colours.")


@pytest.mark.parametrize(
    ("said", "vote"), [('{"associated": 1}', 1), ('{"associated": "0"}', 0), ("1", 1), (" 0.\n", 0)]
)
def test_votes_are_read(said: str, vote: int) -> None:
    assert VOTE.read(said) == vote


@pytest.mark.parametrize(
    "said",
    ["yes", '{"associated": 2}', '{"associated": 0.5}', '{"associated": true}', '{"associated": null}', "10", "",
     '{"associated": [1]}', '{"associated": -1}', '{"associated": 1} {"associated": 0}', '{"associated": NaN}'],
)  # fmt: skip
def test_replies_other_than_1_and_0_are_refused(said: str) -> None:
    with pytest.raises(NotAsAskedError):
        VOTE.read(said)


def test_a_head_without_a_usable_answer_has_no_label(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    chat.answer = lambda model, prompt: (
        '{"label": "all of these are places on a map"}' if first_of(prompt) == "text 0" else say(model, prompt)
    )
    labels = label_by_model(store, asker, "m", save=True)
    assert labels.names[0] == (None, "colours", "placement")
    (record, *_) = read_records(store, "labels", "hand")
    assert record["complaint"] == "contains a label of 8 words; one word was asked for"
    assert len(record["replies"]) == 3
    assert dict(store.group["labels/hand"].attrs)["unanswered"] == 1


def test_a_model_that_labels_no_head_is_refused(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    chat.answer = lambda model, prompt: "I am sorry."
    with pytest.raises(
        LanguageModelError, match=r"m gave no usable label for 5 heads: its answer contains no JSON .*; name another"
    ):
        label_by_model(store, asker, "m", save=True)
    assert results.runs(store, "labels") == []


def test_judges_vote_one_text_and_one_label_at_a_time(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    label_by_model(store, asker, "m", save=True)
    chat.requests.clear()
    found = judge_heads(store, asker, ["kind", "even", "low"], save=True)
    assert found.votes.judges == ("kind", "even", "low")
    # Of texts 0 to 6, kind accepts all, even 0 2 4 6, low 0 1 2; two of three are the majority.
    taken = {number: number % 2 == 0 or number < 3 for number in range(7)}
    assert found.consistent[0].tolist() == [[taken[text] for text in head[:5]] for head in HEADS[0]]
    assert found.scores.tolist() == [[5, 3, 4], [5, 1, 0]]
    assert found.votes.cast[:, 1, 1].tolist() == [[1] + [NO_VOTE] * 4, [1] + [NO_VOTE] * 4, [0] + [NO_VOTE] * 4]
    assert (found.votes.cast[:, 1, 2] == NO_VOTE).all()
    assert missing_votes(found) == {"kind": 0, "even": 0, "low": 0}
    assert vote_prompt("animals", "text 6") in chat.prompts()
    # Heads with the same label and text share a question, which is asked once.
    assert len(chat.requests) == len({(request["model"], str(request["messages"])) for request in chat.requests})
    again = read_scores(hs.open(store.path))
    assert (again.votes.cast == found.votes.cast).all()
    assert again.scores.tolist() == found.scores.tolist()
    assert np.asarray(zarr_array(store.path, "ccs/hand/scores")[...]).tolist() == found.scores.tolist()


def test_judges_see_the_original_label_and_counts_use_the_merged_concept(
    store: hs.Store, asker: Asker, chat: ChatServer
) -> None:
    label_by_model(store, asker, "m", save=True)
    chat.requests.clear()
    found = judge_heads(store, asker, ["kind"], save=True)
    assert {prompt.split("Label: ")[1].splitlines()[0] for prompt in chat.prompts()} == {
        '"place"',
        '"places"',
        '"placement"',
        '"colours"',
        '"animals"',
    }
    # Heads with five texts are high: place three times, colours once.
    assert found.groups["high"] == 4
    assert found.ccr == 1 / 4
    assert found.heads_per_concept == {"place": 3, "animals": 1, "colours": 1}
    assert found.entanglement == 3 / 5
    assert found.association == 1.0


def test_a_second_judge_does_not_ask_the_first_again(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    label_by_model(store, asker, "m", save=True)
    judge_heads(store, asker, ["kind"], save=True)
    chat.requests.clear()
    judge_heads(store, asker, ["kind", "stern"], save=True)
    assert {request["model"] for request in chat.requests} == {"stern"}


def test_a_judge_is_added_without_the_cache_of_the_first(
    store: hs.Store, asker: Asker, chat: ChatServer, tmp_path: Path
) -> None:
    label_by_model(store, asker, "m", save=True)
    before = judge_heads(store, asker, ["kind", "even"], save=True)
    with chat_server() as other:
        other.answer = say
        elsewhere = Asker(Endpoint(other.url), AnswerCache(tmp_path / "elsewhere"))
        found = judge_heads(store, elsewhere, ["stern", "even"], add=True, save=True)
        # Stored votes are asked for again only with `overwrite`.
        assert {request["model"] for request in other.requests} == {"stern"}
        assert found.votes.judges == ("kind", "stern", "even")
        assert (found.votes.cast[[0, 2]] == before.votes.cast).all()
        assert voters(store) == {("kind", chat.url), ("stern", other.url), ("even", chat.url)}
        judge_heads(store, elsewhere, ["even"], add=True, overwrite=True, save=True)
        assert voters(store) == {("kind", chat.url), ("stern", other.url), ("even", other.url)}
    texts = 21
    assert len(read_records(store, "ccs", "hand")) == 3 * texts
    about = dict(hs.open(store.path).group["ccs/hand"].attrs)["judged_by"]
    assert [(judge["name"], judge["endpoints"], judge["votes"]) for judge in about] == [
        ("kind", [chat.url], texts),
        ("stern", [other.url], texts),
        ("even", [other.url], texts),
    ]


def voters(store: hs.Store) -> set[tuple[str, str]]:
    """Every judge of the run, with the endpoint of its answers."""
    return {(record["judge"], record["endpoint"]) for record in read_records(store, "ccs", "hand")}


def test_votes_come_with_the_replies_of_labellers_and_judges(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    label_by_model(store, asker, "m", save=True)
    chat.answer = lambda model, prompt: (
        "I'd rather not." if model == "low" and '"text 6"' in prompt else say(model, prompt)
    )
    judge_heads(store, asker, ["even", "low"], save=True)
    found = read_votes(store)
    assert (found.votes_source, found.labels_source) == ("majority of even, low", read_labels(store).source)
    head = found.head(1, 1)
    assert (head.label, head.label_replies, head.score) == ("animals", ('{"label": "animals"}',), 1)
    (text,) = head.texts
    assert text == VotesOnText(
        "text 6",
        True,
        (JudgesVote("even", True, ('{"associated": 1}',)), JudgesVote("low", None, ("I'd rather not.",) * 3)),
    )


def test_a_tie_among_an_even_number_of_judges_is_not_consistent(store: hs.Store, asker: Asker) -> None:
    label_by_model(store, asker, "m", save=True)
    assert judge_heads(store, asker, ["kind", "stern"], save=True).scores.max() == 0
    assert judge_heads(store, asker, ["kind", "stern", "low"], save=True).scores[0].tolist() == [5, 1, 2]


def test_a_missing_vote_is_left_out_of_the_majority_and_asked_for_again(
    store: hs.Store, asker: Asker, chat: ChatServer
) -> None:
    label_by_model(store, asker, "m", save=True)
    chat.answer = lambda model, prompt: (
        "I'd rather not." if model == "stern" and '"text 6"' in prompt else say(model, prompt)
    )
    found = judge_heads(store, asker, ["kind", "stern"], save=True)
    assert missing_votes(found) == {"kind": 0, "stern": 3}
    # Only kind voted on text 6; the other texts are ties.
    assert found.scores[1].tolist() == [0, 1, 0]
    chat.answer = say
    chat.requests.clear()
    assert missing_votes(judge_heads(store, asker, ["kind", "stern"], save=True))["stern"] == 0
    assert {request["model"] for request in chat.requests} == {"stern"}
    assert all('"text 6"' in prompt for prompt in chat.prompts())


def test_a_judge_that_never_votes_is_refused_and_other_answers_stay_cached(
    store: hs.Store, asker: Asker, chat: ChatServer
) -> None:
    label_by_model(store, asker, "m", save=True)
    chat.answer = lambda model, prompt: "maybe" if model == "stern" else say(model, prompt)
    with pytest.raises(
        LanguageModelError, match="stern gave no usable vote on 21 texts: its answer contains no JSON object"
    ):
        judge_heads(store, asker, ["kind", "stern"], save=True)
    chat.requests.clear()
    judge_heads(store, asker, ["kind"], save=True)
    assert chat.requests == []


def test_judges_may_check_the_labels_of_a_pool(toy_copy: Path, asker: Asker) -> None:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    label_heads(store, save=True)
    found = judge_heads(store, asker, ["kind"], save=True)
    assert found.labels.source == "concepts of pool hand"
    assert found.votes.source == "kind"
    assert found.scores.tolist() == [[5, 5, 5], [5, 1, 0]]
    # The pool's own votes replace those of judges only on request.
    with pytest.raises(StoreError, match=r"ccs run 'hand' \(by kind\) .* --overwrite .* which replaces ccs/hand$"):
        concept_consistency(store, save=True)
    assert read_scores(store).votes.source == "kind"
    assert concept_consistency(store, overwrite=True, save=True).votes.source == "concepts of pool hand"


def test_labels_of_a_model_without_judges_are_refused_with_what_to_do(store: hs.Store, asker: Asker) -> None:
    label_by_model(store, asker, "m", save=True)
    with pytest.raises(
        SettingsError, match=r"so judges must vote on them; name judges with --judge, or label another run by the pool"
    ):
        concept_consistency(store, save=True)


def test_a_judge_named_twice_is_refused(store: hs.Store, asker: Asker) -> None:
    label_by_model(store, asker, "m", save=True)
    with pytest.raises(SettingsError, match="--judge kind is given twice"):
        judge_heads(store, asker, ["kind", "even", "kind"], save=True)


def test_repeating_labels_and_votes_asks_nothing_and_changes_nothing(
    store: hs.Store, asker: Asker, chat: ChatServer, tmp_path: Path
) -> None:
    labels = label_by_model(store, asker, "m", save=True)
    judge_heads(store, asker, ["kind"], save=True)
    before = relative_files(store.path)
    chat.requests.clear()
    events: list[Progress] = []
    # This cache is empty; the stored labels and votes are enough.
    forgetful = Asker(asker.endpoint, AnswerCache(tmp_path / "new"))
    assert label_by_model(store, forgetful, "m", on_progress=events.append, save=True) == labels
    judge_heads(store, forgetful, ["kind"], on_progress=events.append, save=True)
    assert chat.requests == []
    assert relative_files(store.path) == before
    assert ["unchanged" in event.note for event in events if event.stage == NOTE] == [True, True]


def test_other_labels_and_fewer_judges_are_refused_before_anything_is_asked(
    store: hs.Store, asker: Asker, chat: ChatServer
) -> None:
    earlier = label_by_model(store, asker, "m", save=True)
    judge_heads(store, asker, ["kind", "even"], save=True)
    before = relative_files(store.path)
    chat.requests.clear()
    lost = r"give --overwrite \(in Python overwrite=True\), which replaces "
    for relabel in (
        lambda: label_by_model(store, asker, "n", save=True),
        lambda: label_by_model(store, asker, "m", examples=[Example("boats", ("A ferry",))], save=True),
    ):
        with pytest.raises(
            StoreError,
            match=rf"labels run 'hand' was made differently .*{lost}labels/hand; ccs/hand would be kept, marked as of",
        ):
            relabel()
    for judges in (["low"], ["kind"]):
        with pytest.raises(StoreError, match=rf"has votes by .*even; keep them with --add; .* {lost}ccs/hand$"):
            judge_heads(store, asker, judges, save=True)
    assert chat.requests == []
    assert relative_files(store.path) == before
    label_by_model(store, asker, "m", examples=[Example("boats", ("A ferry",))], overwrite=True, save=True)
    # The votes on the earlier labels stay, with these labels.
    kept = read_scores(store)
    assert (kept.older, kept.votes.judges, kept.labels.names) == ("labels/hand", ("kind", "even"), earlier.names)


def test_heads_without_a_usable_answer_are_asked_about_again_until_scores_are_made(
    store: hs.Store, asker: Asker, chat: ChatServer
) -> None:
    chat.answer = lambda model, prompt: "hm, hm" if first_of(prompt) == "text 0" else say(model, prompt)
    assert label_by_model(store, asker, "m", save=True).names[0][0] is None
    chat.requests.clear()
    chat.answer = say
    assert label_by_model(store, asker, "m", save=True).names[0][0] == "place"
    assert {first_of(prompt) for prompt in chat.prompts()} == {"text 0"}


def test_scores_of_one_layer_count_its_heads_only(store: hs.Store, asker: Asker) -> None:
    label_by_model(store, asker, "m", save=True)
    found = judge_heads(store, asker, ["kind", "even", "low"], save=True)
    one = found.layer(1)
    assert one.scores.tolist() == [[5, 1, 0]]
    assert one.groups == {"high": 1, "moderate": 0, "low": 2}
    assert one.at_k == pytest.approx([1 / 3, 1 / 3, 0, 0, 0, 1 / 3])
    assert one.ccr == 0
    assert one.entanglement == 0
    # One of one text, and five of five.
    assert one.association == 1.0
    by_layer = dict(store.group["ccs/hand"].attrs)["by_layer"]
    assert by_layer["1"] == one.summary()


def test_association_is_the_mean_share_of_a_heads_own_texts() -> None:
    labels = Labels("hand", "by hand", (8,), (("a", "b", None),), None)
    cast = np.array([[[[1, 1, 0, 0, 1], [1, 0] + [NO_VOTE] * 3, [NO_VOTE] * 5]]], np.int8)
    found = ConceptConsistency(labels, Votes(("j",), cast, np.array([[5, 2, 5]], np.int8)))
    assert found.association == pytest.approx((3 / 5 + 1 / 2) / 2)
    nothing = Labels("hand", "by hand", (8,), ((None, None, None),), None)
    assert math.isnan(ConceptConsistency(nothing, found.votes).association)
    assert math.isnan(ConceptConsistency(nothing, found.votes).entanglement)


def test_stores_are_compared_with_the_method_of_each(store: hs.Store, asker: Asker) -> None:
    label_by_model(store, asker, "m", save=True)
    judge_heads(store, asker, ["kind"], save=True)
    one, other = compare([store, hs.open(store.path)])
    assert one.method == other.method == Method("plain", read_labels(store).source, "kind")
    assert one.model.startswith(str(store.attributes["model"]))
    assert one.found.groups["high"] == 4


def test_the_report_says_who_labelled_and_who_voted(store: hs.Store, asker: Asker, tmp_path: Path) -> None:
    label_by_model(store, asker, "m", save=True)
    found = judge_heads(store, asker, ["kind", "even", "low"], save=True)
    page = write_report(store, tmp_path / "report.html").read_text()
    assert f"<dd>{found.labels.source}</dd>" in page
    assert "<dt>Votes from</dt><dd>majority of kind, even, low</dd>" in page


def test_scores_of_an_early_version_are_refused_with_what_to_do(store: hs.Store, asker: Asker) -> None:
    analyses.save(store, "ccs", "old", {"scores": (np.zeros((1, 3), np.int8), ("layer", "head"))}, {"source": "x"})
    with pytest.raises(StoreError, match="made by an earlier headspan; run headspan ccs --run old --overwrite"):
        read_scores(store, "old")


def test_the_shipped_examples_have_clean_labels_and_texts_of_no_pool() -> None:
    examples = read_examples()
    assert len(examples) == 5
    pools = {text.casefold() for name in ("general", "world") for text in hs.read_pool(name).texts}
    for example in examples:
        assert clean_label(example.label) == example.label
        assert len(example.texts) == 5
        assert not {text.casefold() for text in example.texts} & pools


def test_users_can_add_examples(tmp_path: Path, store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('\ufeff[[head]]\nlabel = "boats"\ntexts = ["A ferry", "Two  canoes"]\n', encoding="utf-8")
    examples = read_examples([mine])
    assert examples[-1] == Example("boats", ("A ferry", "Two canoes"))
    assert examples[:-1] == read_examples()
    label_by_model(store, asker, "m", examples=examples, save=True)
    assert '"A ferry"\n"Two canoes"\nAnswer: {"label": "boats"}' in chat.prompts()[0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[[head]\n", "is not TOML"),
        (b"", "contains no labelled heads; write [[head]]"),
        (b"head = 3", "contains no labelled heads"),
        (b"head = [3]", "head 1 contains a value that is not a table"),
        (b'[[head]]\ntexts = ["a"]', "head 1 has no label"),
        (b'[[head]]\nlabel = "a"\ntexts = []', "head 1 ('a') has no list of texts"),
        (b'[[head]]\nlabel = "a"\ntexts = ["a", 3]', "head 1 ('a') has no list of texts"),
        (b'[[head]]\nlabel = "a"\ntexts = ["a"]\ntext = "b"', "head 1 contains text;"),
        (b"\xff", "byte 0 is not UTF-8"),
    ],
)
def test_an_invalid_examples_file_is_refused_with_the_reason(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(TextsError) as caught:
        read_examples([path])
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    with pytest.raises(TextsError, match=r"nowhere\.toml: cannot be read"):
        read_examples([tmp_path / "nowhere.toml"])


def test_models_label_and_judge_without_saving(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    before = relative_files(store.path)
    labels = label_by_model(store, asker, "m", read_spans(store))
    found = judge_heads(store, asker, ["kind", "even"], labels)
    # Without a name, the labels of the store's only run are made, but not saved.
    assert label_by_model(store, asker, "m").names == labels.names
    assert relative_files(store.path) == before
    with pytest.raises(StoreError, match=r"ccs/hand cannot be saved, because the labels/hand .* is not in the store"):
        judge_heads(store, asker, ["kind", "even"], labels, save=True)
    assert relative_files(store.path) == before
    label_by_model(store, asker, "m", "hand")
    assert judge_heads(store, asker, ["kind", "even"], labels, save=True).scores.tolist() == found.scores.tolist()
    assert read_scores(store).labels.names == labels.names
    assert read_scores(store).older is None
    # Other judges may be asked without regard to the saved votes, or together with them.
    before = relative_files(store.path)
    assert judge_heads(store, asker, ["low"], labels).votes.judges == ("low",)
    assert judge_heads(store, asker, ["low"], labels, add=True).votes.judges == ("kind", "even", "low")
    assert relative_files(store.path) == before


def other_spans(store: hs.Store, heads: Any) -> None:
    """Replace the text spans of `store`."""
    arrays, settings = results.load(store, "textspan", "hand")
    dims = ("layer", "head", "text")
    indices = np.array(heads)
    named = {"indices": (indices, dims), "explained": (arrays["explained"], dims)}
    analyses.save(store, "textspan", "hand", named, {**settings, "images": 66}, overwrite=True)


def test_paid_labels_and_votes_follow_a_newer_run_with_the_same_texts(
    store: hs.Store, asker: Asker, chat: ChatServer, tmp_path: Path
) -> None:
    label_by_model(store, asker, "m", "hand")
    judge_heads(store, asker, ["kind"], "hand")
    other_spans(store, HEADS)
    assert read_labels(store).older == read_scores(store).older == "textspan/hand"
    chat.requests.clear()
    forgetful = Asker(asker.endpoint, AnswerCache(tmp_path / "new"))
    with pytest.raises(
        StoreError, match=r"labels/hand is of an older textspan/hand, .* run headspan label --run hand --overwrite$"
    ):
        judge_heads(store, forgetful, ["kind"], "hand")
    label_by_model(store, forgetful, "m", "hand")
    with pytest.raises(
        StoreError, match=r"ccs/hand is of an older labels/hand, .* run headspan ccs --run hand --overwrite$"
    ):
        judge_heads(store, forgetful, ["even"], "hand", add=True)
    judge_heads(store, forgetful, ["kind"], "hand")
    assert chat.requests == []
    assert read_labels(store).older is read_scores(store).older is None


def test_paid_votes_on_older_labels_are_never_replaced_unasked(store: hs.Store, asker: Asker, chat: ChatServer) -> None:
    label_by_model(store, asker, "m", "hand")
    judge_heads(store, asker, ["kind"], "hand")
    # The second head's texts are others now.
    other_spans(store, [[HEADS[0][0], HEADS[0][0], HEADS[0][2]], HEADS[1]])
    with pytest.raises(StoreError, match=r"labels run 'hand' was made differently .*--overwrite"):
        label_by_model(store, asker, "m", "hand")
    label_by_model(store, asker, "m", "hand", overwrite=True)
    before = relative_files(store.path)
    chat.requests.clear()
    with pytest.raises(StoreError, match=r"ccs run 'hand' has votes on an older labels/hand; .*--overwrite"):
        judge_heads(store, asker, ["kind"], "hand")
    assert chat.requests == []
    assert relative_files(store.path) == before
    judge_heads(store, asker, ["kind"], "hand", overwrite=True)
    assert read_scores(store).older is None
