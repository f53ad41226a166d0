"""The linear map with its activation against float64 and the reference, interpreted, emulated or run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests import tolerances
from tests.kernels.test_fused import draw
from tests.kernels.tritons import DEPRECATIONS, INTERPRETED
from tests.tolerances import relative_error

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")

from headspan.model.convert import to_tower
from headspan_kernels import fused, linear, reference, switches
from headspan_kernels.switches import Cut
from tests.engine.test_decomposition import LAYERS, toy_pixels, toy_visual

pytestmark = [pytest.mark.usefixtures("world", "nothing_is_zero_by_chance"), DEPRECATIONS]
BF16, FP16 = torch.bfloat16, torch.float16
# The product's operands are exact; sums and the activation are float32, and one rounding is left.
ROUNDING = {BF16: tolerances.BFLOAT16_ROUNDING, FP16: tolerances.FLOAT16_PRODUCT}
TOY = Cut(64, 32, 32, 4, 2, 1)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs, so that each takes several tiles."""
    monkeypatch.setattr(linear, "_processors", lambda device: 2)


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The descriptors that are made for the tensor memory accelerator."""
    made: list[Any] = []
    plain = linear.TensorDescriptor.from_tensor

    def recorded(*arguments: Any) -> Any:
        made.append(plain(*arguments))
        return made[-1]

    monkeypatch.setattr(linear.TensorDescriptor, "from_tensor", recorded)
    return made


def map_of(random: torch.Generator, rows: int, inner: int, out: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    weight = draw(random, out, inner) / inner**0.5
    return draw(random, rows, inner, dtype=dtype), weight.to(dtype), draw(random, out, dtype=dtype)


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, gated: bool) -> np.ndarray:
    """By definition, in float64."""
    y = x.double().numpy() @ weight.double().numpy().T + (0 if bias is None else bias.double().numpy())
    gate = y[..., : y.shape[-1] // 2] if gated else y
    functions = {
        "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
        "gelu_tanh": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
        "quick_gelu": lambda z: z / (1 + np.exp(-1.702 * z)),
        "silu": lambda z: z / (1 + np.exp(-z)),
    }
    found = functions[activation](gate)
    return np.asarray(found * y[..., y.shape[-1] // 2 :] if gated else found)


@pytest.mark.parametrize(
    ("activation", "gated", "dtype"),
    [
        ("gelu", False, BF16),
        ("gelu", False, FP16),
        ("gelu_tanh", False, FP16),
        ("quick_gelu", False, BF16),
        ("silu", True, FP16),
        ("gelu", True, BF16),
    ],
)
def test_a_linear_map_and_its_activation_equal_float64(
    random: torch.Generator,
    few_programs: None,
    descriptors: list[Any],
    activation: str,
    gated: bool,
    dtype: torch.dtype,
) -> None:
    arguments = map_of(random, 70, 72, 80, dtype)
    found = linear.linear_act_cut(TOY, *arguments, activation, gated)
    assert found.dtype == dtype
    assert len(descriptors) == 3
    assert relative_error(found.float(), exact(*arguments, activation, gated)) < ROUNDING[dtype]
    # The reference rounds the product, too.
    wanted = reference.linear_act(*arguments, activation, gated)
    assert relative_error(found.float(), wanted.float()) < 3 * ROUNDING[dtype]


@pytest.mark.parametrize(("rows", "inner", "out", "gated"), [(1, 3, 2, False), (33, 13, 70, True)])
def test_rows_that_begin_at_other_addresses_are_loaded_without_the_tensor_memory_accelerator(
    random: torch.Generator, few_programs: None, descriptors: list[Any], rows: int, inner: int, out: int, gated: bool
) -> None:
    wide, weight, bias = map_of(random, rows, inner + 1, out, BF16)
    for x, w, b in ((wide[:, 1:], weight[:, :-1], bias), (wide.T.contiguous().T, weight.T.contiguous().T, None)):
        found = linear.linear_act_cut(TOY, x, w, b, "silu", gated)
        assert relative_error(found.float(), exact(x, w, b, "silu", gated)) < ROUNDING[BF16]
    assert not descriptors


@pytest.mark.parametrize("world", [80], indirect=True)
def test_a_gpu_without_a_tensor_memory_accelerator_gets_no_descriptor(
    random: torch.Generator, world: None, descriptors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switches, "capability", lambda device: (8, 0))
    arguments = map_of(random, 33, 40, 48, BF16)
    found = linear.linear_act_cut(TOY, *arguments, "quick_gelu")
    assert not descriptors
    assert relative_error(found.float(), exact(*arguments, "quick_gelu", False)) < ROUNDING[BF16]


@pytest.mark.parametrize(
    ("cut", "gated"),
    [
        pytest.param(cut, gated, marks=() if place == 0 and not gated else pytest.mark.full_size)
        for gated in (False, True)
        for place, cut in enumerate(linear.candidates(gated))
    ],
)
def test_the_tiles_of_the_benchmark_compute_the_same(
    random: torch.Generator, few_programs: None, cut: Cut, gated: bool
) -> None:
    arguments = map_of(random, 130, 72, 272, BF16)
    found = linear.linear_act_cut(cut, *arguments, "gelu", gated)
    assert relative_error(found.float(), exact(*arguments, "gelu", gated)) < ROUNDING[BF16]


# NumPy warns in the interpreter; a GPU does not.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("activation", list(reference.ACTIVATIONS))
def test_activations_are_exact_far_from_zero(activation: str) -> None:
    """Biases alone: the product is zero."""
    bias = torch.cat([torch.linspace(-12, 12, 63), torch.tensor([-300.0])]).half()
    x, weight = torch.zeros(1, 8).half(), torch.zeros(64, 8).half()
    found = linear.linear_act_cut(TOY, x, weight, bias, activation).double().numpy()[0]
    with np.errstate(over="ignore"):
        wanted = exact(x, weight, bias, activation, False)[0]
    assert (np.abs(found - wanted) <= 2.0**-11 * np.abs(wanted) + 5e-7).all()


def test_only_a_switch_makes_a_tower_use_the_kernel(
    random: torch.Generator, descriptors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = map_of(random, 5, 16, 24, BF16)
    apart = reference.linear_act(*half, "gelu")
    assert torch.equal(fused.linear_act(*half, "gelu"), apart)
    assert not descriptors
    monkeypatch.setitem(switches.LINEAR_ACT, ((9, 0), "bfloat16", "gelu", False, 16, 24), TOY)
    found = fused.linear_act(half[0].view(5, 1, 16), *half[1:], "gelu")
    assert found.shape == (5, 1, 24)
    assert len(descriptors) == 3
    assert relative_error(found[:, 0].float(), exact(*half, "gelu", False)) < ROUNDING[BF16]
    # Other activations, shapes and types do not use it, nor do gated maps.
    assert torch.equal(fused.linear_act(*half, "silu"), reference.linear_act(*half, "silu"))
    assert torch.equal(fused.linear_act(*half, "gelu", True), reference.linear_act(*half, "gelu", True))
    narrow = half[0], half[1][:8], half[2][:8]
    assert torch.equal(fused.linear_act(*narrow, "gelu"), reference.linear_act(*narrow, "gelu"))
    for dtype in (torch.float32, FP16):
        other = [each.to(dtype) for each in half]
        assert torch.equal(fused.linear_act(*other, "gelu"), reference.linear_act(*other, "gelu"))
    assert len(descriptors) == 3
    assert fused.linear_act(half[0][:0], *half[1:], "gelu").shape == (0, 24)
    # cuBLASLt's activation is another way to compute one of them.
    monkeypatch.setitem(switches.LINEAR_ACT, ((9, 0), "bfloat16", "gelu_tanh", False, 16, 24), "cublaslt")
    found = fused.linear_act(half[0].view(5, 1, 16), *half[1:], "gelu_tanh")[:, 0]
    assert relative_error(found.float(), exact(*half, "gelu_tanh", False)) < 3 * ROUNDING[BF16]


@pytest.mark.interpreted
@pytest.mark.skipif(not INTERPRETED, reason="the towers' many shapes take too long to compile")
def test_a_tower_on_the_kernel_equals_the_reference(used: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tower = to_tower(toy_visual("tok", True, False, False, "gelu"), "toy").to(torch.device("cpu"), FP16)
    inner, out = tower.blocks[0].mlp.fc1.weight.shape[::-1]
    monkeypatch.setitem(switches.LINEAR_ACT, ((9, 0), "float16", "gelu", False, inner, out), TOY)
    pixels = torch.from_numpy(toy_pixels(1)).half()
    found = tower.forward(pixels, range(LAYERS))
    assert "linear_act" in used
    monkeypatch.setattr("headspan.model.description.ops", lambda device: reference)
    wanted = tower.to(torch.device("cpu"), torch.float32).forward(pixels.float(), range(LAYERS))
    for name in ("state", "heads"):
        assert relative_error(getattr(found, name), getattr(wanted, name)) < tolerances.FLOAT16_PASS
