"""Descriptions made by hand: texts whose classes, rewards and verdicts a test knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.result import (
    NON_VISUAL,
    SPURIOUS,
    UNDECIDED,
    VISUAL,
    Descriptions,
    Inspection,
)
from headspan.describe.rewards.target import Target

# Each with its class, question, times, whether it is greedy, its reward, verdict and attribute.
ROWS = (
    ("a round, red thing", 0, 0, 5, True, 21.5, VISUAL, "shape"),
    ("click to enlarge", 0, 0, 2, False, 24.0, SPURIOUS, ""),
    ("it is <b>used</b> in games & parks", 0, 2, 1, False, 19.25, NON_VISUAL, "use"),
    ("four equal sides", 1, 0, 7, True, 22.75, VISUAL, "shape"),
    ("a gift for every child", 1, 2, 3, True, 18.0, UNDECIDED, ""),
)
QUALITY = {
    "reward": 21.9,
    "reward_low": 20.5,
    "reward_high": 23.0,
    "kl": 3.2,
    "distinct_1": 0.75,
    "cut": 0.0,
    "zero_shot": 0.875,
    "zero_shot_names": 0.75,
    "zero_shot_chance": 0.5,
    "untrained_reward": 18.5,
    "best_of_64_reward": 21.0,
    "best_of_64_kl": 3.1746,
    "equal_kl_reward": float("nan"),
}


def hand_made_descriptions(inspected: bool = True, **changed: Any) -> Descriptions:
    """Five descriptions of the classes `ball` and `cube box`, with their inspection by two judges."""
    texts, classes, questions, times, greedy, rewards, verdicts, attributes = zip(*ROWS, strict=True)
    votes = np.array([verdicts, verdicts], np.int8)
    # The judges disagree on the last text.
    votes[:, -1] = SPURIOUS, VISUAL
    found = Descriptions(
        run="hand",
        model="small-model",
        adapter_sha256="0" * 64,
        target=Target(),
        classes=("ball", "cube box"),
        classes_from="key class_name",
        questions=QUESTIONS[:3],
        texts=texts,
        class_of=np.array(classes),
        question_of=np.array(questions),
        times=np.array(times),
        greedy=np.array(greedy),
        rewards=np.array(rewards, np.float32),
        log_ratios=np.linspace(0.5, 4.5, len(texts)).astype(np.float32),
        cut=np.array([False, False, True, False, False]),
        ended=np.array([True, True, False, True, True]),
        quality=QUALITY,
        training={"steps": 3, "beta": 0.05, "learner": "rloo"},
        log={"step": (1.0, 2.0, 3.0), "reward": (18.5, 20.0, 21.9), "kl": (0.0, 1.5, float("nan"))},
        inspection=Inspection(("judge-1", "ann"), votes, np.array(verdicts, np.int8), attributes),
    )
    return replace(found if inspected else replace(found, inspection=None), **changed)
