"""Towers whose products add to the residual stream: everything that is emitted, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headspan.decompose.contributions import contributions
from headspan.model import tower
from headspan.model.convert import to_tower
from headspan.model.pruned import pruned
from headspan.model.variants import embeddings_of_variants
from headspan_kernels import ops, reference, switches
from tests import tolerances
from tests.engine.test_decomposition import CONVENTIONS, LAYERS, Pool, joint_terms, take_apart, toy_pixels, toy_visual
from tests.engine.test_every_model import CASES, VARIANTS, check, run_small, small_tower
from tests.tolerances import relative_error

# All but those with a convolutional stem, whose widths are the model's.
MODELS = [(name, {}) for name in CASES.values() if name not in ("MobileCLIP-B", "MobileCLIP2-B")] + [*VARIANTS.values()]
DTYPES = [
    (torch.float32, tolerances.ORACLE_FLOAT32),
    (torch.float16, tolerances.FLOAT16_PASS),
    (torch.bfloat16, tolerances.BFLOAT16_PASS),
]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Let products add to the residual stream; the shapes of the rows that they add to."""
    shapes: list[torch.Size] = []

    real = reference.add_linear

    def add_linear(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
        shapes.append(x.shape)
        real(x, y, weight)

    monkeypatch.setattr(tower, "sums_in_products", lambda device, *key: True)
    monkeypatch.setattr(ops(torch.device("cpu")), "add_linear", add_linear)
    return shapes


@pytest.mark.parametrize(("name", "more"), MODELS)
def test_a_supported_model_is_decomposed_exactly(added: list[torch.Size], name: str, more: dict[str, Any]) -> None:
    case = run_small(name, **more)
    check(case)
    # Norms follow the products of EVA02-E; every other model adds two products a block.
    assert len(added) == (0 if name == "EVA02-E-14" else 2 * len(case.tower.blocks))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("with_biases", [True, False])
def test_in_every_type_the_numbers_are_as_close_to_the_oracle_as_with_sums_apart(
    added: list[torch.Size], pool: Pool, with_biases: bool, dtype: torch.dtype, tolerance: float
) -> None:
    visual, pixels = toy_visual(pool, True, True, False, "gelu"), toy_pixels(3)
    for name, parameter in visual.transformer.resblocks.named_parameters():
        if not with_biases and name.endswith("bias") and "ln" not in name:
            parameter.data.zero_()
    oracle, half = take_apart(visual, "gelu", pixels), to_tower(visual, "toy").to(torch.device("cpu"), dtype)
    row = half.forward(torch.from_numpy(pixels).to(dtype), range(LAYERS), with_patches=True, with_terms=True)
    # In the last block, only the class token's row.
    rows, one = (3, 7, 15), (3, 15)
    assert added == [rows] * 4 + ([one] if pool == "tok" else [rows]) * 2
    assert row.patches is not None
    assert row.terms is not None
    assert relative_error(row.state, np.stack([image.pooled() for image in oracle])) < tolerance
    assert relative_error(row.heads, np.stack([image.head_outputs for image in oracle])) < tolerance
    assert relative_error(row.patches, np.stack([image.patch_head_outputs for image in oracle])) < tolerance
    mlps = np.stack([[image.initial, *image.mlp_outputs] for image in oracle])
    assert relative_error(row.terms, mlps) < tolerance
    found = contributions(row, half).arrays
    assert relative_error(found["embedding"], [image.embedding for image in oracle]) < tolerance
    for convention in CONVENTIONS:
        terms = joint_terms(half, row, tuple(range(LAYERS)), convention)
        assert relative_error(terms.total(convention), [image.embedding for image in oracle]) < tolerance


def test_emitting_less_changes_no_number(added: list[torch.Size]) -> None:
    """Products write to the rows in place, which nothing that is emitted may see."""
    whole = to_tower(toy_visual("tok", True, False, False, "gelu"), "toy")
    pixels = torch.from_numpy(toy_pixels(3))
    given = pixels.clone()
    full = whole.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    plain = whole.forward(pixels, range(LAYERS))
    assert torch.equal(pixels, given)
    for name in ("state", "std", "heads"):
        assert relative_error(getattr(plain, name), getattr(full, name)) < tolerances.FLOAT32_SUM
    assert len(added) == 4 * LAYERS


def test_variants_that_share_rows_are_unchanged(added: list[torch.Size]) -> None:
    whole = to_tower(toy_visual("tok", True, False, False, "gelu"), "toy")
    pixels, sets = torch.from_numpy(toy_pixels(3)), [(), ((0, 1),), ((1, 0), (2, 2))]
    found = embeddings_of_variants(whole, pixels, sets)
    assert not added
    for heads, embedding in zip(sets, found, strict=True):
        part = pruned(whole, heads)
        wanted = contributions(part.forward(pixels, range(LAYERS)), part).arrays["embedding"]
        assert relative_error(embedding, wanted) < tolerances.FLOAT32_SUM


def test_only_a_switch_for_the_gpu_the_type_and_the_shape_lets_products_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda, key = torch.device("cuda"), (1024, 24, 257)
    half = to_tower(small_tower("ViT-B-32")[0], "ViT-B-32").to(torch.device("cpu"), torch.bfloat16)
    assert half.switch_key == (torch.bfloat16, 24, 2, 7)
    assert not switches.sums_in_products(cuda, torch.bfloat16, *key)
    entry = {"table": "SUMS_IN_PRODUCTS", "key": [[9, 0], "bfloat16", *key], "value": True}
    with switches.restored():
        switches.switch_on([entry])
        assert switches.sums_in_products(cuda, torch.bfloat16, *key)
        assert not switches.sums_in_products(cuda, torch.float16, *key)
        assert not switches.sums_in_products(cuda, torch.bfloat16, 768, 12, 50)
        assert not switches.sums_in_products(torch.device("cpu"), torch.bfloat16, *key)
        assert not switches.tower_graph(cuda, torch.bfloat16, *key)
    assert not switches.sums_in_products(cuda, torch.bfloat16, *key)
