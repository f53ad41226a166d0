"""Convert image towers to the uniform tower, and say which of open_clip's models can be decomposed.

Conversion alone decides what is supported. Before any weights are fetched, it runs on a tower that has shapes but no
numbers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from json import dumps, loads
from math import prod
from typing import Any

import open_clip
import timm
import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from headspan.errors import ModelError
from headspan.model import convert_openclip, convert_timm
from headspan.model.initialisation import NoInitialisation
from headspan.model.tower import Tower
from headspan.model.weights import UnsupportedModel

SUPPORTED = "Vision Transformers, open_clip's own and timm's (ViT-*, CoCa, SigLIP, EVA, PE-Core, MobileCLIP-B, …)"
# timm's families that are refused by name, since building them could only end in a refusal.
_OTHERS = {
    "convnext": "a ConvNeXt",
    "swin_transformer": "a Swin Transformer, which merges rows between stages",
    "fastvit": "a FastViT, mostly convolutions",
    "vitamin": "a ViTamin, a hybrid whose first stages are convolutions",
}


def catalogue() -> dict[str, str | None]:
    """Every model of open_clip by name: None if headspan decomposes it, else the reason why not."""
    return {name: unsupported_reason(get_model_config(name)) for name in open_clip.list_models()}


def models_needing_transformers() -> set[str]:
    """The models with a text tower of Hugging Face; none if the package transformers is installed."""
    return {name for name in open_clip.list_models() if lacks_transformers(get_model_config(name))}


def two_pass_models() -> set[str]:
    """The models of open_clip that need two passes per image (see `Description.runs_twice`)."""
    found = set()
    for name in open_clip.list_models():
        config = get_model_config(name)
        if unsupported_reason(config) is None and _verdict_of(config)[1]:
            found.add(name)
    return found


def lacks_transformers(config: dict[str, Any]) -> bool:
    """Whether this config's text tower needs the package transformers, and it is not installed."""
    return bool(config["text_cfg"].get("hf_model_name")) and find_spec("transformers") is None


def unsupported_reason(config: dict[str, Any]) -> str | None:
    """Why a model with this open_clip config cannot be decomposed; None if it can."""
    vision = config["vision_cfg"]
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet"
    name = vision.get("timm_model_name")
    if name:
        if not timm.is_model(name):
            return f"its image tower is timm's {name}, which timm {timm.__version__} does not have"
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        if family in _OTHERS:
            return f"its image tower is timm's {name}, {_OTHERS[family]}"
    return _verdict_of(config)[0]


def _verdict_of(config: dict[str, Any]) -> tuple[str | None, bool]:
    vision = config["vision_cfg"]
    # Settings that do not matter are made equal, so that one cached answer serves many configs.
    alike = {"timm_drop": 0.0, "timm_drop_path": None, "image_size": 224} if vision.get("timm_model_name") else {}
    vision = {**_one_block(vision), **alike}
    return _verdict(dumps(vision, sort_keys=True), config["embed_dim"], bool(config.get("quick_gelu")))


def _one_block(vision: dict[str, Any]) -> dict[str, Any]:
    """The config of an image tower with one block, which is enough to judge it; timm's have a fixed number."""
    return vision if vision.get("timm_model_name") else {**vision, "layers": 1}


def patch_pixels(config: dict[str, Any]) -> int:
    """The side of a patch in pixels, for a config that is supported."""
    vision = _one_block(config["vision_cfg"])
    tower = _tower_of(_without_numbers(config["embed_dim"], vision, False))
    return max(prod(step.stride[axis] for step in tower.patch_embed) for axis in (0, 1))


def tower_without_numbers(config: dict[str, Any]) -> Tower:
    """The tower of a config that is supported: its layers and heads are those of the model, its numbers are none."""
    vision = config["vision_cfg"]
    tower = _tower_of(_without_numbers(config["embed_dim"], _one_block(vision), False))
    if vision.get("timm_model_name"):
        return tower
    return replace(tower, blocks=tower.blocks * vision.get("layers", CLIPVisionCfg.layers))


def to_tower(visual: nn.Module, name: str) -> Tower:
    """The uniform tower of an open_clip image tower, float32, on its weights' device.

    Raises ModelError, which names the model `name`, if the tower cannot run a part of `visual`.
    """
    try:
        return _tower_of(visual)
    except UnsupportedModel as reason:
        raise ModelError(f"{name}: {reason}; headspan decomposes {SUPPORTED}") from reason


def _tower_of(visual: nn.Module) -> Tower:
    if isinstance(visual, VisionTransformer):
        return convert_openclip.tower_of(visual)
    if isinstance(visual, TimmModel):
        return convert_timm.tower_of(visual)
    raise UnsupportedModel(f"its image tower is a {type(visual).__name__}")


def _without_numbers(joint: int, vision: dict[str, Any], quick_gelu: bool) -> nn.Module:
    """An image tower without numbers. Takes a fraction of a second at any size."""
    # PyTorch imports its compiler for arithmetic on the device `meta`, which takes a second. timm's towers have all
    # their blocks, so they need that device; open_clip's have one block here, whose memory is never touched.
    device = "meta" if vision.get("timm_model_name") else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device), NoInitialisation():
        return _build_vision_tower(joint, vision, quick_gelu)


@cache
def _verdict(vision: str, joint: int, quick_gelu: bool) -> tuple[str | None, bool]:
    """`unsupported_reason` for a vision config as JSON, and whether the tower runs twice."""
    try:
        return None, _tower_of(_without_numbers(joint, loads(vision), quick_gelu)).runs_twice
    except UnsupportedModel as reason:
        return str(reason), False
