"""Decide how a model's images are prepared, and which activation it runs.

The same weights have the same settings, however the user names them. The first of these that exists decides:

1. the tag of open_clip that the user names;
2. the tag to which the file of weights belongs, recognised by its place in a hub cache or by its bytes;
3. the `open_clip_config.json` of the repository, or next to the file;
4. open_clip's defaults, with a note.

A store that is resumed keeps the settings that it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg

from headspan.errors import ModelError
from headspan.model import hub
from headspan.model.checkpoint import known_tag
from headspan.model.config_file import read_saved
from headspan.model.configs import REFERENCE_WEIGHTS, NamedConfig
from headspan.model.places import Weights

# The preprocessing that a tag or a config states; the size comes from the image tower.
_PREPROCESS = [each.name for each in fields(PreprocessCfg) if each.name != "size"]
# Fields that do not affect a tower's output: training, and where the tokenizer comes from.
_WITHOUT_EFFECT = {
    "patch_dropout", "output_tokens", "timm_drop", "timm_drop_path", "timm_model_pretrained", "hf_model_pretrained",
    "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs",
}  # fmt: skip
# The only fields that affect an image tower of timm.
_OF_TIMM = {"timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "image_size"}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How images are prepared, where that differs from open_clip's defaults, and whether QuickGELU runs."""

    preprocess: dict[str, Any]
    quick_gelu: bool
    # A note on what was assumed, or on which of two contradicting settings was used.
    note: str | None = None

    def same_as(self, other: ModelSettings) -> bool:
        """Whether both give the same embeddings."""
        return (self.quick_gelu, _whole(self.preprocess)) == (other.quick_gelu, _whole(other.preprocess))

    def __str__(self) -> str:
        known = _whole(self.preprocess)
        mean, std = ([round(float(x), 4) for x in known[name]] for name in ("mean", "std"))
        activation = "QuickGELU" if self.quick_gelu else "GELU"
        return f"mean {mean}, std {std}, {known['interpolation']}, {known['resize_mode']}, {activation}"


def find_settings(
    name: str,
    named: NamedConfig,
    found: Weights,
    pretrained: str | None,
    image_size: int | None,
    download: bool,
    resumed: Mapping[str, Any] | None,
) -> ModelSettings:
    """The preprocessing and activation for the weights `found`, or those of the store `resumed`, if given."""
    own = bool(named.config.get("quick_gelu"))
    tag = open_clip.get_pretrained_cfg(named.known_as, pretrained) if pretrained and not named.with_weights else {}
    if tag:
        return _of(tag, own)
    if named.with_weights:
        now = _beside(ModelSettings(_known(named.preprocess), own), _tag_of_repository(found.repository), named.file)
    elif found.path in (None, REFERENCE_WEIGHTS):
        now = ModelSettings({}, own)
    else:
        assert found.path is not None
        now = _of_file(name, named, found.path, found.repository, image_size, download)
    if resumed is None:
        return now
    as_made = ModelSettings(
        _known(resumed["preprocess"]),
        bool(((resumed.get("made_with") or {}).get("weights") or {}).get("quick_gelu", own)),
    )
    if as_made.same_as(now):
        return as_made
    return ModelSettings(
        as_made.preprocess,
        as_made.quick_gelu,
        f"the store keeps the settings that it was made with ({as_made}); a new store of these weights would have "
        f"{now}",
    )


def _of(tag: Mapping[str, Any], own: bool) -> ModelSettings:
    # If a tag was trained with QuickGELU and its config says GELU, open_clip only warns.
    return ModelSettings(_known(tag), own or bool(tag.get("quick_gelu")))


def _tag_of_repository(repository: str | None) -> tuple[str, ModelSettings] | None:
    """The tag of open_clip with this repository, and its settings."""
    for model, tag in open_clip.list_pretrained() if repository else []:
        known = open_clip.get_pretrained_cfg(model, tag)
        if known.get("hf_hub") == f"{repository}/":
            return f"--model {model} --pretrained {tag}", _of(known, False)
    return None


def _beside(own: ModelSettings, tag: tuple[str, ModelSettings] | None, file: Path | None) -> ModelSettings:
    """The settings of a repository's own config, with a note if open_clip's tag of the same weights has others."""
    if tag is None or own.same_as(tag[1]):
        return own
    return ModelSettings(
        own.preprocess,
        own.quick_gelu,
        f"{file}: states {own}, but open_clip's tag of the same weights has {tag[1]}; the file's settings are used; "
        f"give {tag[0]} to use the tag's",
    )


def _of_file(
    name: str, named: NamedConfig, path: Path, repository: str | None, image_size: int | None, download: bool
) -> ModelSettings:
    own = bool(named.config.get("quick_gelu"))
    tags = {
        tag: open_clip.get_pretrained_cfg(named.known_as, tag)
        for tag in open_clip.list_pretrained_tags_by_model(named.known_as)
    }
    known = known_tag(path, tags)
    if known is not None:
        return _of(tags[known], own)
    beside = _config_beside(path, repository, download)
    if beside is None:
        assumed = ModelSettings({}, own)
        tag = next(iter(tags), None)
        todo = f"name their tag with --pretrained TAG --weights {path} (tags: {', '.join(tags)}), or " if tag else ""
        return ModelSettings(
            {},
            own,
            f"{path}: nothing states the preprocessing and activation of these weights, so open_clip's defaults were "
            f"assumed ({assumed}); if that is wrong, {todo}put their repository's {hub.CONFIG} next to the file",
        )
    file, whole = beside
    config = whole.get("model_cfg", whole if "embed_dim" in whole else {})
    _refuse_contradiction(name, named.config, file, config, image_size)
    return ModelSettings(_known(whole.get("preprocess_cfg") or {}), bool(config.get("quick_gelu", own)))


def _config_beside(path: Path, repository: str | None, download: bool) -> tuple[Path, dict[str, Any]] | None:
    """The config that describes a file of weights: next to it, or in its repository."""
    file = hub.beside(path, hub.CONFIG)
    if file is None and repository is not None:
        try:
            file = hub.fetch(repository, [hub.CONFIG], download)
        except ModelError:
            return None
    return None if file is None else (file, read_saved(file, str(file)))


def _refuse_contradiction(
    name: str, own: Mapping[str, Any], file: Path, other: Mapping[str, Any], image_size: int | None
) -> None:
    """Raise ModelError if the config next to the weights describes another model than the user named."""
    if not other:
        return
    pairs = {
        **_differences("vision_cfg", open_clip.CLIPVisionCfg, own, other),
        **_differences("text_cfg", open_clip.CLIPTextCfg, own, other),
    }
    if own.get("embed_dim") != other.get("embed_dim"):
        pairs["embed_dim"] = (own.get("embed_dim"), other.get("embed_dim"))
    if own.get("quick_gelu") and not other.get("quick_gelu"):
        pairs["quick_gelu"] = (True, False)
    if image_size is not None:
        pairs.pop("vision_cfg.image_size", None)
    if pairs:
        key, (mine, theirs) = next(iter(pairs.items()))
        raise ModelError(
            f"{file}: describes another model than {name} ({key} is {theirs!r}, {name} has {mine!r}); name the model "
            "that the weights were made for, or remove the config if it does not belong to them"
        )


def _differences(part: str, kind: Any, own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    mine, theirs = dict(own.get(part) or {}), dict(other.get(part) or {})
    found = {}
    of_timm = part == "vision_cfg" and (mine.get("timm_model_name") or theirs.get("timm_model_name"))
    for each in fields(kind):
        if each.name in _WITHOUT_EFFECT or (of_timm and each.name not in _OF_TIMM):
            continue
        pair = tuple(_plain(config.get(each.name, each.default)) for config in (mine, theirs))
        if pair[0] != pair[1]:
            found[f"{part}.{each.name}"] = (pair[0], pair[1])
    return found


def _plain(value: Any) -> Any:
    """A value for comparison: a square size is one number, and an empty table is None."""
    if isinstance(value, list | tuple):
        return value[0] if value and all(each == value[0] for each in value) else list(value)
    return value or None


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {each: settings[each] for each in _PREPROCESS if settings.get(each) is not None}


def _whole(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    defaults = PreprocessCfg()
    found = {each: preprocess.get(each, getattr(defaults, each)) for each in _PREPROCESS}
    return {each: list(value) if isinstance(value, list | tuple) else value for each, value in found.items()}
