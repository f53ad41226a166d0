"""Join equal descriptions of a class and a question into one entry that says how often it was sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.writing.samples import Samples
from headspan.store.reader import Store

# Images of a class that pages show.
_SHOWN = 8

# The type of each field.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("class_of", "question_of", "times"), np.int64),
    **dict.fromkeys(("rewards", "log_ratios"), np.float32),
    **dict.fromkeys(("greedy", "cut", "ended"), bool),
}


def entries_of(samples: Samples, greedy: Samples, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of `Descriptions` that have a value for each description.

    `rows` are the prompts, as `every_prompt` makes them. Entries of a prompt are in the order of their number, then of
    their reward, the largest first. The log-ratio of a text is the mean over its samples, which may differ in tokens.
    """
    texts: list[str] = []
    found: list[dict[str, Any]] = []
    for prompt, row in enumerate(rows):
        (best,) = greedy.texts_of(prompt)
        places: dict[str, list[int]] = {}
        for place, text in enumerate(samples.texts_of(prompt)):
            places.setdefault(text, []).append(place)
        entries = {text: _entry(samples, prompt, own) for text, own in places.items()}
        if best not in entries:
            entries[best] = {**_entry(greedy, prompt, [0]), "times": 0}
        ordered = sorted(entries, key=lambda text: (-entries[text]["times"], -entries[text]["rewards"], text))
        of_prompt = {"class_of": row["class_number"], "question_of": row["question_number"]}
        texts += ordered
        found += [{**of_prompt, **entries[text], "greedy": text == best} for text in ordered]
    arrays: dict[str, Any] = {name: np.array([each[name] for each in found], kind) for name, kind in _TYPES.items()}
    return {"texts": tuple(texts), **arrays}


def best_texts(untrained: Samples, count: int) -> dict[str, Any]:
    """The fields of `Descriptions` that say what the best of the first `count` samples of each prompt is."""
    first = untrained.first(count)
    chosen = first.rewards.argmax(axis=1)
    return {
        "best_of": first.rewards.shape[1],
        "best_texts": tuple(first.texts_of(prompt)[best] for prompt, best in enumerate(chosen.tolist())),
        "best_rewards": first.rewards.max(axis=1).astype(np.float32),
    }


def class_rows(store: Store, classes: DescribedClasses) -> Int64[np.ndarray, "class shown"]:
    """The rows of a few images of each class, at equal distances among its images; -1 where a class has fewer."""
    found = np.full((len(classes.names), _SHOWN), -1, np.int64)
    for number in range(len(classes.names)):
        images = classes.images(number, _SHOWN)
        found[number, : len(images)] = store.rows[images]
    return found


def _entry(samples: Samples, prompt: int, places: list[int]) -> dict[str, Any]:
    """The values of a text that is in these places of a prompt."""
    return {
        "times": len(places),
        "rewards": samples.rewards[prompt, places[0]],
        "log_ratios": samples.log_ratios[prompt, places].mean(),
        "cut": samples.cut[prompt, places[0]],
        "ended": samples.ended[prompt, places].all(),
    }
