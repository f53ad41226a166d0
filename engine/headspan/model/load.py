"""A model by open_clip name, hub name, local folder or config, with weights by tag or file.

Weights are never unpickled: `.safetensors`, or `.pt` that torch loads as weights only. A model that
cannot be decomposed is refused before its weights are fetched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from open_clip.factory import get_model_config, parse_model_name
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg
from safetensors import SafetensorError
from torch import Tensor

from headspan.config import Preprocess
from headspan.errors import ModelError, SettingsError
from headspan.model.convert import SUPPORTED, lacks_transformers, patch_pixels, to_tower, unsupported_reason
from headspan.model.tower import Tower

# The model that ships with headspan: its name, its config and its weights.
REFERENCE = "reference"
_REFERENCE_CONFIG = Path(__file__).parents[1] / "reference" / "headspan-reference.json"
_REFERENCE_WEIGHTS = _REFERENCE_CONFIG.with_name("weights.safetensors")
_POSITIONS = "visual.positional_embedding"
# The config files that this process has told open_clip of, by the name that they have there.
_REGISTERED: dict[str, Path] = {}
# What open_clip and torch raise on weights that are missing, of another model, or no weights at all.
_LOADING_ERRORS = (
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


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An open_clip model with what it takes to name it, feed it and find it again."""

    name: str
    pretrained: str | None
    # An open_clip CLIP, CustomTextCLIP or CoCa, which share no typed base.
    clip: Any
    config: dict[str, Any]
    preprocess: Preprocess
    # SHA-256 over the image tower's parameters, by name, as float32.
    weights_sha256: str
    # The same over everything else but the logits' scale and bias: the text tower.
    text_sha256: str
    # The activation of the image tower's MLPs as they run, such as `gelu` or `quick_gelu`.
    activation: str

    def tokenizer(self) -> Any:
        """open_clip's tokenizer for this model; ModelError where it needs what is not there."""
        try:
            return open_clip.get_tokenizer(_registered(self.name))
        except ImportError as error:
            raise ModelError(
                f"{self.name}: open_clip's tokenizer for it needs a package ({_first_line(error)}); install it with "
                "pip install transformers sentencepiece"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{self.name}: its tokenizer could not be loaded ({_first_line(error)}); check the network"
            ) from error


def load_model(name: str, pretrained: str | None, image_size: int | None = None) -> LoadedModel:
    """Load an open_clip model, float32, on the CPU, in evaluation mode.

    `name` is an open_clip model name, `hf-hub:…`, `local-dir:…`, the path of an open_clip config (`.json`), or
    `reference`, which ships with headspan and needs no `pretrained`; `pretrained` an open_clip tag, `hf-hub:…`,
    a local `.pt` or `.safetensors` file, or `random:SEED`; `image_size` the height and width of its images, if not
    its own: positions are interpolated as open_clip does it.
    Raises SettingsError where the images would be smaller than a patch, ModelError where the model is unknown
    or cannot be decomposed, or its weights are missing, hold pickled objects, or belong to another model.
    """
    registered = _registered(name)
    config = _config(name, registered)
    try:
        reason = unsupported_reason(config)
    except _LOADING_ERRORS as error:
        raise ModelError(_config_failure(name, error)) from error
    if reason:
        raise ModelError(f"{name}: {reason}; headspan decomposes {SUPPORTED}")
    if lacks_transformers(config):
        text_tower = config["text_cfg"]["hf_model_name"]
        raise ModelError(
            f"{name}: its text tower is Hugging Face's {text_tower}, for which open_clip needs "
            "the package transformers; install it with pip install transformers"
        )
    if image_size is not None and image_size < (patch := patch_pixels(config)):
        raise SettingsError(
            f"--image-size {image_size}: a patch of {name} takes {patch} pixels; give a multiple of that"
        )
    source, seed = _weights_source(name, registered, pretrained)
    try:
        with _quiet_logging(), _positions_in_float32(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = open_clip.create_model(
                registered,
                pretrained=source,
                force_quick_gelu=_needs_quick_gelu(registered, source),
                force_image_size=image_size,
                # A folder or hub repository without weights would give a model at random.
                require_pretrained=parse_model_name(registered)[0] is not None,
                weights_only=True,
            )
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(
            f"{pretrained}: holds no plain weights ({_first_line(error)}); headspan never unpickles objects, "
            "so save the state dict as .safetensors"
        ) from error
    except _LOADING_ERRORS as error:
        raise ModelError(_load_failure(name, pretrained, error)) from error
    clip.eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        pretrained=pretrained,
        clip=clip,
        config=config,
        preprocess=_preprocess(clip.visual),
        weights_sha256=_digest(clip.visual.state_dict()),
        text_sha256=_digest(_text_state(clip.state_dict())),
        activation=_activation(to_tower(clip.visual, name)),
    )


def _registered(name: str) -> str:
    """The name under which open_clip knows the model; a config file is registered under its stem."""
    if name != REFERENCE and not name.endswith(".json"):
        return name
    path = _REFERENCE_CONFIG if name == REFERENCE else Path(name)
    if not path.is_file():
        raise ModelError(f"{name}: no such model config; give the path of an open_clip config, or a model name")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{name}: is not JSON ({error}); give an open_clip model config") from error
    parts = [config.get(part) for part in ("vision_cfg", "text_cfg")] if isinstance(config, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or "embed_dim" not in config:
        raise ModelError(f"{name}: an open_clip config needs embed_dim, vision_cfg and text_cfg; add what is missing")
    known = get_model_config(path.stem)
    if known not in (None, config) and _REGISTERED.get(path.stem) != path:
        raise ModelError(f"{name}: open_clip has another model named {path.stem}; rename the file")
    open_clip.add_model_config(path)
    _REGISTERED[path.stem] = path
    return path.stem


def _config(name: str, registered: str) -> dict[str, Any]:
    try:
        config = get_model_config(registered)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{name}: its config could not be read ({_first_line(error)}); check the name, or fetch it on a "
            "connected machine and give local-dir:FOLDER"
        ) from error
    if config is None:
        known = {each.lower(): each for each in (REFERENCE, *open_clip.list_models())}
        asked = name.lower().replace("/", "-")
        near = [known[each] for each in get_close_matches(asked, known, n=8)]
        near += [each for lower, each in known.items() if asked[:6] in lower and each not in near]
        raise ModelError(
            f"{name}: open_clip has no such model; "
            + (f"near it are {', '.join(near[:8])}" if near else "`headspan models` lists those that it has")
        )
    return config


def _weights_source(name: str, registered: str, pretrained: str | None) -> tuple[str | None, int]:
    """What open_clip is to load (None: nothing), and the seed of random weights."""
    schema, _ = parse_model_name(registered)
    if schema:
        if pretrained:
            raise ModelError(f"{name} brings its own weights; leave --pretrained {pretrained} out")
        return None, 0
    tags = open_clip.list_pretrained_tags_by_model(registered)
    choices = f"a tag ({', '.join(tags)}), " if tags else ""
    wanted = f"give {choices}hf-hub:NAME, a .pt or .safetensors file, or random:SEED"
    if pretrained is None and name == REFERENCE:
        return str(_REFERENCE_WEIGHTS), 0
    if pretrained is None:
        raise ModelError(f"{name}: no weights named; {wanted} with --pretrained")
    if pretrained.startswith("random:"):
        seed = pretrained.removeprefix("random:")
        if not re.fullmatch(r"[0-9]{1,18}", seed):
            raise ModelError(f"--pretrained {pretrained}: the seed must be a whole number, as in random:0")
        return None, int(seed)
    if pretrained.startswith("hf-hub:"):
        return _from_hub(name, pretrained), 0
    if get_pretrained_cfg(registered, pretrained) or Path(pretrained).is_file():
        return pretrained, 0
    raise ModelError(f"{name}: --pretrained {pretrained} is neither a tag of this model nor a file; {wanted}")


def _from_hub(name: str, pretrained: str) -> str:
    """The local copy of a hub repository's weights."""
    try:
        return str(download_pretrained_from_hf(pretrained.removeprefix("hf-hub:")))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(_load_failure(name, pretrained, error)) from error


def _needs_quick_gelu(registered: str, source: str | None) -> bool:
    # Some tags were trained with QuickGELU under a config that says GELU; open_clip only warns.
    return bool(source and get_pretrained_cfg(registered, source).get("quick_gelu"))


def _load_failure(name: str, pretrained: str | None, error: Exception) -> str:
    text = str(error)
    if "loading state_dict" in text or isinstance(error, AssertionError):
        return f"{pretrained}: its weights do not fit {name} ({_mismatch(text)}); name the model they were made for"
    if "TorchScript" in text or "weights_only" in text.lower():
        return (
            f"{pretrained}: holds no plain weights ({_first_line(error)}); headspan never unpickles objects, "
            "so save the state dict as .safetensors"
        )
    if isinstance(error, TypeError):
        return _config_failure(name, error)
    return (
        f"{name}: weights {pretrained or 'of the model'} could not be loaded ({_first_line(error)}); "
        "check the network, or fetch them on a connected machine and give the file with --pretrained"
    )


def _config_failure(name: str, error: Exception) -> str:
    return f"{name}: open_clip builds no model of this config ({_first_line(error)}); correct the config"


def _mismatch(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = lines[1] if len(lines) > 1 else lines[0]
    return detail if len(detail) < 160 else detail[:157] + "..."


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160].rstrip(".")


def _preprocess(visual: Any) -> Preprocess:
    config = visual.preprocess_cfg
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
        fill_color=config["fill_color"],
    )


def _text_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything but the image tower and the logits' scale and bias, which move no text vector."""
    return {k: v for k, v in state.items() if not k.startswith("visual.") and k not in ("logit_scale", "logit_bias")}


def _activation(tower: Tower) -> str:
    mlps = [block.mlp for block in tower.blocks]
    if tower.pool is not None and tower.pool.mlp is not None:
        mlps.append(tower.pool.mlp)
    return ", ".join(sorted({mlp.activation for mlp in mlps}))


def _digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over tensors, by name, as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _positions_in_float32() -> Iterator[None]:
    """PyTorch interpolates no 16-bit numbers on a CPU, and open_clip asks that of it where weights have 16 bits."""
    resize = factory.resize_pos_embed

    def widened(state_dict: dict[str, Any], *arguments: Any, **settings: Any) -> None:
        if (positions := state_dict.get(_POSITIONS)) is not None:
            state_dict[_POSITIONS] = positions.float()
        resize(state_dict, *arguments, **settings)

    factory.resize_pos_embed = widened
    try:
        yield
    finally:
        factory.resize_pos_embed = resize


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """open_clip tells the root logger what headspan's own errors say better."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)
