"""The general text pool: its size and balance, and mistakes that a rule can find.

Whether a text reads well is not tested; a person has read the pool.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from importlib.resources import files

import pytest

from tools.make_pool import WORDS, Group, as_tsv, make_pool, read_groups, texts, with_articles

POOL = files("headspan.texts") / "pools" / "general.tsv"

# Begins with a written vowel and a spoken consonant.
TAKES_A = re.compile(r"(ukulele|uni(form|versity|corn)|eucalyptus|European|one-)")
# Begins with a written consonant and a spoken vowel.
TAKES_AN = re.compile(r"(hour|honest|heir|LED\b|[FHLMNRSX]\b)")


def lines() -> list[tuple[str, str]]:
    """The shipped pool as (text, concept), parsed without headspan."""
    rows = [line.split("\t") for line in POOL.read_text(encoding="utf-8").splitlines()]
    assert all(len(row) == 2 for row in rows)
    return [(text, concept) for text, concept in rows]


def wrong_articles(text: str) -> list[str]:
    """Every "a" or "an" of `text` that does not fit the next word, except the letter A in "letter A"."""
    wrong = []
    for found in re.finditer(r"(?<!letter )(?<!capital )\b([Aa]n?) (\w\S*)", text):
        article, word = found[1].lower(), found[2]
        vowel = word[0].lower() in "aeiou" and not TAKES_A.match(word)
        if (article == "an") != bool(vowel or TAKES_AN.match(word)):
            wrong.append(found[0])
    return wrong


def test_the_shipped_pool_equals_the_output_of_the_script() -> None:
    assert POOL.read_bytes() == as_tsv(make_pool(read_groups(WORDS))).encode("utf-8")


def test_the_pool_has_at_least_3200_texts_and_none_twice() -> None:
    counts = Counter(text.casefold() for text, _ in lines())
    assert len(counts) >= 3200
    assert [text for text, count in counts.items() if count > 1] == []


def test_every_concept_has_between_80_and_180_texts() -> None:
    counts = Counter(concept for _, concept in lines())
    assert 25 <= len(counts) <= 28
    assert {concept: count for concept, count in counts.items() if not 80 <= count <= 180} == {}
    assert [concept for concept in counts if not re.fullmatch(r"[a-z]+(-[a-z]+)*", concept)] == []


@pytest.mark.parametrize(
    ("slip", "pattern"),
    [
        ("a space too many", r"^\s|\s$|\s\s"),
        ("white space that is no blank", r"[^\S ]"),
        ("a small first letter", r"^[^A-Z]"),
        ("a full stop", r"[.,;:]$"),
        ("a word said twice", r"(?i)\b(\w+) \1\b"),
        ("an article without a noun", r"\b(a|an|the) (a|an|the|of|with|in|at|on)\b"),
        ("a form left open", r"[{}()<>|_\"]"),
        ("two withs", r"\bwith\b.*\bwith\b"),
    ],
)
def test_no_text_has_a_known_mistake(slip: str, pattern: str) -> None:
    assert [text for text, _ in lines() if re.search(pattern, text)] == [], slip


def test_every_article_fits_the_word_after_it() -> None:
    assert [text for text, _ in lines() if wrong_articles(text)] == []


@pytest.mark.parametrize(
    "text", ["A apple", "An dog and a cat", "An uniform", "A hourglass form", "A photo of a LED strip"]
)
def test_the_article_rule_finds_a_wrong_article(text: str) -> None:
    assert len(wrong_articles(text)) == 1


def test_the_first_words_of_a_text_do_not_predict_its_concept() -> None:
    concepts_of: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, concept in lines():
        if opening := re.match(r"(?:An? )?(?:photo|photograph|picture|image|snapshot) \w+", text, re.IGNORECASE):
            concepts_of[opening[0]][concept] += 1
    usual = {opening: counts for opening, counts in concepts_of.items() if counts.total() >= 40}
    assert len(usual) >= 10
    for words, counts in usual.items():
        assert len(counts) >= 5, words
        assert max(counts.values()) <= 0.3 * counts.total(), words


def test_no_concept_consists_of_one_template() -> None:
    openings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, concept in lines():
        openings[concept][" ".join(text.split()[:3])] += 1
    for concept, counts in openings.items():
        assert len(counts) >= 12, concept
        assert max(counts.values()) <= 0.25 * counts.total(), concept


def test_forms_and_frames_alternate_over_words() -> None:
    group = Group("animals", ("otter", "ape", "cow"), ("a(n) {}", "two {}s"), ("{}", "A photo of {}", "Image of {}"), 1)
    assert list(texts(group)) == ["An otter", "A photo of two apes", "Image of a cow"]


def test_a_repeated_text_is_refused_by_name() -> None:
    groups = [Group(concept, ("Rome",), ("{}",), ("{}",), 1) for concept in ("locations", "scenes")]
    with pytest.raises(AssertionError, match="'Rome' occurs twice, the second time under scenes"):
        make_pool(groups)


@pytest.mark.parametrize("word", ["orange tint", "hourglass form", "uniform grid", "one-off", "blue tint"])
def test_articles_follow_the_pronunciation(word: str) -> None:
    expected = "an" if word.split()[0] in ("orange", "hourglass") else "a"
    assert with_articles(f"With a(n) {word}") == f"With {expected} {word}"
