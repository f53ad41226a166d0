"""All private interfaces of libraries that headspan relies on, each with a check that it still exists.

A failing check names the file that relies on the interface, and what no longer works. Public and documented interfaces
are not listed.
"""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from fsspec.asyn import AsyncFileSystem
from open_clip import factory, pretrained
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


def vision_towers_are_built_alone() -> bool:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    with torch.device("meta"):
        return isinstance(_build_vision_tower(8, vision, True), nn.Module)


def random_starts_pass_a_function_mode() -> bool:
    """Building on the meta device must not read a number back from it."""
    with torch.device("meta"):
        trunk = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.1)
    return isinstance(trunk, VisionTransformer)


def checkpoints_are_read_by_a_name_in_the_factory() -> bool:
    source = inspect.getsource(factory.load_checkpoint)
    return "load_state_dict(checkpoint_path" in source and "load_state_dict" in vars(factory)


def positions_are_interpolated_while_loading() -> bool:
    source = inspect.getsource(factory.load_checkpoint)
    return "resize_pos_embed(" in source and "resize_text_pos_embed(" in source


def local_folders_give_config_and_preprocessing() -> bool:
    return factory.parse_model_name("local-dir:/a") == ("local-dir", "/a") and {
        "load_weights",
        "force_image_size",
        "pretrained_text",
    } <= set(inspect.signature(open_clip.create_model).parameters)


def the_tower_keeps_its_preprocessing() -> bool:
    return "preprocess_cfg" in inspect.getsource(open_clip.model.set_model_preprocess_cfg)


def the_preprocessing_has_the_settings_that_are_known() -> bool:
    known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    return {each.name for each in fields(PreprocessCfg)} == known


def tags_say_where_their_files_come_from() -> bool:
    tag = pretrained.get_pretrained_cfg("ViT-B-32", "openai")
    return bool(tag["hf_hub"]) and tag["hf_hub"].endswith("/") and tag["quick_gelu"] is True


def tags_of_openai_tell_their_checksum() -> bool:
    tag = pretrained.get_pretrained_cfg("ViT-B-32", "openai")
    return "openaipublic" in tag["url"] and len(tag["url"].split("/")[-2]) == 64


def repositories_have_two_names_for_weights() -> bool:
    constants = open_clip.constants
    return (constants.HF_SAFE_WEIGHTS_NAME, constants.HF_WEIGHTS_NAME, constants.HF_CONFIG_NAME) == (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_config.json",
    )


def configs_are_added_from_a_file() -> bool:
    return callable(open_clip.add_model_config) and "add_model_config" in vars(factory)


def a_setting_of_the_client_keeps_it_from_the_network() -> bool:
    return isinstance(huggingface_hub.constants.HF_HUB_OFFLINE, bool)


def the_cache_has_a_folder_a_repository() -> bool:
    name = huggingface_hub.file_download.repo_folder_name(repo_id="a/b", repo_type="model")
    return name == "models--a--b"


def drivers_of_networks_read_a_range_in_a_coroutine() -> bool:
    return {"start", "end"} <= set(inspect.signature(AsyncFileSystem._cat_file).parameters)


def an_interpreter_can_be_started_with_the_flags_of_this_one() -> bool:
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return isinstance(flags, list) and all(flag.startswith("-") for flag in flags[:1])


def one_dnn_lays_weights_out_once() -> bool:
    operations = ("_reorder_linear_weight", "_linear_pointwise")
    return not torch.backends.mkldnn.is_available() or all(hasattr(torch.ops.mkldnn, each) for each in operations)


def open_clips_blocks_have_the_parts_that_are_read() -> bool:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    visual = _build_vision_tower(8, vision, False)
    block = visual.transformer.resblocks[0]
    parts = [
        *(hasattr(visual, each) for each in ("conv1", "class_embedding", "ln_pre", "ln_post", "proj", "attn_pool")),
        *(hasattr(visual, each) for each in ("pool_type", "final_ln_after_pool", "positional_embedding")),
        *(hasattr(block, each) for each in ("attn", "ln_1", "ln_2", "ls_1", "ls_2", "mlp")),
        hasattr(block.mlp, "c_fc"),
        hasattr(block.mlp, "gelu"),
        hasattr(block.mlp, "c_proj"),
    ]
    return all(parts)


def timms_blocks_have_the_parts_that_are_read() -> bool:
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    block = trunk.blocks[0]
    parts = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")
    return all(hasattr(block, each) for each in parts) and all(
        hasattr(block.attn, each) for each in ("qkv", "q_norm", "k_norm", "proj", "num_heads")
    )


def the_text_towers_mask_and_positions_are_cut() -> bool:
    clip = open_clip.CLIP(8, {"image_size": 32, "width": 32, "layers": 1, "head_width": 16}, {"width": 32, "layers": 1})
    return all(hasattr(clip, each) for each in ("attn_mask", "positional_embedding", "text_pool_type"))


def storages_are_made_in_shared_memory() -> bool:
    return bool(torch.UntypedStorage._new_shared(16).is_shared())


# The file that relies on the interface, the check, and what no longer works without the interface.
TABLE: list[tuple[str, Callable[[], bool], str]] = [
    (
        "engine/headspan/model/convert.py",
        vision_towers_are_built_alone,
        "`headspan models`, and refusals before weights",
    ),
    ("engine/headspan/model/convert.py", random_starts_pass_a_function_mode, "`headspan models`; timm before 1.0.21"),
    (
        "engine/headspan/model/convert_openclip.py",
        open_clips_blocks_have_the_parts_that_are_read,
        "open_clip's own towers",
    ),
    ("engine/headspan/model/convert_timm_blocks.py", timms_blocks_have_the_parts_that_are_read, "timm's towers"),
    ("engine/headspan/model/text.py", the_text_towers_mask_and_positions_are_cut, "short contexts of short texts"),
    ("engine/headspan/model/checkpoint.py", checkpoints_are_read_by_a_name_in_the_factory, "compiled checkpoints"),
    ("engine/headspan/model/checkpoint.py", positions_are_interpolated_while_loading, "--image-size"),
    ("engine/headspan/model/load.py", local_folders_give_config_and_preprocessing, "loading of any model"),
    ("engine/headspan/model/load.py", the_tower_keeps_its_preprocessing, "a store's `preprocess`"),
    ("engine/headspan/model/configs.py", configs_are_added_from_a_file, "--model CONFIG.json"),
    ("engine/headspan/model/provenance.py", the_preprocessing_has_the_settings_that_are_known, "a tag's preprocessing"),
    ("engine/headspan/model/provenance.py", tags_say_where_their_files_come_from, "files known as a tag's"),
    ("engine/headspan/model/checkpoint.py", tags_of_openai_tell_their_checksum, "files known by their checksum"),
    ("engine/headspan/model/hub.py", repositories_have_two_names_for_weights, "hf-hub: names"),
    ("engine/headspan/model/hub.py", a_setting_of_the_client_keeps_it_from_the_network, "stores of somebody else"),
    ("engine/headspan/model/hub.py", the_cache_has_a_folder_a_repository, "files known by their place in the cache"),
    ("engine/headspan/io/ranges.py", drivers_of_networks_read_a_range_in_a_coroutine, "remote shards read ahead"),
    (
        "engine/headspan/decode/processes/worker_process.py",
        an_interpreter_can_be_started_with_the_flags_of_this_one,
        "decoding in processes",
    ),
    ("engine/headspan/loading/tensors.py", storages_are_made_in_shared_memory, "batches of DataLoader workers"),
    ("kernels/headspan_kernels/onednn.py", one_dnn_lays_weights_out_once, "the fast tower on CPUs"),
]


@pytest.mark.parametrize(("file", "check", "breaks"), TABLE, ids=[check.__name__ for _, check, _ in TABLE])
def test_a_private_interface_still_exists(file: str, check: Callable[[], bool], breaks: str) -> None:
    assert (ROOT / file).is_file(), f"{file} has moved; correct the table"
    assert check(), f"{file} relies on {check.__name__.replace('_', ' ')}; without it fails: {breaks}"


def test_all_files_that_use_private_names_of_libraries_are_in_the_table() -> None:
    listed = {file for file, _, _ in TABLE}
    marks = (
        "import _",
        "factory.load_state_dict",
        "torch.ops.mkldnn._",
        "driver._",
        "constants.HF_HUB_OFFLINE",
        "subprocess._",
        "UntypedStorage._",
    )
    using = {
        str(path.relative_to(ROOT))
        for folder in ("engine", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if any(mark in path.read_text() for mark in marks)
    }
    assert using <= listed
    assert using, "the search must find the files that are known to use private names"
