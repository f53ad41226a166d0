"""Where the tests run Triton's ops: on a GPU if there is one, else on an emulated GPU, or in Triton's interpreter.

Without a GPU, Triton compiles for sm_90 and an emulated GPU runs the result, in a random order; the output of a failure
names the seed. With TRITON_INTERPRET=1, which Triton reads when it is imported, its interpreter runs the Python.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version

from tests.kernels import tritons


def enter(monkeypatch: pytest.MonkeyPatch, architecture: int, addressed: Sequence[torch.Tensor] = ()) -> None:
    """Let launches run here, or skip the test if this process cannot run them.

    `addressed` are tensors whose addresses kernels receive as numbers; it may be filled later.
    """
    if architecture != 90 and (tritons.INTERPRETED or tritons.ON_GPU):
        pytest.skip("only the emulator has another architecture")
    if tritons.INTERPRETED:
        widen_bfloat16_products(monkeypatch)
        take_numbers_out_of_arrays(monkeypatch)
        return
    # Here, since Triton's wheels exist for Linux only.
    from tests.kernels.compiling import hand_launches_on, launch_on_gpu

    if tritons.ON_GPU:
        launch_on_gpu(monkeypatch)
        return
    if reason := tritons.installed_and_untried():
        pytest.skip(reason)
    from tests.kernels.emulator.launch import run as emulate

    seed = int.from_bytes(os.urandom(4), "little")
    print("emulator's seed", seed)
    choices = Random(seed)
    hand_launches_on(
        monkeypatch,
        architecture,
        lambda name, binary, arguments, grid: emulate(binary, arguments, grid, choices, addressed),
        binaries=False,
    )


def widen_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widen bfloat16 matrices before products: Triton's interpreter would multiply their raw bits."""
    # Here, since Triton's wheels exist for Linux only.
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def take_numbers_out_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert one-element arrays to numbers as NumPy 2.4 demands, which Triton 3.6's interpreter does not do."""
    # Here, since Triton's wheels exist for Linux only.
    import triton
    from triton.runtime import interpreter

    if Version(triton.__version__).release >= (3, 7):
        return
    plain = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)
