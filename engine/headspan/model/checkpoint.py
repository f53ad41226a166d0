"""Load weights from a file into a model, without unpickling.

The file is `.safetensors`, or one that torch's weights-only loading reads.
"""

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

# What open_clip and torch raise if weights are missing, belong to another model, or are not weights.
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
# How many missing or unexpected parameters an error names.
_NAMED_PARAMETERS = 3
# How many of a folder's files of weights an error names.
_NAMED_FILES = 8
# The keys under which training scripts store the state dict in a checkpoint, the usual one first.
_WITHIN = ("state_dict", "model_state_dict", "model", "module")
# Prefixes that wrappers add to a model or its parts: torch.compile, and two of distributed training.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Prefixes for a whole model only: DataParallel and DistributedDataParallel, and Lightning's attribute.
_OUTER = ("module.", "model.")
# Names of weights in a folder, in open_clip's order of preference.
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
    """Load the weights of a file into an open_clip model. All parameters must match.

    Raises ModelError, which calls the model `name` and the file `shown`, if they do not, or if the file does not hold
    plain weights.
    """
    # open_clip converts parameter names of other projects and interpolates positions. Only the reading of the file is
    # replaced.
    original = factory.load_state_dict
    factory.load_state_dict = read_state
    try:
        open_clip.load_checkpoint(clip, str(path), strict=True, weights_only=True)
    except SafetensorError as error:
        raise ModelError(
            f"{shown}: is not a complete .safetensors file ({first_line(error)}); fetch or save it again"
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
            f"{shown}: could not be loaded as weights of {name} ({_reason(error)}); give a complete .safetensors or "
            ".pt file with --pretrained"
        ) from error
    finally:
        factory.load_state_dict = original


def read_state(path: str, *arguments: Any, **settings: Any) -> dict[str, Tensor]:
    """The state dict in a file, with the parameter names of an unwrapped model.

    Raises ValueError if the file holds none, and whatever safetensors and torch raise.
    """
    if path.endswith(".safetensors"):
        found: Any = load_file(path)
    else:
        # A ZIP archive is mapped into memory, and not read twice.
        mapped = _is_archive(Path(path))
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    # For another image size, open_clip interpolates positions, which PyTorch cannot do in 16 bits on a CPU.
    return {name: tensor.float() if name.endswith("positional_embedding") else tensor for name, tensor in state.items()}


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder: the first name in open_clip's order, or the only file. None if there is none.

    Raises ModelError if there are several files and none has such a name.
    """
    files = (path for kind in ("*.safetensors", "*.bin", "*.pth", "*.pt") for path in folder.glob(kind))
    # macOS adds a `._name` for every file that it copies.
    found = sorted(path for path in files if not path.name.startswith(".") and path.is_file())
    named = [folder / name for name in _PREFERRED if folder / name in found]
    if len(found) > 1 and not named:
        names = ", ".join(path.name for path in found[:_NAMED_FILES])
        more = f" and {len(found) - _NAMED_FILES} more" if len(found) > _NAMED_FILES else ""
        raise ModelError(f"{folder}: holds several files of weights ({names}{more}); select one with --weights FILE")
    return next(iter([*named, *found]), None)


def known_tag(path: Path, tags: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The tag whose weights are in the file `path`; None if there is none. `tags` maps tags to open_clip's settings.

    The file is recognised by its place in a hub cache, or by its bytes. Tags that share a file have the same settings,
    so the first is returned.
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
        stated = _stated_checksum(tag)
        if stated is not None and path.suffix != ".safetensors" and checksum().startswith(stated):
            return name
    return None


def _home(tag: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """A tag's repository, and the names that its file may have there."""
    repository, _, name = str(tag.get("hf_hub") or "").rpartition("/")
    return repository, (f"{name.rpartition('.')[0]}.safetensors", name) if name else hub.WEIGHTS


def _stated_checksum(tag: Mapping[str, Any]) -> str | None:
    """The SHA-256 of a tag's file, or the beginning of it, if the tag's url contains it."""
    url = str(tag.get("url") or "")
    if "openaipublic" in url:
        return url.split("/")[-2]
    found = re.search(r"-([0-9a-f]{8})\.pt$", url)
    return found[1] if found and "mlfoundations" in url else None


def _no_plain_weights(shown: str, error: Exception) -> str:
    # torch's own error advises unpickling the file, which headspan never does.
    text = str(error)
    found = re.search(r"(?:GLOBAL|global:?|class:?) `?([\w.]+\.[\w.]+)", text)
    if found:
        reason = f"it holds objects of type {found[1]}, not only tensors"
    elif "TorchScript" in text:
        reason = "it is a TorchScript archive"
    else:
        reason = "torch cannot read it as tensors only"
    return (
        f"{shown}: holds no plain weights ({reason}); headspan never unpickles objects, so save the state dict as "
        ".safetensors"
    )


def _is_archive(path: Path) -> bool:
    """Whether a checkpoint of PyTorch is a ZIP archive. Raises ValueError if it is neither that nor a pickle."""
    with path.open("rb") as file:
        beginning = file.read(16)
    if not beginning:
        raise ValueError("the file is empty")
    if not beginning.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError(f"it is not a PyTorch checkpoint; it begins with {beginning!r}")
    return beginning.startswith(b"PK")


def _reason(error: Exception) -> str:
    """The first line of an error, with its type if the text is a single word."""
    text = first_line(error)
    return text if " " in text or text == type(error).__name__ else f"{type(error).__name__}: {text}"


def _mismatch(text: str) -> str:
    """The first kind of mismatch in PyTorch's error, with the first few of its parameters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = (lines[1] if len(lines) > 1 else lines[0]).rstrip(".")
    kind, _, names = detail.partition(": ")
    parameters = re.findall(r'"([^"]+)"', names)
    if len(parameters) <= _NAMED_PARAMETERS:
        return detail
    return f"{kind}: {', '.join(parameters[:_NAMED_PARAMETERS])} and {len(parameters) - _NAMED_PARAMETERS} more"


def first_line(error: Exception) -> str:
    """The first line of another library's error, to be put into a sentence."""
    text = str(error).strip() or type(error).__name__
    return one_line(ValueError(text.splitlines()[0])).rstrip(".")
