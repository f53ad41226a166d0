"""Weights from a file into a model. Nothing is unpickled: `.safetensors`, or what torch loads as weights only."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headspan.errors import ModelError, one_line
from headspan.model import hub

# What open_clip and torch raise on weights that are missing, of another model, or no weights at all.
LOADING_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    OSError,
    EOFError,
    AssertionError,
    AttributeError,
    TypeError,
    StopIteration,
)
# Of the parameters that are missing or too many, so many are named.
_NAMED_PARAMETERS = 3
# Where training scripts keep the state dict within a checkpoint, the usual place first.
_WITHIN = ("state_dict", "model_state_dict", "model", "module")
# What wraps a whole model or a part of it: torch.compile, and two wrappers of distributed training.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What wraps a whole model alone: DataParallel and DistributedDataParallel, and Lightning's attribute.
_OUTER = ("module.", "model.")
# A folder's weights in the order in which open_clip prefers them.
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def load_into(clip: torch.nn.Module, path: Path, name: str, shown: str) -> None:
    """Load the weights of a file, every one of which must fit, into an open_clip model.

    Raises ModelError, which calls the model `name` and the file `shown`.
    """
    # open_clip converts other projects' names and interpolates positions; headspan reads the file in its place.
    theirs = factory.load_state_dict
    factory.load_state_dict = read_state
    try:
        open_clip.load_checkpoint(clip, str(path), strict=True, weights_only=True)
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(_no_plain_weights(shown, error)) from error
    except LOADING_ERRORS as error:
        text = str(error)
        if "loading state_dict" in text or isinstance(error, AssertionError):
            raise ModelError(
                f"{shown}: its weights do not fit {name} ({_mismatch(text)}); name the model they were made for"
            ) from error
        if "TorchScript" in text or "weights_only" in text.lower():
            raise ModelError(_no_plain_weights(shown, error)) from error
        raise ModelError(
            f"{shown}: could not be loaded as weights of {name} ({first_line(error)}); give a whole .safetensors or "
            ".pt file with --pretrained"
        ) from error
    finally:
        factory.load_state_dict = theirs


def read_state(path: str, *arguments: Any, **settings: Any) -> dict[str, Tensor]:
    """The state dict in a file, as a plain model names its parameters.

    Raises ValueError where the file holds none, and what safetensors and torch raise.
    """
    if path.endswith(".safetensors"):
        found: Any = load_file(path)
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(found, Mapping):
        within = next((found[key] for key in _WITHIN if isinstance(found.get(key), Mapping)), None)
        if within is None:
            break
        found = within
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"it holds a {type(found).__name__}, not a state dict")
    state = {_WRAPPERS.sub("", name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not state:
        raise ValueError("it holds no tensors")
    while prefix := next((each for each in _OUTER if all(name.startswith(each) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    # PyTorch interpolates no 16-bit numbers on a CPU, and open_clip asks that of it for another image size.
    return {name: tensor.float() if name.endswith("positional_embedding") else tensor for name, tensor in state.items()}


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder that open_clip would take, None where there is none."""
    found = sorted(path for kind in ("*.safetensors", "*.bin", "*.pth", "*.pt") for path in folder.glob(kind))
    named = [folder / name for name in _PREFERRED if folder / name in found]
    plain = [path for path in found if path.suffix == ".safetensors"]
    return next(iter([*named, *plain, *found]), None)


def known_tag(path: Path, tags: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The tag, among `tags` (each with its settings), whose file this is: by its place in a hub cache, or its bytes.

    Tags that share a file have the same settings, so the first is as good as any.
    """
    repository = hub.repository_of(path)
    for name, tag in tags.items():
        home, names = _home(tag)
        if home and home == repository and path.name in names:
            return name
    checksum = cache(lambda: hub.checksum(path))
    for name, tag in tags.items():
        home, names = _home(tag)
        if home and any(hub.has_bytes(home, file, path.stat().st_size, checksum) for file in names):
            return name
        told = _told_checksum(tag)
        if told is not None and path.suffix != ".safetensors" and checksum().startswith(told):
            return name
    return None


def _home(tag: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The repository of a tag, and the names that its file may have there."""
    repository, _, name = str(tag.get("hf_hub") or "").rpartition("/")
    return repository, (f"{name.rpartition('.')[0]}.safetensors", name) if name else hub.WEIGHTS


def _told_checksum(tag: Mapping[str, Any]) -> str | None:
    """The SHA-256 of a tag's file, or the beginning of it, where the tag's url tells it."""
    url = str(tag.get("url") or "")
    if "openaipublic" in url:
        return url.split("/")[-2]
    found = re.search(r"-([0-9a-f]{8})\.pt$", url)
    return found[1] if found and "mlfoundations" in url else None


def _no_plain_weights(shown: str, error: Exception) -> str:
    return (
        f"{shown}: holds no plain weights ({first_line(error)}); headspan never unpickles objects, so save the state "
        "dict as .safetensors"
    )


def _mismatch(text: str) -> str:
    """What does not fit, from PyTorch's list of it: the first kind, and of its parameters the first few."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = (lines[1] if len(lines) > 1 else lines[0]).rstrip(".")
    kind, _, names = detail.partition(": ")
    parameters = re.findall(r'"([^"]+)"', names)
    if len(parameters) <= _NAMED_PARAMETERS:
        return detail
    return f"{kind}: {', '.join(parameters[:_NAMED_PARAMETERS])} and {len(parameters) - _NAMED_PARAMETERS} more"


def first_line(error: Exception) -> str:
    """The first line of another library's error, whole, fit for a place within a sentence."""
    text = str(error).strip() or type(error).__name__
    return one_line(ValueError(text.splitlines()[0])).rstrip(".")
