"""Results as pandas frames, as short representations and as HTML tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import headspan as hs
from headspan.concepts.agreement import Agreement, rater_agreement
from headspan.concepts.comparison import compare
from headspan.concepts.consistency import NO_VOTE, ConceptConsistency, Votes
from headspan.concepts.labels import Labels
from headspan.concepts.votes import VotesOfRun, read_votes
from headspan.errors import HeadspanError, SettingsError
from headspan.frames import Tabular
from headspan.spans.result import HeadSpans
from headspan.texts.pool import Pool
from tests.engine.test_labels_and_ccs import HEADS, keep

POOL = Pool("hand", ("a <b> dog", "a cat", "red"), ("animals", "animals", "colours"))
SPANS = HeadSpans(
    "hand",
    POOL,
    (8, 10),
    np.array([[[0, 2], [1, -1]], [[2, 0], [-1, -1]]]),
    np.array([[[0.5, 0.75], [0.25, 0.25]], [[0.5, 1.0], [0.0, 0.0]]]),
    images=9,
)
LABELS = Labels("hand", "m at there", (8, 10), (("cat", "Cats"), ("red", None)), None, free=True)
CAST = np.array(
    [
        [[[1, 1, 1, 1, 1], [1, 0, 0, NO_VOTE, NO_VOTE]], [[1, 1, 1, 0, 0], [NO_VOTE] * 5]],
        [[[1, 1, 1, 1, 1], [0, 0, 0, 0, NO_VOTE]], [[1, 1, 1, 0, 1], [NO_VOTE] * 5]],
    ],
    np.int8,
)
SCORES = ConceptConsistency(LABELS, Votes(("A", "B"), CAST, np.array([[5, 4], [5, 0]], np.int8)))


@pytest.fixture
def votes(toy_copy: Path) -> VotesOfRun:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    hs.concepts.label_heads(store, save=True)
    hs.concepts.concept_consistency(store, save=True)
    return read_votes(store)


def test_spans_have_a_row_for_every_text_with_the_models_layer_number() -> None:
    frame = SPANS.to_frame()
    assert list(frame.columns) == ["layer", "head", "number", "text", "concept", "explained"]
    assert frame.to_numpy().tolist() == [
        [8, 0, 1, "a <b> dog", "animals", 0.5],
        [8, 0, 2, "red", "colours", 0.75],
        [8, 1, 1, "a cat", "animals", 0.25],
        [10, 0, 1, "red", "colours", 0.5],
        [10, 0, 2, "a <b> dog", "animals", 1.0],
    ]
    assert SPANS.explained_by(10, 0, 1) == 0.5
    assert SPANS.explained_by(10, 0) == 1.0


def test_labels_and_scores_have_a_row_for_every_head() -> None:
    frame = SCORES.to_frame()
    names = ["layer", "head", "label", "concept", "score", "group"]
    names += ["p", "p_drawn", "p_rotated", "p_adjusted", "beats_chance"]
    assert list(frame.columns) == names
    assert frame[["layer", "head", "score"]].to_numpy().tolist() == [[8, 0, 5], [8, 1, 0], [10, 0, 3], [10, 1, 0]]
    assert frame["concept"].tolist()[:3] == ["cat", "cat", "red"]
    assert frame["group"].tolist() == ["high", "low", "moderate", "low"]
    assert pd.isna(frame["label"][3])
    pd.testing.assert_frame_equal(frame[["layer", "head", "label", "concept"]], LABELS.to_frame())


def test_votes_have_a_row_for_every_judge_and_text(votes: VotesOfRun) -> None:
    frame = votes.to_frame()
    assert list(frame.columns) == ["layer", "head", "label", "number", "text", "consistent", "judge", "fits"]
    # Four heads with five texts, one with one text, and one without.
    assert len(frame) == 4 * 5 + 1
    assert frame.iloc[-1].tolist() == [1, 1, "animals", 1, "text 6", True, "concepts of pool hand", True]
    head = votes.head(0, 1)
    assert (head.label, head.score) == ("colours", 3)
    assert [text.text for text in head.texts] == ["text 3", "text 0", "text 4", "text 6", "text 5"]
    assert [text.consistent for text in head.texts] == [True, False, True, False, True]
    assert votes.head(1, 2).texts == ()


def test_agreement_has_a_row_for_texts_and_one_for_heads_of_every_pair() -> None:
    pairs = rater_agreement(SCORES)
    frame = pairs.to_frame()
    assert frame[["first", "second", "rated", "items"]].to_numpy().tolist() == [
        ["A", "B", "texts", 13],
        ["A", "B", "heads", 2],
    ]
    (pair,) = pairs
    assert frame["kappa"][0] == pair.texts.kappa.value
    assert frame["tau_b_high"][0] == pair.texts.kendall.high
    assert frame["same"][0] == pytest.approx(11 / 13)


def test_comparisons_have_a_row_for_every_store(votes: VotesOfRun, toy_copy: Path) -> None:
    found = compare([hs.open(toy_copy), hs.open(toy_copy)])
    frame = found.to_frame()
    assert frame["method"].tolist() == [1, 1]
    assert frame["high"].tolist() == [2, 2]
    assert frame["ccr"].tolist() == [0.5, 0.5]
    assert found.comparable
    assert repr(found) == "Comparison(2 stores, made in the same way)"


def test_representations_are_one_short_line(votes: VotesOfRun) -> None:
    assert repr(SPANS) == "HeadSpans('hand': 2 texts for each of 4 heads, layers 8, 10, over 9 images)"
    assert repr(POOL) == "Pool('hand': 3 texts, 2 concepts)"
    assert repr(LABELS) == "Labels('hand': 3 of 4 heads labelled, layers 8, 10, by m at there)"
    assert repr(SCORES) == "ConceptConsistency('hand': 4 heads, layers 8, 10; 1 high, 1 moderate, 2 low)"
    assert repr(SCORES.votes) == "Votes(27 votes by A, B)"
    assert repr(votes) == "VotesOfRun('hand': 21 votes on texts of 6 heads by concepts of pool hand)"
    (pair,) = rater_agreement(SCORES)
    assert repr(pair.texts).startswith("Agreement(13 items, 84.6 % equal, κ 0.")
    assert len(repr(pair.texts)) < 150


@pytest.mark.parametrize("result", [SPANS, LABELS, SCORES, rater_agreement(SCORES)])
def test_notebooks_show_a_table(result: Tabular) -> None:
    page = result._repr_html_()
    assert page.startswith(f"<p>{type(result).__name__}(")
    assert page.count("<tr>") > 2
    assert "<b>" not in page


def test_notebooks_show_the_first_rows_of_a_long_table(votes: VotesOfRun) -> None:
    page = votes._repr_html_()
    assert page.count("<tr>") == 1 + 20
    assert page.endswith("<p>1 more row</p>")


def test_heads_that_are_not_in_a_result_are_refused(votes: VotesOfRun) -> None:
    for ask in (SPANS.texts, SPANS.explained_by, LABELS.name, SCORES.score, SCORES.group):
        for layer, head in ((9, 0), (0, 0), (8, 2), (8, -1)):
            with pytest.raises(SettingsError, match=r"not in this result; it has layers 8, 10 with heads 0 to 1"):
                ask(layer, head)
    with pytest.raises(SettingsError, match=r"layer 9, head 0: not in this result"):
        SCORES.layer(9)
    with pytest.raises(SettingsError, match=r"layer 2, head 0: not in this result; it has layers 0-1"):
        votes.head(2, 0)


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(HeadspanError, match=r"^to_frame needs pandas, which is not installed; pip install 'headspan\["):
        SPANS.to_frame()
    assert "<table>" in SPANS._repr_html_()


def test_agreement_on_no_items_is_shown_in_words() -> None:
    alone = ConceptConsistency(LABELS, Votes(("A", "B"), np.full_like(CAST, NO_VOTE), SCORES.votes.texts))
    (pair,) = rater_agreement(alone)
    assert isinstance(pair.heads, Agreement)
    assert repr(pair.heads) == "Agreement(no items rated by both)"
