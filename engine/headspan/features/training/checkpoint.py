"""The state of an unfinished training in one file: weights, optimiser, random generators, position and losses.

One file is written whole or not at all, so its parts always fit each other. Restored, a training continues with the
same numbers, bit for bit, as if it had not been interrupted: on one device, with the same libraries and threads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from headspan.errors import StoreError
from headspan.features.learners.learner import Learner
from headspan.features.training.files import STATE, load_state
from headspan.io.tensor_files import read_tensors, write_tensors

# Losses by step.
History = list[dict[str, float]]
_TODO = "delete this file to train from the start"


def save_training(folder: Path, learner: Learner, optimizer: Optimizer, done: int, history: History) -> None:
    """Write the state after `done` steps."""
    tensors: dict[str, Tensor] = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    tensors["generator.cpu"] = torch.get_rng_state()
    device = _device(learner)
    if device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(device)
    write_tensors(folder / STATE, tensors, {"position": json.dumps({"done": done, "losses": history})})


def restore_training(folder: Path, learner: Learner, optimizer: Optimizer) -> tuple[int, History]:
    """Restore what `save_training` wrote; returns the steps done and the losses. 0 steps without such a file.

    Raises StoreError if the file is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return 0, []
    tensors, metadata = read_tensors(path, _TODO)
    try:
        position = json.loads(metadata["position"])
        state = {name.removeprefix("learner."): each for name, each in tensors.items() if name.startswith("learner.")}
        load_state(learner, state)
        _restore_optimizer(optimizer, tensors)
        torch.set_rng_state(tensors["generator.cpu"])
        device = _device(learner)
        if device.type == "cuda" and "generator.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator.cuda"], device)
        return int(position["done"]), list(position["losses"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StoreError(f"{path}: does not hold the state of this training ({error!r}); {_TODO}") from error


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give each parameter its state, laid out in memory like the parameter."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for name, tensor in tensors.items():
        if not name.startswith("optimizer."):
            continue
        _, number, key = name.split(".")
        parameter = parameters[int(number)]
        # A fused optimiser counts its steps on the parameter's device.
        value: Any = tensor.to(parameter.device) if optimizer.defaults.get("fused") else tensor
        if tensor.shape == parameter.shape and tensor.ndim:
            value = torch.empty_like(parameter).copy_(tensor).detach()
        optimizer.state[parameter][key] = value


def _device(learner: Learner) -> torch.device:
    return next(learner.parameters()).device
