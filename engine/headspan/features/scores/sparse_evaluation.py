"""Retrieval and zero-shot classification with codes in place of embeddings, beside the embeddings themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.features.learners.learner import IMAGE, TEXT, Learner
from headspan.features.pairs.image_vectors import image_vectors
from headspan.features.pairs.pairs import Pairs
from headspan.features.pairs.space import EMBEDDING
from headspan.features.scores.encoder import Encoder
from headspan.tasks.classification import Classification
from headspan.tasks.retrieval import Retrieval
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task
from headspan.tasks.truths import UNKNOWN

# Pairs among which captions and images are looked for, and images that are classified at once.
RETRIEVED, _AT_ONCE = 2000, 2048
RECALLS = (1, 5)


def evaluate_codes(
    pairs: Pairs,
    learner: Learner,
    tasks: Sequence[str | Path | Task] = (),
    *,
    seed: int = 0,
    weights: str | Path | None = None,
    on_progress: Listener = ignore,
) -> dict[str, float]:
    """What codes retrieve and classify, as `codes_…`, beside embeddings, as `dense_…`; nothing in other spaces.

    Retrieval is among up to 2,000 random pairs: `text_to_image_r1` is the share of captions whose own image is the
    nearest, and so on, with `chance_r1`. A task gives `accuracy_TASK`, by the cosine of a class's code, that of its
    vector as a text, with an image's. Raises SettingsError for tasks that are no classification.
    """
    chosen = [each if isinstance(each, Task) else read_task(each) for each in tasks]
    for task in chosen:
        if task.metric != "accuracy":
            raise SettingsError(
                f"task {task.name}: its metric is {task.metric}, but codes are scored by zero-shot accuracy; name a "
                "task with the metric accuracy"
            )
    if pairs.space.kind != EMBEDDING:
        if chosen:
            raise SettingsError(
                f"tasks compare images with classes in the embedding, but the dictionary is of {pairs.space}; leave "
                "tasks out"
            )
        return {}
    was_training = learner.training
    learner.eval()
    try:
        encoder = Encoder(learner, int(learner.settings["features"]))
        found = retrieval_figures(pairs, encoder, seed) if pairs.with_texts else {}
        for task in chosen:
            found |= _accuracies(pairs, encoder, task, weights, on_progress)
    finally:
        learner.train(was_training)
    return found


def retrieval_figures(pairs: Pairs, encoder: Encoder, seed: int) -> dict[str, float]:
    """Recall at 1 and 5 in both directions, with embeddings and with codes."""
    block = next(pairs.blocks(RETRIEVED, seed))
    assert block.texts is not None, "pairs with texts"
    found = recalls("dense", block.images, block.texts)
    codes = [encoder.codes(vectors, side) for side, vectors in ((IMAGE, block.images), (TEXT, block.texts))]
    found |= recalls("codes", *_comparable(codes[0].toarray(), codes[1].toarray()))
    return found | {f"chance_r{k}": min(1.0, k / len(block.images)) for k in RECALLS}


def recalls(
    name: str, images: Float32[np.ndarray, "pair number"], texts: Float32[np.ndarray, "pair number"]
) -> dict[str, float]:
    """Recall by cosine among pairs; equal scores count as `tasks.retrieval` counts them."""
    found: dict[str, float] = {}
    names, numbers = tuple(map(str, range(len(images)))), np.arange(len(images))
    for direction, queries, answers in (("text_to_image", texts, images), ("image_to_text", images, texts)):
        units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        task = Retrieval(Task("codes", "retrieval"), names, names, units, numbers, numbers)
        figures = task.figures(task.outcomes(answers))
        found |= {f"{name}_{direction}_r{k}": figures[f"R@{k}"] for k in RECALLS}
    return found


def _comparable(
    images: Float[np.ndarray, "pair feature"], texts: Float[np.ndarray, "pair feature"]
) -> tuple[Float32[np.ndarray, "pair number"], Float32[np.ndarray, "pair number"]]:
    """Codes with two numbers more, so that those without an active feature have a direction, which nothing shares."""
    more = np.zeros((2, len(images), 2), np.float32)
    for side, codes in enumerate((images, texts)):
        more[side, ~codes.any(axis=1), side] = 1
    return np.hstack([images, more[0]], dtype=np.float32), np.hstack([texts, more[1]], dtype=np.float32)


def _accuracies(
    pairs: Pairs, encoder: Encoder, task: Task, weights: str | Path | None, on_progress: Listener
) -> dict[str, float]:
    """Zero-shot accuracy over the images of known class."""
    (store,) = pairs.stores
    evaluation = Classification.of(task, store, on_progress, weights=weights)
    known = np.flatnonzero(evaluation.truths != UNKNOWN)
    vectors = evaluation.classes.vectors
    class_codes = encoder.codes(vectors, TEXT)
    lengths = np.sqrt(class_codes.multiply(class_codes).sum(axis=1))
    named: dict[str, list[Int64[np.ndarray, " image"]]] = {"dense": [], "codes": []}
    for first in range(0, len(known), _AT_ONCE):
        images = image_vectors(store, pairs.space, store.rows[known[first : first + _AT_ONCE]])
        named["dense"].append((images @ vectors.T).argmax(axis=1))
        scores = (encoder.codes(images, IMAGE) @ class_codes.T).toarray()
        named["codes"].append((scores / np.where(lengths > 0, lengths, np.inf)).argmax(axis=1))
    shares = {name: float(evaluation.correct(np.concatenate(each)).mean()) for name, each in named.items()}
    return {
        **{f"{name}_accuracy_{task.name}": share for name, share in shares.items()},
        f"chance_accuracy_{task.name}": evaluation.chance,
    }
