"""The questions that a language model answers with descriptions of a class; the wording is headspan's own.

Source of the method: Esfandiarpoor, Menghini, Bach, arXiv 2403.16442, who ask 25 questions for each class.
"""

from __future__ import annotations

from collections.abc import Sequence

from headspan.errors import SettingsError

# `{c}` is the class.
QUESTIONS = (
    "What does a photo of a {c} show?",
    "Describe a {c} to someone who has never seen one.",
    "How would you recognise a {c}?",
    "What sets a {c} apart from similar things?",
    "Which details of a {c} stand out first?",
    "Write a caption for an image of a {c}.",
    "Describe the colours of a {c}.",
    "Describe the shape of a {c}.",
    "Describe the surface of a {c}.",
    "What surrounds a {c} in most images?",
    "Where would you find a {c}?",
    "What is a {c} used for, or what does it do?",
    "How large is a {c}, and where in an image is it?",
    "What would a painter notice about a {c}?",
    "Summarise a {c} in one sentence.",
    "What do people say about a {c}?",
    "Write a line of a poem about a {c}.",
    "Begin a short story with a {c}.",
    "What does a {c} remind you of?",
    "What feelings does an image of a {c} evoke?",
    "What could a {c} stand for?",
    "Write the title of a picture of a {c}.",
    "Explain the composition of a picture of a {c}.",
    "List the typical features of a {c}.",
    "Write an alternative text for an image of a {c}.",
)


def fewer(questions: Sequence[str], count: int | None) -> tuple[str, ...]:
    """`count` of the questions, spread evenly over them; all of them without a count.

    Raises SettingsError if there are not so many.
    """
    if count is None:
        return tuple(questions)
    if not 1 <= count <= len(questions):
        raise SettingsError(f"{count} questions: there are {len(questions)}; ask for 1 to {len(questions)}")
    return tuple(questions[place * len(questions) // count] for place in range(count))


def prompt(question: str, name: str) -> str:
    """The prompt that asks a question about the class `name`; the answer begins after it."""
    plain = name.replace("_", " ")
    if plain[:1].lower() in "aeiou":
        question = question.replace(" a {c}", " an {c}")
    return f"{question.replace('{c}', plain)}\n\n"
