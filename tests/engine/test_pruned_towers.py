"""Pruned towers: equal to hooks on open_clip's model that zero heads' outputs; many variants equal one pass each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from headspan.decompose.contributions import contributions
from headspan.errors import SettingsError
from headspan.head_names import Head
from headspan.model.convert import to_tower
from headspan.model.pruned import heads_of, pruned
from headspan.model.tower import Tower
from headspan.model.variants import embeddings_of_variants
from tests import tolerances
from tests.engine.test_decomposition import encode_image, joint_terms
from tests.engine.test_every_model import CASES, VARIANTS, randomise_all, small_tower
from tests.tolerances import relative_error

EVERY = {**{name: (name, {}) for name in CASES.values()}, **VARIANTS}
# One of each kind of pooling and of norm behind the heads.
KINDS = ("ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32", "EVA02-B-16", "EVA02-E-14", "vit_medium_patch16_gap_256")
# Numbers of unit embeddings by two implementations of a small float32 pass: some 40 roundings of 2⁻²⁴ walk 4e-7.
SAME_PASS = 1e-6


def random_tower(name: str, **more: Any) -> tuple[nn.Module, Tower, Tensor]:
    """open_clip's small image tower of that name with random parameters, headspan's, and three random images."""
    visual, size = small_tower(name, **more)
    randomise_all(visual, seed=len(name))
    pixels = np.random.default_rng(len(name)).standard_normal((3, 3, *size)).astype(np.float32)
    return visual, to_tower(visual, name), torch.from_numpy(pixels)


def sets_of(tower: Tower) -> list[list[Head]]:
    """No head, single heads of every layer, several, a whole layer, and one set twice, in another order."""
    last = tower.layers - 1
    own = heads_of(tower, last)
    return [
        [],
        *([(layer, heads_of(tower, layer) - 1)] for layer in range(tower.layers)),
        [(0, 0), (0, 1), (last, 0)],
        [(last, head) for head in range(own)],
        [(1, 2), (0, 1)],
        [(0, 1), (1, 2), (1, 2)],
    ]


@contextmanager
def zero_before_projection(visual: nn.Module, heads: Collection[Head]) -> Iterator[None]:
    """Hooks on open_clip's or timm's modules that zero what these heads give to the output projection."""
    with ExitStack() as hooks:
        for layer in {layer for layer, _ in heads}:
            attention, own = _attentions(visual)[layer], {head for of, head in heads if of == layer}
            if isinstance(attention, nn.MultiheadAttention):
                hooks.enter_context(_projects_outside(attention, own))
            else:
                size = attention.proj.in_features // attention.num_heads
                zero = partial(_zero_given, size=size, heads=own)
                hooks.callback(attention.proj.register_forward_pre_hook(zero).remove)
        yield


def _zero_given(module: nn.Module, given: tuple[Tensor], size: int, heads: Collection[int]) -> tuple[Tensor]:
    outputs = given[0].clone()
    for head in heads:
        outputs[..., head * size : (head + 1) * size] = 0
    return (outputs,)


@contextmanager
def _projects_outside(attention: nn.MultiheadAttention, heads: Collection[int]) -> Iterator[None]:
    """PyTorch's attention never calls its output projection as a module, so a hook applies it to the heads' outputs."""
    projection: Any = attention.out_proj
    weight, bias = projection.weight.data, projection.bias.data

    def project(module: nn.Module, given: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        (outputs,) = _zero_given(module, (output[0],), attention.head_dim, heads)
        return outputs @ weight.T + bias, output[1]

    projection.weight.data, projection.bias.data = torch.eye(len(weight)), torch.zeros_like(bias)
    hook = attention.register_forward_hook(project)
    yield
    hook.remove()
    projection.weight.data, projection.bias.data = weight, bias


def _attentions(visual: Any) -> list[Any]:
    """The attention module of every layer; that of the pooling is last."""
    if isinstance(visual, VisionTransformer):
        pool = [] if visual.attn_pool is None else [visual.attn_pool.attn]
        return [*(block.attn for block in visual.transformer.resblocks), *pool]
    pool_of_timm = getattr(visual.trunk, "attn_pool", None)
    return [*(block.attn for block in visual.trunk.blocks), *([] if pool_of_timm is None else [pool_of_timm])]


def embeddings(tower: Tower, pixels: Tensor) -> np.ndarray:
    return contributions(tower.forward(pixels, tuple(tower.direct_layers)), tower).arrays["embedding"]


def largest_difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of a number of the unit embeddings."""
    units = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (got, wanted))
    return float(np.abs(np.subtract(*units)).max())


@pytest.mark.parametrize("name", EVERY)
def test_pruning_equals_a_hook_on_open_clips_model_that_zeroes_the_heads_outputs(name: str) -> None:
    model, more = EVERY[name]
    visual, tower, pixels = random_tower(model, **more)
    sets = sets_of(tower)
    variants = embeddings_of_variants(tower, pixels, sets)
    assert variants.shape == (len(sets), 3, tower.joint)
    whole = encode_image(visual, pixels)
    for heads, variant in zip(sets, variants.numpy(), strict=True):
        with zero_before_projection(visual, heads):
            wanted = encode_image(visual, pixels)
        assert largest_difference(embeddings(pruned(tower, heads), pixels), wanted) < SAME_PASS
        assert largest_difference(variant, wanted) < SAME_PASS
        assert (largest_difference(wanted, whole) > 100 * SAME_PASS) == bool(heads)
    np.testing.assert_array_equal(encode_image(visual, pixels), whole)


@pytest.mark.parametrize("name", KINDS)
def test_the_decomposition_of_a_pruned_tower_stays_exact(name: str) -> None:
    _, tower, pixels = random_tower(name)
    layers, last = tuple(tower.direct_layers), tower.layers - 1
    without = pruned(tower, [(0, 1), (last, 0), (last, 2)])
    row = without.forward(pixels, layers, with_terms=True)
    for convention in ("uniform", "per_term"):
        terms = joint_terms(without, row, layers, convention)
        assert relative_error(terms.total(convention), embeddings(without, pixels)) < tolerances.FLOAT32_SUM
        for head in (0, 2):
            own = terms.heads[:, layers.index(last), head]
            if convention == "per_term" and tower.blocks[0].norm_output is None:
                assert not own.any()
            else:
                # Its share of biases and means is the same for every pruned head of the layer.
                np.testing.assert_array_equal(own, terms.heads[:, layers.index(last), 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_many_variants_in_one_pass_equal_one_pass_each(name: str, dtype: torch.dtype) -> None:
    _, exact, pixels = random_tower(name)
    tower = exact.to(torch.device("cpu"), dtype)
    sets = sets_of(tower)
    together = embeddings_of_variants(tower, pixels, sets)
    assert together.dtype == torch.float32
    for heads, variant in zip(sets, together, strict=True):
        assert torch.equal(embeddings_of_variants(tower, pixels, [heads])[0], variant)
        one = pruned(tower, heads)
        tolerance = tolerances.FLOAT32_SUM if dtype == torch.float32 else tolerances.BFLOAT16_PASS
        assert relative_error(embeddings(one, pixels), variant.numpy()) < tolerance


def test_equal_sets_and_common_layers_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tower, pixels = random_tower("ViT-B-16-SigLIP")
    passed: list[str] = []
    steps = {name: getattr(Tower, name) for name in ("attend", "mlp")}

    def counted(name: str) -> Any:
        return lambda tower, *given: steps[name](tower, *given) if passed.append(name) is None else None  # type: ignore[func-returns-value]

    for name in steps:
        monkeypatch.setattr(Tower, name, counted(name))
    embeddings_of_variants(tower, pixels, [[], [(2, 0)], [(2, 0)], [(1, 0)], [(1, 0), (2, 1)]])
    # Two blocks and the pooling, which has an MLP: the first block is common to all, as is the second one's attention.
    # Its MLP runs twice, and the pooling's once for each of four variants.
    assert (passed.count("attend"), passed.count("mlp")) == (2, 1 + 2 + 4)
    passed.clear()
    assert embeddings_of_variants(tower, pixels, []).shape == (0, 3, tower.joint)
    assert passed == []


def test_weights_of_other_layers_are_shared_with_the_whole_tower() -> None:
    _, tower, _ = random_tower("ViT-B-32")
    found = pruned(tower, [(1, 2)])
    assert found.blocks[0] is tower.blocks[0]
    assert found.blocks[1].qkv is tower.blocks[1].qkv
    assert found.blocks[1].out_proj.bias is tower.blocks[1].out_proj.bias
    assert not found.blocks[1].out_proj.weight[:, 16:24].any()
    torch.testing.assert_close(found.blocks[1].out_proj.weight[:, :16], tower.blocks[1].out_proj.weight[:, :16])
    assert tower.blocks[1].out_proj.weight[:, 16:24].all()


@pytest.mark.parametrize(
    ("name", "head", "known"),
    [
        ("ViT-B-32", (1, 3), "L1.H3 is not a head of the model: layer 1 has heads 0 to 2"),
        ("ViT-B-32", (2, 0), "L2.H0 is not a head of the model: it has layers 0 to 1"),
        ("ViT-B-32", (-1, 0), "L-1.H0 is not a head of the model: it has layers 0 to 1"),
        ("ViT-B-32", (0, -1), "L0.H-1 is not a head of the model: layer 0 has heads 0 to 2"),
        ("ViT-B-16-SigLIP", (3, 0), "L3.H0 is not a head of the model: it has layers 0 to 2"),
    ],
)
def test_a_head_that_does_not_exist_is_refused(name: str, head: Head, known: str) -> None:
    _, tower, pixels = random_tower(name)
    with pytest.raises(SettingsError, match=f"^{known}; choose another head$"):
        pruned(tower, [(0, 0), head])
    with pytest.raises(SettingsError, match=f"^{known}"):
        embeddings_of_variants(tower, pixels, [[], [head]])


def test_an_attention_pooling_has_its_own_number_of_heads() -> None:
    visual, tower, pixels = random_tower("coca_ViT-B-32")
    assert (heads_of(tower, 0), heads_of(tower, 2)) == (3, 8)
    with zero_before_projection(visual, [(2, 7)]):
        wanted = encode_image(visual, pixels)
    assert largest_difference(embeddings_of_variants(tower, pixels, [[(2, 7)]])[0].numpy(), wanted) < SAME_PASS
