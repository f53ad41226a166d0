"""Learners of sparse features: codes, gradients and losses beside dense arithmetic and autograd's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from headspan.errors import SettingsError
from headspan.features.learners.active import Active, largest
from headspan.features.learners.batch_topk import largest_of_all
from headspan.features.learners.kinds import LEARNERS
from headspan.features.learners.learner import TEXT
from headspan.features.learners.make import make_learner
from headspan.features.learners.matching_pursuit import pursuit
from headspan.features.learners.non_negative import _relu_with_gradient_of_gelu
from headspan.features.learners.rows import Rows, cosines, group_norms, pair_of
from tests import tolerances
from tests.tolerances import FLOAT32_SUM

pytestmark = pytest.mark.usefixtures("one_thread")
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


def made(kind: str, **settings: object) -> Any:
    torch.manual_seed(5)
    sparse = {} if kind == "non_negative" else {"k": K}
    return make_learner(kind, WIDTH, **{"features": FEATURES, **sparse, **settings})


def detached(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


def train(learner: Any, steps: range, optimiser: torch.optim.Optimizer) -> list[float]:
    images, texts = pairs(300)
    losses = []
    for step in steps:
        optimiser.zero_grad()
        terms = learner.loss(images, texts)
        terms["total"].backward()
        optimiser.step()
        learner.after_step(step)
        losses.append(float(terms["total"].detach()))
    return losses


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
    active = learner.active(images - learner.bias(0), 1)
    assert relative_error(active.dense(FEATURES), codes) < FLOAT32_SUM
    assert relative_error(active.decode(learner.W_dec) + learner.b_dec, learner.decode(codes)) < FLOAT32_SUM


@pytest.mark.parametrize("crowded", [False, True])
def test_the_largest_of_all_are_those_of_a_full_sort(crowded: bool) -> None:
    activations = torch.rand(19, 101, generator=torch.Generator().manual_seed(4))
    if crowded:
        # One vector has most of the largest, more than four times its part.
        activations[7] += 10
    active, least = largest_of_all(activations, 57)
    wanted = activations.flatten().sort(descending=True).values[56]
    assert least == wanted
    assert torch.equal(active.dense(101), activations * (activations >= wanted))
    assert torch.equal(active.vectors(), active.vectors().sort().values)


def test_batch_topk_keeps_the_largest_of_the_batch_and_those_above_the_threshold_later() -> None:
    learner = made("batch_topk")
    images, texts = pairs(257)
    learner.start(images, texts)
    dense = torch.relu((images - learner.b_dec) @ learner.W_enc + learner.b_enc).detach()
    ordered = dense.flatten().sort(descending=True).values
    codes = learner.active(images - learner.b_dec, 1).dense(FEATURES)
    assert codes.count_nonzero() == 257 * K
    assert torch.equal(codes > 0, dense >= ordered[257 * K - 1])
    assert codes.count_nonzero(1).unique().numel() > 1
    # The first threshold is the least kept activation; the next moves a tenth of the way.
    assert learner.threshold == pytest.approx(float(ordered[257 * K - 1]), rel=1e-6)
    first = float(learner.threshold)
    learner.active(images[:100] - learner.b_dec, 1)
    least = float(dense[:100].flatten().sort(descending=True).values[100 * K - 1])
    assert float(learner.threshold) == pytest.approx(0.9 * first + 0.1 * least, rel=1e-6)
    learner.eval()
    learner.active(images[:10] - learner.b_dec, 1)
    kept = learner.encode(images)
    assert torch.equal(kept > 0, dense >= learner.threshold)
    for row in (0, 99):
        assert relative_error(learner.encode(images[row : row + 1])[0], kept[row]) < FLOAT32_SUM


@pytest.mark.parametrize("kind", LEARNERS)
def test_training_lowers_the_loss_and_resumes_to_the_same_weights(kind: str) -> None:
    whole = made(kind, dead_steps=3)
    whole.start(*pairs(300))
    optimiser = torch.optim.Adam(whole.parameters(), lr=5e-3)
    losses = train(whole, range(20), optimiser)
    saved = whole.state_dict(), optimiser.state_dict(), torch.get_rng_state()
    saved = copy.deepcopy(saved)
    losses += train(whole, range(20, 40), optimiser)
    assert losses[-1] < 0.9 * losses[0]
    resumed = make_learner(kind, **whole.settings)
    resumed.load_state_dict(saved[0])
    optimiser = torch.optim.Adam(resumed.parameters(), lr=5e-3)
    optimiser.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert train(resumed, range(20, 40), optimiser) == losses[20:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", LEARNERS)
def test_codes_are_sparse_and_depend_on_their_vector_alone(kind: str) -> None:
    learner = made(kind)
    images, texts = pairs(61)
    learner.start(images, texts)
    train(learner, range(5), torch.optim.Adam(learner.parameters(), lr=1e-3))
    with torch.no_grad():
        for side, vectors in enumerate((images, texts)):
            codes = learner.encode(vectors, side)
            assert (codes >= 0).all()
            assert 0 < codes.count_nonzero() < codes.numel()
            if kind not in ("batch_topk", "non_negative"):
                assert codes.count_nonzero(1).max() <= K
            blocks = torch.cat([learner.encode(block, side) for block in vectors.split(7)])
            assert relative_error(blocks, codes) < FLOAT32_SUM
            if learner.decodes:
                assert relative_error(learner.directions().norm(dim=1), torch.ones(FEATURES)) < FLOAT32_SUM
                by_hand = codes @ learner.directions() + learner.bias(side)
                assert relative_error(learner.decode(codes, side), by_hand) < FLOAT32_SUM


def test_matryoshka_weighs_the_reconstructions_of_nested_numbers() -> None:
    learner = made("matryoshka", weighting="reversed", input_bias="separate")
    assert learner.levels == [3, 6, 12, 13]
    images, texts = pairs(20)
    learner.start(images, texts)
    expected = 0.0
    with torch.no_grad():
        for weight, k in zip((4, 3, 2, 1), learner.levels, strict=True):
            for side, vectors in enumerate((images, texts)):
                activations = (vectors - learner.bias(side)) @ learner.W_enc + learner.b_enc
                best = activations.topk(k)
                codes = torch.zeros_like(activations).scatter(1, best.indices, best.values.relu())
                left = vectors - learner.decode(codes, side)
                expected += weight / 10 * float(left.square().sum(1).mean()) / 2
        expected /= float(learner.spread)
    assert detached(learner.loss(images, texts))["reconstruction"] == pytest.approx(expected, rel=1e-5)


def test_matching_pursuit_equals_the_plain_loop_and_its_gradients() -> None:
    torch.manual_seed(2)
    vectors, weights = torch.randn(2, 11, WIDTH)
    atoms = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH), dim=1)
    found = []
    for plain in (False, True):
        leaf, moved = atoms.clone().requires_grad_(), vectors.clone().requires_grad_()
        rows = torch.nn.functional.normalize(leaf, dim=1)
        if plain:
            codes, residual = torch.zeros(11, FEATURES), moved
            for _ in range(5):
                value, atom = (residual @ rows.t()).max(1)
                added = torch.nn.functional.one_hot(atom, FEATURES) * value[:, None]
                codes = codes + added
                residual = residual - added @ rows
        else:
            active = pursuit(moved, leaf, 5)
            codes = active.dense(FEATURES)
            residual = moved - active.decode(rows)
        ((residual * weights).sum() + codes.square().sum()).backward()
        assert leaf.grad is not None
        assert moved.grad is not None
        found.append((codes, residual, leaf.grad, moved.grad))
    for got, wanted in zip(*found, strict=True):
        assert relative_error(got, wanted) < FLOAT32_SUM


def test_codes_of_pairs_are_compared_as_dense_codes_are() -> None:
    draw = torch.Generator().manual_seed(3)
    # The first image lists feature 4 twice.
    features = torch.stack([torch.randperm(9, generator=draw)[:4] for _ in range(10)])
    values = torch.rand(10, 4, generator=draw)
    values[2, 1] = 0
    image, text = pair_of(Active.of_rows(features, values), 5)
    norms = torch.sqrt(dense(image).square() + dense(text).square()).sum(1)
    assert relative_error(group_norms(image, text), norms) < FLOAT32_SUM
    twice = Rows(image.features.clone(), image.values)
    twice.features[0, :2] = 4
    cosine = torch.nn.functional.cosine_similarity(dense(twice), dense(text))
    assert relative_error(cosines(twice, text), cosine) < FLOAT32_SUM
    assert twice.strongest().flatten().tolist() == dense(twice).argmax(1).tolist()
    strongest = text.strongest()
    left = dense(twice).scatter(1, strongest, 0.0)
    assert torch.equal(dense(twice.without(strongest)), left)


def dense(rows: Rows) -> Tensor:
    return torch.zeros(len(rows.features), 9).scatter_add(1, rows.features, rows.values)


@pytest.mark.parametrize("code", ["topk", "matching_pursuit"])
def test_the_alignment_term_is_the_published_penalty(code: str) -> None:
    learner = made("aligned", code=code, align_weight=0.7)
    images, noise = pairs(30)
    texts = images + 0.1 * noise
    learner.start(images, texts)
    with torch.no_grad():
        codes = [learner.encode(vectors, side) for side, vectors in enumerate((images, texts))]
        mask = torch.ones_like(codes[0])
        for side in codes:
            mask.scatter_(1, side.argmax(1, keepdim=True), 0.0)
        cosine = torch.nn.functional.cosine_similarity(codes[0] * mask, codes[1] * mask).mean()
    assert float(cosine) > 0.001
    assert detached(learner.loss(images, texts))["align"] == pytest.approx(-0.7 * float(cosine), rel=1e-4)
    learner.mask_strongest = False
    plain = torch.nn.functional.cosine_similarity(*codes).mean()
    assert detached(learner.loss(images, texts))["align"] == pytest.approx(-0.7 * float(plain), rel=1e-4)


def test_group_sparse_hides_the_same_features_from_both_sides() -> None:
    learner = made("group_sparse", mask_share=0.8)
    images, _ = pairs(40)
    codes = learner.active(torch.cat([images, images]), 2).dense(FEATURES)
    assert torch.equal(codes[:40], codes[40:])
    shown = learner.activations(images).topk(K).indices
    chosen = torch.zeros(40, FEATURES, dtype=torch.bool).scatter(1, shown, True)
    assert ((codes[:40] > 0) & ~chosen).any(1).float().mean() > 0.5
    learner.eval()
    codes = learner.active(images, 1).dense(FEATURES)
    assert not ((codes > 0) & ~chosen).any()


def test_the_contrastive_loss_and_its_gradient_are_by_the_book() -> None:
    learner = made("non_negative", temperature=0.5)
    images, texts = pairs(6)
    codes = []
    for vectors in (images, texts):
        hidden = torch.relu(vectors @ learner.W_hidden + learner.b_hidden)
        exact = torch.relu(hidden @ learner.W_enc + learner.b_enc).detach()
        codes.append(exact / exact.norm(dim=1, keepdim=True))
    scores = torch.exp(codes[0] @ codes[1].t() / 0.5)
    right = scores.diagonal()
    expected = -(torch.log(right / scores.sum(1)) + torch.log(right / scores.sum(0))).mean() / 2
    assert detached(learner.loss(images, texts))["contrast"] == pytest.approx(float(expected), rel=1e-5)
    # An activation below 0 has the gradient of GELU, so that its feature can come alive.
    leaf = torch.tensor([[-0.5, 2.0]], requires_grad=True)
    _relu_with_gradient_of_gelu(leaf).sum().backward()
    wanted = torch.tensor([[-0.5, 2.0]], requires_grad=True)
    torch.nn.functional.gelu(wanted).sum().backward()
    assert leaf.grad is not None
    assert wanted.grad is not None
    assert torch.equal(leaf.grad, wanted.grad)
    with pytest.raises(SettingsError, match="no decoder"):
        learner.decode(codes[0])
    with pytest.raises(SettingsError, match="there are no texts"):
        learner.loss(images, None)


@pytest.mark.parametrize("kind", [kind for kind in LEARNERS if kind != "non_negative"])
def test_images_alone_are_learned_without_penalties(kind: str) -> None:
    learner = made(kind)
    images, _ = pairs(20)
    learner.start(images, None)
    terms = learner.loss(images, None)
    assert set(terms) == {"total", "reconstruction"}
    assert torch.equal(terms["total"], terms["reconstruction"])


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
        residual = centred - learner.active(centred, 2).decode(learner.W_dec)
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
        ("top_k", {}, "there is no learner 'top_k'; choose one of topk, batch_topk, matryoshka,"),
        ("topk", {"k": 14}, "k is 14, but vectors have 13 numbers"),
        ("topk", {"k": 5, "features": 4}, "k is 5, but the dictionary has 4 features"),
        ("topk", {"steps": 5}, "the learner has no setting 'steps'; it has width, features, dead_steps, k, input_bias"),
        ("topk", {"input_bias": "both"}, "input_bias is 'both', but must be one of shared, separate, none"),
        ("matryoshka", {"largest_k": 2, "k": 3}, "largest_k is 2, but must be at least k (3)"),
        ("group_sparse", {"mask_share": 1.0}, "mask_share is 1.0, but must be less than 1"),
        ("aligned", {"code": "batch_topk"}, "code is 'batch_topk', but must be one of matching_pursuit, topk"),
        ("non_negative", {"temperature": 0.0}, "temperature is 0.0, but must be more than 0"),
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
