"""Learners of sparse features: codes, gradients and losses beside dense arithmetic and autograd's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headspan.errors import SettingsError
from headspan.features.learners.active import largest
from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.kinds import LEARNERS
from headspan.features.learners.learner import TEXT
from headspan.features.learners.make import make_learner
from tests import tolerances
from tests.tolerances import FLOAT32_SUM

WIDTH, FEATURES, K = 13, 37, 3


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors of two sides, which have different means."""
    draw = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, count, WIDTH, generator=draw)
    shift = torch.zeros(WIDTH)
    shift[0] = 2
    return tuple(torch.nn.functional.normalize(side, dim=1) for side in (images + shift, texts - shift))  # type: ignore[return-value]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return tolerances.relative_error(got.detach(), wanted.detach())


def made(kind: str, **settings: object) -> Autoencoder:
    torch.manual_seed(5)
    learner = make_learner(kind, WIDTH, **{"features": FEATURES, "k": K, **settings})
    assert isinstance(learner, Autoencoder)
    return learner


def test_gradients_of_the_largest_equal_those_of_dense_arithmetic() -> None:
    torch.manual_seed(1)
    vectors, rows, bias = torch.randn(7, WIDTH), torch.randn(FEATURES, WIDTH), torch.randn(FEATURES) - 1
    decoder = torch.randn(FEATURES, WIDTH)
    weights = torch.randn(7, WIDTH)
    found = []
    for sparse in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (vectors, rows, bias, decoder)]
        if sparse:
            codes = largest(*leaves[:3], K)
            assert codes.features.numel() == 7 * K
            decoded = codes.decode(leaves[3])
        else:
            activations = leaves[0] @ leaves[1].t() + leaves[2]
            kept = activations >= activations.topk(K).values[:, -1:]
            decoded = torch.where(kept, activations.relu(), 0.0) @ leaves[3]
        (decoded * weights).sum().backward()
        found.append([decoded.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert relative_error(one, other) < FLOAT32_SUM


def test_topk_codes_have_at_most_k_features_and_decode_as_their_sum() -> None:
    learner = made("topk")
    images, texts = pairs(257)
    learner.start(images, texts)
    codes = learner.encode(images)
    assert (codes >= 0).all()
    assert codes.count_nonzero(1).max() == K
    row = learner.W_enc.t() @ (images[3] - learner.b_dec) + learner.b_enc
    best = row.topk(K)
    expected = torch.zeros(FEATURES).index_put((best.indices,), best.values.clamp_min(0))
    assert relative_error(codes[3], expected) < FLOAT32_SUM
    active = learner.active(images - learner.bias(0))
    assert relative_error(active.dense(FEATURES), codes) < FLOAT32_SUM
    assert relative_error(active.decode(learner.W_dec) + learner.b_dec, learner.decode(codes)) < FLOAT32_SUM


def test_batch_topk_keeps_the_largest_of_the_batch_and_those_above_the_threshold_later() -> None:
    learner = made("batch_topk")
    images, texts = pairs(257)
    learner.start(images, texts)
    dense = torch.relu((images - learner.b_dec) @ learner.W_enc + learner.b_enc).detach()
    ordered = dense.flatten().sort(descending=True).values
    codes = learner.active(images - learner.b_dec).dense(FEATURES)
    assert codes.count_nonzero() == 257 * K
    assert torch.equal(codes > 0, dense >= ordered[257 * K - 1])
    assert codes.count_nonzero(1).unique().numel() > 1
    # The first threshold is the least kept activation; the next moves a tenth of the way.
    assert learner.threshold == pytest.approx(float(ordered[257 * K - 1]), rel=1e-6)
    first = float(learner.threshold)
    learner.active(images[:100] - learner.b_dec)
    least = float(dense[:100].flatten().sort(descending=True).values[100 * K - 1])
    assert float(learner.threshold) == pytest.approx(0.9 * first + 0.1 * least, rel=1e-6)
    learner.eval()
    learner.active(images[:10] - learner.b_dec)
    kept = learner.encode(images)
    assert torch.equal(kept > 0, dense >= learner.threshold)
    for row in (0, 99):
        assert relative_error(learner.encode(images[row : row + 1])[0], kept[row]) < FLOAT32_SUM


@pytest.mark.parametrize("kind", LEARNERS)
def test_training_lowers_the_loss_and_repeats_under_a_seed(kind: str) -> None:
    images, texts = pairs(300)
    weights = []
    for _ in range(2):
        learner = made(kind)
        learner.start(images, texts)
        optimiser = torch.optim.Adam(learner.parameters(), lr=5e-3)
        losses = []
        for step in range(60):
            optimiser.zero_grad()
            terms = learner.loss(images, texts)
            terms["total"].backward()
            optimiser.step()
            learner.after_step(step)
            losses.append(float(terms["total"].detach()))
        assert losses[-1] < 0.8 * losses[0]
        weights.append(learner.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_idle_features_are_counted_and_revived_by_the_residual() -> None:
    learner = made("topk", dead_steps=2)
    images, texts = pairs(64)
    learner.start(images, texts)
    with torch.no_grad():
        learner.b_enc[5:] = -10
    for _ in range(2):
        terms = learner.loss(images, texts)
    assert learner.dead().nonzero().flatten().tolist() == list(range(5, FEATURES))
    assert float(terms["aux"].detach()) == pytest.approx(1 / 32)
    terms["total"].backward()
    # ReLU of the dead is 0, so that only an activation above 0 can learn.
    with torch.no_grad():
        learner.b_enc[5:] = -0.1
        learner.b_enc[:5] = 1
    learner.zero_grad()
    terms = learner.loss(images, texts)
    with torch.no_grad():
        centred = learner.centred(images, texts)
        residual = centred - learner.active(centred).decode(learner.W_dec)
        activations = centred @ learner.W_enc[:, 5:] + learner.b_enc[5:]
        best = activations.topk(WIDTH // 2)
        codes = torch.zeros_like(activations).scatter(1, best.indices, best.values.relu())
        left = (residual - codes @ learner.W_dec[5:]).square().sum() / residual.square().sum()
    assert float(terms["aux"].detach()) == pytest.approx(float(left) / 32, rel=1e-4)
    terms["total"].backward()
    assert learner.W_enc.grad is not None
    assert (learner.W_enc.grad[:, 5:] != 0).any()
    learner.eval()
    before = learner.idle_steps.clone()
    assert "aux" not in learner.loss(images, texts)
    assert torch.equal(learner.idle_steps, before)


@pytest.mark.parametrize("input_bias", ["shared", "separate"])
def test_input_biases_start_at_the_means_of_the_sides(input_bias: str) -> None:
    learner = made("topk", input_bias=input_bias)
    images, texts = pairs(50)
    learner.start(images, texts)
    means = (images.mean(0), texts.mean(0))
    if input_bias == "shared":
        means = (torch.cat([images, texts]).mean(0),) * 2
    assert relative_error(learner.bias(0), means[0]) < FLOAT32_SUM
    assert relative_error(learner.bias(TEXT), means[1]) < FLOAT32_SUM
    codes = torch.zeros(1, FEATURES)
    assert torch.equal(learner.decode(codes, TEXT)[0], learner.bias(TEXT))
    # With one bias, images and texts that lie apart have more to explain.
    spread = torch.stack([(s - m).square().sum(1).mean() for s, m in zip((images, texts), means, strict=True)]).mean()
    assert float(learner.spread) == pytest.approx(float(spread), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("top_k", {}, "there is no learner 'top_k'; choose one of topk, batch_topk"),
        ("topk", {"k": 14}, "k is 14, but vectors have 13 numbers"),
        ("topk", {"k": 5, "features": 4}, "k is 5, but the dictionary has 4 features"),
        ("topk", {"steps": 5}, "the learner has no setting 'steps'; it has width, features, k, input_bias"),
        ("topk", {"input_bias": "both"}, "input_bias is 'both', but must be one of shared, separate"),
        ("batch_topk", {"features": -1}, "features is -1, but must be at least 0"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(kind: str, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_learner(kind, WIDTH, **settings)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("kind", LEARNERS)
def test_settings_make_the_same_learner_again(kind: str) -> None:
    learner = make_learner(kind, WIDTH)
    again = make_learner(kind, **learner.settings)
    assert again.settings == learner.settings
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in learner.state_dict().items()
    }
