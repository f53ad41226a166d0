"""Weights from a file into a model. Nothing is unpickled: `.safetensors`, or what torch loads as weights only."""

from __future__ import annotations

import pickle
import re
import struct
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
    ArithmeticError,
    StopIteration,
    struct.error,
)
# Of the parameters that are missing or too many, so many are named.
_NAMED_PARAMETERS = 3
# Of the files of weights in a folder, so many are named.
_NAMED_FILES = 8
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
    except SafetensorError as error:
        raise ModelError(
            f"{shown}: is not a whole .safetensors file ({first_line(error)}); fetch or save it again"
        ) from error
    except pickle.UnpicklingError as error:
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
            f"{shown}: could not be loaded as weights of {name} ({_reason(error)}); give a whole .safetensors or "
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
        _refuse_other_formats(Path(path))
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
    """The file of weights in a folder: the first of the names that open_clip prefers, or the only file; None if none.

    Raises ModelError where there are several, of which none has such a name.
    """
    files = (path for kind in ("*.safetensors", "*.bin", "*.pth", "*.pt") for path in folder.glob(kind))
    # macOS leaves a `._name` beside every file that it copies.
    found = sorted(path for path in files if not path.name.startswith(".") and path.is_file())
    named = [folder / name for name in _PREFERRED if folder / name in found]
    if len(found) > 1 and not named:
        names = ", ".join(path.name for path in found[:_NAMED_FILES])
        more = f" and {len(found) - _NAMED_FILES} more" if len(found) > _NAMED_FILES else ""
        raise ModelError(
            f"{folder}: holds several files of weights ({names}{more}); say which one to take with --weights FILE"
        )
    return next(iter([*named, *found]), None)


def known_tag(path: Path, tags: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The tag, among `tags` (each with its settings), whose file this is: by its place in a hub cache, or its bytes.

    Tags that share a file have the same settings, so the first is as good as any.
    """
    repository = hub.repository_of(path)
    names_on_the_way = {place.name for place in hub.places_of(path)}
    for name, tag in tags.items():
        home, names = _home(tag)
        if home and home == repository and not names_on_the_way.isdisjoint(names):
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
    # torch's own text advises to unpickle the file, which headspan never does.
    text = str(error)
    asked = re.search(r"(?:GLOBAL|global:?|class:?) `?([\w.]+\.[\w.]+)", text)
    if asked:
        reason = f"it has objects of {asked[1]} beside or instead of tensors"
    elif "TorchScript" in text:
        reason = "it is a TorchScript archive"
    else:
        reason = "torch cannot read it as tensors alone"
    return (
        f"{shown}: holds no plain weights ({reason}); headspan never unpickles objects, so save the state dict as "
        ".safetensors"
    )


def _refuse_other_formats(path: Path) -> None:
    """Raise ValueError where a file does not begin as a checkpoint of PyTorch does: as a ZIP archive or a pickle."""
    with path.open("rb") as file:
        beginning = file.read(16)
    if not beginning:
        raise ValueError("the file is empty")
    if not beginning.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"it is no checkpoint of PyTorch's, as it begins with {beginning!r}")


def _reason(error: Exception) -> str:
    """The first line of an error, with its type where the text is no sentence."""
    text = first_line(error)
    return text if " " in text or text == type(error).__name__ else f"{type(error).__name__}: {text}"


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
