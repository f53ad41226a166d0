"""Find the sentence that a reward prefers for each class, by trying every sentence of the grammar.

All texts of the grammar are embedded once, which takes one to two minutes on a core; another target of the same model
then costs a product. So the result is the exact optimum over the grammar, but not over all texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from headspan.describe.rewards.reward import Reward, Texts
from headspan.events import Listener, Progress, ignore
from headspan.world.sentences import MOST, Sentence, sentences

# Texts that are embedded between two progress events.
_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Enumerated:
    """Sentences of the grammar and their unit vectors by one model, `[sentence, joint]`."""

    sentences: tuple[Sentence, ...]
    vectors: Float32[np.ndarray, "sentence joint"]

    def __repr__(self) -> str:
        return f"Enumerated({len(self.sentences):,} sentences)"


@dataclass(frozen=True, slots=True)
class BestSentence:
    """The sentence of the grammar with the highest reward for a class; of equal ones, the first."""

    name: str
    sentence: Sentence
    reward: float


def embed_sentences(texts: Texts, most: int = MOST, on_progress: Listener = ignore) -> Enumerated:
    """Embed every sentence that names at most `most` values and phrases."""
    found = tuple(sentences(most))
    # Texts of similar length are embedded together.
    order = sorted(range(len(found)), key=lambda place: len(found[place].text.split()))
    vectors: Float32[np.ndarray, "sentence joint"] | None = None
    for start in range(0, len(order), _AT_ONCE):
        places = order[start : start + _AT_ONCE]
        part = texts.vectors([found[place].text for place in places])
        if vectors is None:
            vectors = np.empty((len(found), part.shape[1]), np.float32)
        vectors[places] = part
        on_progress(Progress("sentences", start + len(places), len(order)))
    assert vectors is not None, "the grammar holds sentences"
    return Enumerated(found, vectors)


def best_sentences(
    reward: Reward, enumerated: Enumerated | None = None, on_progress: Listener = ignore
) -> tuple[BestSentence, ...]:
    """The best sentence for every class of the reward, in the order of its classes.

    `enumerated` is what `embed_sentences` gave for the reward's model; by default it is computed.
    """
    every = enumerated or embed_sentences(reward.texts, on_progress=on_progress)
    found = []
    for name, vector in zip(reward.classes.names, reward.vectors, strict=True):
        rewards = reward.scale * (every.vectors @ vector)
        best = int(rewards.argmax())
        found.append(BestSentence(name, every.sentences[best], float(rewards[best])))
    return tuple(found)
