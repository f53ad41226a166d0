"""Find the sentence that a reward prefers for each class, by trying every sentence of the grammar.

All texts of the grammar are embedded once, which takes half a minute on a core with the reference CLIP; another target
of the same model then costs a product. The result is the exact optimum over the grammar, but not over all texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from headspan.events import Listener, ignore
from headspan.world.sentences import MOST, Sentence, sentences

if TYPE_CHECKING:
    from headspan.describe.rewards.reward import Reward, Texts


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
    # Imported here, since the rest of the world needs no torch.
    from headspan.model.beginnings import encode_sharing, shares_beginnings
    from headspan.model.text import encode_texts

    found = tuple(sentences(most))
    written = [each.text for each in found]
    if shares_beginnings(texts.model):
        return Enumerated(found, encode_sharing(texts.model, written, on_progress))
    return Enumerated(found, encode_texts(texts.model, written, on_progress=on_progress))


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
