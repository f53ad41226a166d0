"""Run launches that Triton compiled for a GPU, on tensors in the host's memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any

import numpy as np
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.kernels.emulator.bulk import FIRST_HANDLE, Descriptor
from tests.kernels.emulator.memory import Fault, GlobalMemory, Memory
from tests.kernels.emulator.program import parse
from tests.kernels.emulator.warp import Around, Block, Warp


def run(
    binary: Any,
    arguments: dict[str, Any],
    grid: Sequence[int],
    random: Random,
    addressed: Sequence[torch.Tensor] = (),
) -> None:
    """Run a compiled kernel, its programs in random order; `arguments` are by parameter name. Raises Fault.

    Kernels may access the memory of tensor arguments and of `addressed`, whose addresses they find in other arguments.
    """
    program = parse(binary.asm["ptx"])
    given = [arguments[name] for name, kind in binary.src.signature.items() if kind != "constexpr"]
    tensors = [value.base if isinstance(value, TensorDescriptor) else value for value in given]
    memory = GlobalMemory(_pieces([*(value for value in tensors if isinstance(value, torch.Tensor)), *addressed]))
    bits: list[int] = []
    descriptors: dict[int, Descriptor] = {}
    compiled = iter(getattr(binary.metadata, "tensordesc_meta", ()) or ())
    for value in given:
        if isinstance(value, TensorDescriptor):
            # Its parameter's address, and then its shape and strides as numbers.
            handle = FIRST_HANDLE + len(descriptors)
            descriptors[handle] = Descriptor.of(value, next(compiled))
            bits += [handle, *value.shape, *value.strides]
        else:
            bits.append(_bits(value))
    # The parameters after the arguments are scratch areas, which are empty.
    bits += [0] * (len(program.parameters) - len(bits))
    parameters = dict(zip(program.parameters, bits, strict=True))
    sizes = [*grid, 1, 1][:3]
    places = list(product(*map(range, sizes)))
    random.shuffle(places)
    stretch = 1
    for number, place in enumerate(places, start=1):
        special = {f"ctaid.{axis}": index for axis, index in zip("xyz", place, strict=True)}
        special |= {f"nctaid.{axis}": size for axis, size in zip("xyz", sizes, strict=True)}
        # Every float in shared memory is NaN until it is written.
        shared = Memory("shared memory", 0, np.full(binary.metadata.shared, 0xFF, np.uint8))
        block = Block(number, stretch)
        around = Around(program, parameters, special, shared, memory, block, random, descriptors, {})
        # A GPU does not warn about infinities and NaN.
        with np.errstate(all="ignore"):
            _run_program([Warp(index, around) for index in range(binary.metadata.num_warps)], block, random)
        stretch = block.stretch + 1


def _run_program(warps: list[Warp], block: Block, random: Random) -> None:
    """Run the warps in random turns until all have ended."""
    going = {warp.index: warp.run() for warp in warps}
    waiting: set[int] = set()
    while going:
        ready = sorted(going.keys() - waiting)
        if not ready:
            waiting.clear()
            block.stretch += 1
            warps[0].around.shared.meet()
            continue
        index = random.choice(ready)
        step = next(going[index], None)
        if step is None:
            del going[index]
            if waiting:
                raise Fault("a warp ends while others wait for it at a barrier")
        elif step == "barrier":
            waiting.add(index)


def _pieces(tensors: list[torch.Tensor]) -> list[Memory]:
    """The distinct storages of the tensors, as bytes."""
    pieces = {}
    for number, tensor in enumerate(tensors):
        storage = tensor.untyped_storage()
        data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        pieces.setdefault(storage.data_ptr(), Memory(f"tensor {number}", storage.data_ptr(), data))
    return list(pieces.values())


def _bits(value: Any) -> int:
    """An argument as the bits that a kernel receives."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if isinstance(value, float):
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    return int(value) & (1 << 64) - 1
