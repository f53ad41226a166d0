"""The prompts of a training, in their order: every question about every class, shuffled anew for each pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headspan.describe.asked.questions import prompt


def every_prompt(classes: Sequence[str], questions: Sequence[str]) -> list[dict[str, Any]]:
    """All questions about all classes, each a row with its prompt, the numbers of its class and of its question."""
    return [
        {"prompt": prompt(question, name), "class_number": number, "question_number": place}
        for number, name in enumerate(classes)
        for place, question in enumerate(questions)
    ]


def ordered(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows: one shuffled pass over all of them after the other."""
    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < count:
        order += generator.permutation(len(rows)).tolist()
    return [rows[place] for place in order[:count]]


def spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows at equal distances in all of them; repeated if there are fewer."""
    return [rows[place * len(rows) // count] for place in range(count)]
