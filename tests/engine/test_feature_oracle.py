"""Learners of features beside those of `overcomplete`, with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import overcomplete_sae
from headspan.features.learners.make import make_learner
from headspan.features.scores.codes import sparse_codes
from headspan.features.scores.reconstruction import ReconstructionSums
from tests.tolerances import FLOAT32_SUM, relative_error

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(overcomplete_sae() is None, reason="overcomplete is not installed"),
]
WIDTH, FEATURES, K, VECTORS = 17, 53, 4, 101


class SameEncoder(nn.Module):
    """The encoder of our learner, as `overcomplete` wants it: activations, and these after ReLU."""

    def __init__(self, learner: Any) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        activations = centred @ self.learner.W_enc + self.learner.b_enc
        return activations, activations.relu()


@pytest.fixture
def centred() -> Tensor:
    """Vectors whose mean is 0, so that both libraries measure R² from the same point."""
    drawn = torch.randn(VECTORS, WIDTH, generator=torch.Generator().manual_seed(7))
    return drawn - drawn.mean(0)


def ours(kind: str, **settings: Any) -> Any:
    torch.manual_seed(3)
    learner: Any = make_learner(kind, WIDTH, features=FEATURES, k=K, **settings)
    with torch.no_grad():
        learner.b_dec.normal_()
        if hasattr(learner, "b_enc"):
            learner.b_enc.normal_(std=0.2)
            learner.W_enc.normal_(std=0.3)
    return learner


def theirs(learner: Any, name: str, **settings: Any) -> Any:
    encoder = {} if name == "MpSAE" else {"encoder_module": SameEncoder(learner)}
    made = getattr(overcomplete_sae(), name)(WIDTH, FEATURES, **encoder, **settings)
    with torch.no_grad():
        made.dictionary._weights.copy_(learner.W_dec)
    return made


@torch.no_grad()
def test_topk_codes_reconstructions_r2_and_dead_features_are_those_of_overcomplete(centred: Tensor) -> None:
    from overcomplete.metrics import dead_codes, r2_score

    learner = ours("topk", dead_steps=1)
    vectors = centred + learner.b_dec
    _, codes, decoded = theirs(learner, "TopKSAE", top_k=K)(centred)
    assert relative_error(learner.encode(vectors), codes) < FLOAT32_SUM
    assert relative_error(learner.decode(codes) - learner.b_dec, decoded) < FLOAT32_SUM
    sums = ReconstructionSums(WIDTH)
    sums.add(sparse_codes(learner.encode(vectors).numpy()), vectors.numpy(), learner.decode(codes).numpy())
    figures = sums.figures("image")
    assert figures["image_r2"] == pytest.approx(float(r2_score(centred, decoded)), abs=1e-5)
    assert figures["image_l0"] == pytest.approx(float((codes > 0).sum(1).float().mean()))
    # A few vectors leave most features without activity.
    with torch.enable_grad():
        learner.loss(vectors[:5], None)
    dead = dead_codes(codes[:5])
    assert 0 < dead.sum() < FEATURES
    assert torch.equal(learner.dead(), dead > 0)


@torch.no_grad()
def test_batch_topk_codes_of_batches_and_by_the_running_threshold_are_those_of_overcomplete(centred: Tensor) -> None:
    learner = ours("batch_topk", dead_steps=1)
    other = theirs(learner, "BatchTopKSAE", top_k=K * 40)
    for batch in (centred[:40], centred[40:80]):
        other.train()
        _, codes, decoded = other(batch)
        active = learner.active(batch, 1)
        assert relative_error(active.dense(FEATURES), codes) < FLOAT32_SUM
        assert relative_error(active.decode(learner.W_dec), decoded) < FLOAT32_SUM
    assert float(learner.threshold) == pytest.approx(float(other.running_threshold), rel=1e-5)
    other.eval()
    learner.eval()
    assert relative_error(learner.encode(centred + learner.b_dec), other(centred)[1]) < FLOAT32_SUM
    learner.train()
    with torch.enable_grad():
        learner.loss(centred[:40] + learner.b_dec, None)
    from overcomplete.metrics import dead_codes

    other.train()
    assert torch.equal(learner.dead(), dead_codes(other(centred[:40])[1]) > 0)


@torch.no_grad()
def test_matching_pursuit_takes_the_steps_of_overcomplete(centred: Tensor) -> None:
    learner = ours("matching_pursuit")
    learner.b_dec.zero_()
    residual, codes = theirs(learner, "MpSAE", k=K).encode(centred)
    assert relative_error(learner.encode(centred), codes) < FLOAT32_SUM
    assert relative_error(centred - learner.decode(codes), residual) < FLOAT32_SUM
    assert np.count_nonzero(codes) > 3 * VECTORS
