"""The ops for CPUs against float64 loops, and which of them a CPU's tower runs."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from headspan.model.convert import to_tower
from headspan_kernels import onednn, ops, reference
from tests import tolerances
from tests.engine.test_decomposition import LAYERS, toy_pixels, toy_visual
from tests.kernels.test_reference import draw, every_row
from tests.tolerances import relative_error

pytestmark = pytest.mark.skipif(not onednn.available(), reason="this PyTorch is built without oneDNN")
DTYPES = [
    (torch.float32, tolerances.FLOAT32_SUM),
    # The reference serves float16.
    (torch.float16, 3 * tolerances.FLOAT16_PRODUCT),
    (torch.bfloat16, 3 * tolerances.BFLOAT16_ROUNDING),
]


def capability(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let PyTorch report `name` as this processor's capability."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    onednn.serves.cache_clear()
    yield
    onednn.serves.cache_clear()


@pytest.fixture
def with_avx512(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from capability("AVX512", monkeypatch)


@pytest.fixture
def with_avx2_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from capability("AVX2", monkeypatch)


def mapped(ops: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any, activation: str | None) -> torch.Tensor:
    """The linear map, followed by an activation if one is named."""
    found: torch.Tensor = (
        ops.linear(x, weight, bias) if activation is None else ops.linear_act(x, weight, bias, activation)
    )
    return found


def test_onednn_serves_float32_where_pytorch_may_use_avx_512(with_avx512: None) -> None:
    assert onednn.serves(torch.float32)
    assert onednn.serves(torch.bfloat16) is onednn.available(torch.bfloat16)
    assert not onednn.serves(torch.float16)


def test_pytorchs_products_serve_float32_with_avx2_only(with_avx2_only: None) -> None:
    assert not onednn.serves(torch.float32)
    assert onednn.serves(torch.bfloat16) is onednn.available(torch.bfloat16)
    gc.collect()
    before = len(onednn._laid_out)
    x, weight, bias = draw(5, 7), draw(6, 7), draw(6)
    for activation in (None, *reference.ACTIVATIONS):
        wanted = mapped(reference, x, weight, bias, activation)
        assert torch.equal(mapped(onednn, x, weight, bias, activation), wanted)
    # No second copy of the weights is kept.
    assert len(onednn._laid_out) == before


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_tower_with_avx2_only_equals_the_reference(
    with_avx2_only: None, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = to_tower(toy_visual(pool, True, True, False, "gelu"), "toy")
    pixels = torch.from_numpy(toy_pixels(3))
    assert tower.ops is onednn
    found = tower.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    monkeypatch.setattr("headspan.model.description.ops", lambda device: reference)
    wanted = tower.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    for name in ("state", "std", "heads", "patches", "terms"):
        assert relative_error(getattr(found, name), getattr(wanted, name)) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("activation", [None, *reference.ACTIVATIONS])
@pytest.mark.parametrize(
    ("rows", "columns", "out"), [((1,), 3, 1), ((3, 7), 16, 5), ((2, 257), 33, 64), ((0, 3), 4, 2)]
)
def test_linear_maps_equal_float64(
    rows: tuple[int, ...], columns: int, out: int, activation: str | None, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight, bias = draw(*rows, columns, dtype=dtype), draw(out, columns, dtype=dtype), draw(out, dtype=dtype)
    for b in (bias, None):
        wanted = x.double() @ weight.double().T + (0 if b is None else b.double())
        wanted = wanted if activation is None else reference.ACTIVATIONS[activation](wanted)
        found = mapped(onednn, x, weight, b, activation)
        assert found.dtype == dtype
        assert found.shape == (*rows, out)
        assert not found.numel() or relative_error(found.float(), wanted) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_a_gated_map_multiplies_its_activated_half_with_the_other(dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias = draw(3, 7, 16, dtype=dtype), draw(10, 16, dtype=dtype), draw(10, dtype=dtype)
    y = (x.double() @ weight.double().T + bias.double()).numpy()
    wanted = y[..., :5] / (1 + np.exp(-y[..., :5])) * y[..., 5:]
    assert relative_error(onednn.linear_act(x, weight, bias, "silu", gated=True).float(), wanted) < 2 * tolerance


def test_strided_rows_and_a_second_call_give_the_same_result() -> None:
    x, weight, bias = draw(5, 12, 7), draw(6, 7), draw(6)
    found = onednn.linear(x[:, ::3], weight, bias)
    assert relative_error(found, x[:, ::3].double() @ weight.double().T + bias.double()) < tolerances.FLOAT32_SUM
    assert torch.equal(found, onednn.linear(x[:, ::3], weight, bias))


def test_a_laid_out_copy_is_freed_with_its_weight(with_avx512: None) -> None:
    gc.collect()
    before = len(onednn._laid_out)
    weight = draw(6, 7)
    onednn.linear(draw(3, 7), weight, None)
    assert len(onednn._laid_out) == before + 1
    del weight
    gc.collect()
    assert len(onednn._laid_out) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_patches", [False, True])
@pytest.mark.parametrize("bytes_together", [1, 8 << 20])
@pytest.mark.parametrize(("batch", "tokens", "heads", "size"), [(1, 1, 1, 1), (3, 7, 3, 4), (2, 65, 2, 16)])
def test_attention_equals_the_loops(
    batch: int,
    tokens: int,
    heads: int,
    size: int,
    bytes_together: int,
    with_patches: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onednn, "_SCORES_BYTES", bytes_together)
    monkeypatch.setattr(onednn, "_NUMBERS_BYTES", bytes_together)
    qkv = draw(batch, tokens, 3 * heads * size, dtype=dtype)
    out = torch.full((batch, heads, tokens, size), torch.nan, dtype=torch.float16) if with_patches else None
    head_outputs, emitted = onednn.attention_emit(qkv, heads, None, with_patches, out)
    assert head_outputs.shape == (batch, tokens, heads * size)
    taken, wanted = every_row(qkv, heads)
    # Scores, weights and sums are rounded to bf16.
    tolerance = 3 * tolerances.BFLOAT16_ROUNDING if dtype == torch.bfloat16 else tolerances.FLOAT32_SUM
    assert relative_error(head_outputs.float(), wanted) < tolerance
    assert relative_error(emitted.heads, taken[:, :, 0].sum(axis=2)) < tolerance
    if out is not None:
        assert emitted.patches is out
        assert relative_error(out.float(), taken[:, :, 0]) < tolerances.FLOAT16_STORE
        assert relative_error(emitted.heads, taken[:, :, 0].sum(axis=2)) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_cpus_tower_runs_these_ops_and_equals_the_reference(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops(torch.device("cpu")) is onednn
    tower = to_tower(toy_visual(pool, True, True, False, "gelu"), "toy")
    pixels = torch.from_numpy(toy_pixels(3))
    calls: list[str] = []
    linear_act = onednn.linear_act

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: Any, activation: str, gated: bool) -> torch.Tensor:
        calls.append(activation)
        return linear_act(x, weight, bias, activation, gated)

    monkeypatch.setattr(onednn, "linear_act", counted)
    found = tower.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    assert calls.count("gelu") >= LAYERS
    monkeypatch.setattr("headspan.model.description.ops", lambda device: reference)
    wanted = tower.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    for name in ("state", "std", "heads", "patches", "terms"):
        assert relative_error(getattr(found, name), getattr(wanted, name)) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_map_does_not_depend_on_the_number_of_rows_in_its_first_call(
    with_avx512: None, dtype: torch.dtype
) -> None:
    weight, bias, x = draw(96, 80, dtype=dtype), draw(96, dtype=dtype), draw(50, 80, dtype=dtype)
    wanted = onednn.linear(x, weight, bias)
    for rows in (1, 3, 700):
        again = weight.clone()
        onednn.linear(draw(rows, 80, dtype=dtype), again, bias)
        assert torch.equal(onednn.linear(x, again, bias), wanted)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor without bf16: oneDNN refuses bf16 weights, as it does with AVX2 only."""
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def refuses(weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        if weight.dtype != torch.float32:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or more")
        return reorder(weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuses)
    onednn.available.cache_clear()
    onednn.serves.cache_clear()
    yield
    onednn.available.cache_clear()
    onednn.serves.cache_clear()


def test_onednn_is_tried_once_for_each_type(without_bf16: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert onednn.available()
    assert onednn.available(torch.float32)
    assert not onednn.available(torch.bfloat16)
    assert not onednn.available(torch.float16)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    assert onednn.available()
    assert not onednn.available(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_the_reference_serves_types_that_onednn_refuses(without_bf16: None, pool: Any, dtype: torch.dtype) -> None:
    exact = to_tower(toy_visual(pool, True, True, False, "gelu"), "toy")
    tower = exact.to(torch.device("cpu"), dtype)
    assert tower.ops is onednn
    pixels = torch.from_numpy(toy_pixels(3))
    found = tower.forward(pixels.to(dtype), range(LAYERS), with_patches=True, with_terms=True)
    wanted = exact.forward(pixels, range(LAYERS), with_patches=True, with_terms=True)
    tolerance = tolerances.BFLOAT16_PASS if dtype == torch.bfloat16 else tolerances.FLOAT16_PASS
    for name in ("state", "heads", "patches", "terms"):
        assert relative_error(getattr(found, name), getattr(wanted, name)) < tolerance


def test_a_linear_map_of_a_refused_type_equals_the_reference(without_bf16: None) -> None:
    x, weight, bias = (draw(*shape, dtype=torch.bfloat16) for shape in ((5, 7), (6, 7), (6,)))
    for activation in (None, "gelu", "quick_gelu"):
        wanted = mapped(reference, x, weight, bias, activation)
        assert torch.equal(mapped(onednn, x, weight, bias, activation), wanted)


def test_every_type_works_where_onednn_may_use_avx2_only() -> None:
    code = (
        "import torch; from headspan_kernels import onednn\n"
        "for dtype in (torch.float32, torch.bfloat16, torch.float16):\n"
        "    x, weight = torch.full((3, 5), 0.5, dtype=dtype), torch.full((2, 5), 2.0, dtype=dtype)\n"
        "    assert onednn.linear(x, weight, None).eq(5).all()\n"
        "print(onednn.available(torch.bfloat16), torch.ops.mkldnn._is_mkldnn_bf16_supported())\n"
        "print(onednn.serves(torch.float32))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    # PyTorch's answer, which comes from the processor's flags.
    tried, told, served = done.stdout.split()
    assert tried == told
    if platform.machine() == "x86_64":
        assert served == "False"
