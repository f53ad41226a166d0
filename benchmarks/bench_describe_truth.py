"""Do descriptions bring up what a model has learned, as far as that is known?

Descriptions of shapes of the image world, by the reference language model. Their mean reward beside the best sentence of
the grammar and best-of-64; the frontier of reward against KL; the words that a single head prefers; and CLIPs in which an
empty phrase and a non-visual word were planted, beside controls.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import benchmark
from benchmarks.planted_clips import CLASSES, KEY, WORDS, made_store, planted_judge, shape_classes, study_of
from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.asked.questions import QUESTIONS
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.rewards.reward import Reward
from headspan.describe.rewards.target import Target
from headspan.describe.training.settings import TrainingSettings
from headspan.describe.training.train import train
from headspan.describe.writing.write import write
from headspan.errors import percent
from headspan.store.reader import Store
from headspan.tasks.factors import Factors
from headspan.tasks.truths import UNKNOWN
from headspan.world.best_sentences import best_sentences, embed_sentences
from headspan.world.factors import COLOURS
from headspan.world.parts import EMPTY, EMPTY_PHRASES, NON_VISUAL, VISUAL, parts_of
from tools.plant_reference import RECIPE, SCENES, Images, plant
from tools.planting import planting
from tools.training_model import CONFIG

QUESTION = "descriptions of the image world, beside what is known"
DUE_TO = "TODO"
LANGUAGE_MODEL = "reference"
# Rewards, by their names in the line.
TARGETS = {"contrastive": Target(contrast=True), "published": Target()}
# The penalty of all trainings but those of the frontier.
BETA, BETAS = 0.05, (0.02, 0.05, 0.2, 1.0)
SEEDS = (1, 2, 3)
# Heads of the reference model that the demo labels as colours.
COLOUR_HEADS = ((5, 0), (5, 3), (5, 4))
_IMAGES, _PLANTED_IMAGES = 2_000, 1_200
_TRAINING = TrainingSettings(steps=150, batch=32, generations=4)
_SAMPLES, _BEST_OF = 16, 64


def run(toy: bool) -> dict[str, Any]:
    """Shares of the optimum, the frontier, words by factor, and findings of planted CLIPs and their controls."""
    jobs: list[tuple[Any, ...]] = [(_shipped,)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not toy:
            jobs += [(_planted, seed, even) for seed in SEEDS for even in (False, True)]
        images = folder / "images.pt"
    ...
    return {}
