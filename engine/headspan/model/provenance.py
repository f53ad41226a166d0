"""What decides how a model's images are prepared, and which activation it runs.

The same weights have the same settings however they are named. In this order of authority: the tag of open_clip that
the user names; the tag whose file it is known to be, by its place in a hub cache or by its bytes; the
`open_clip_config.json` of the repository, or beside the file; and, where none of these is there, open_clip's defaults,
which is said in a note. A store that is gone on with keeps the settings that it was made with.
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

# What a tag or a config says of preprocessing; the size is the image tower's.
_PREPROCESS = [each.name for each in fields(PreprocessCfg) if each.name != "size"]
# What does not shape a tower's function: training, and which tokenizer is fetched from where.
_SHAPELESS = {
    "patch_dropout", "output_tokens", "timm_drop", "timm_drop_path", "timm_model_pretrained", "hf_model_pretrained",
    "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs",
}  # fmt: skip
# What shapes an image tower of timm's; the other fields say nothing of it.
_OF_TIMM = {"timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "image_size"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model's images are prepared (what differs from open_clip's defaults), and whether it runs QuickGELU."""

    preprocess: dict[str, Any]
    quick_gelu: bool
    # The note that tells what was assumed, or what was decided against what.
    note: str | None = None

    def same_as(self, other: Settings) -> bool:
        """Whether both give the same numbers."""
        return (self.quick_gelu, _whole(self.preprocess)) == (other.quick_gelu, _whole(other.preprocess))

    def __str__(self) -> str:
        known = _whole(self.preprocess)
        mean, std = ([round(float(x), 4) for x in known[name]] for name in ("mean", "std"))
        activation = "QuickGELU" if self.quick_gelu else "GELU"
        return f"mean {mean}, std {std}, {known['interpolation']}, {known['resize_mode']}, {activation}"


def settle(
    name: str,
    named: NamedConfig,
    found: Weights,
    pretrained: str | None,
    image_size: int | None,
    download: bool,
    made: Mapping[str, Any] | None,
) -> Settings:
    """The preprocessing and activation of the weights `found`; those of the store `made`, where one goes on."""
    own = bool(named.config.get("quick_gelu"))
    tag = open_clip.get_pretrained_cfg(named.known_as, pretrained) if pretrained and not named.with_weights else {}
    if tag:
        return _of(tag, own)
    if named.with_weights:
        now = _beside(Settings(_known(named.preprocess), own), _tag_of_repository(found.repository), named.file)
    elif found.path in (None, REFERENCE_WEIGHTS):
        now = Settings({}, own)
    else:
        assert found.path is not None
        now = _of_file(name, named, found.path, found.repository, image_size, download)
    if made is None:
        return now
    as_made = Settings(
        _known(made["preprocess"]),
        bool(((made.get("made_with") or {}).get("weights") or {}).get("quick_gelu", own)),
    )
    if as_made.same_as(now):
        return as_made
    return Settings(
        as_made.preprocess,
        as_made.quick_gelu,
        f"the store goes on as it was made, with {as_made}; a new store of these weights would have {now}",
    )


def _of(tag: Mapping[str, Any], own: bool) -> Settings:
    # open_clip only warns where a tag was trained with QuickGELU under a config that says GELU.
    return Settings(_known(tag), own or bool(tag.get("quick_gelu")))


def _tag_of_repository(repository: str | None) -> tuple[str, Settings] | None:
    """The tag of open_clip that lives in a repository, and its settings."""
    for model, tag in open_clip.list_pretrained() if repository else []:
        known = open_clip.get_pretrained_cfg(model, tag)
        if known.get("hf_hub") == f"{repository}/":
            return f"--model {model} --pretrained {tag}", _of(known, False)
    return None


def _beside(own: Settings, tag: tuple[str, Settings] | None, file: Path | None) -> Settings:
    """The settings of a repository's own config, with a note where open_clip's tag of the same weights has others."""
    if tag is None or own.same_as(tag[1]):
        return own
    return Settings(
        own.preprocess,
        own.quick_gelu,
        f"{file}: says {own}, and open_clip's tag of the same weights {tag[1]}; the former is taken, so give {tag[0]} "
        "for the latter",
    )


def _of_file(
    name: str, named: NamedConfig, path: Path, repository: str | None, image_size: int | None, download: bool
) -> Settings:
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
        assumed = Settings({}, own)
        tag = next(iter(tags), None)
        todo = f"name their tag with --pretrained TAG --weights {path} (tags: {', '.join(tags)}), or " if tag else ""
        return Settings(
            {},
            own,
            f"{path}: nothing tells the preprocessing and activation of these weights, so open_clip's defaults were "
            f"assumed ({assumed}); if they are others, {todo}put their repository's {hub.CONFIG} beside the file",
        )
    file, whole = beside
    config = whole.get("model_cfg", whole if "embed_dim" in whole else {})
    _refuse_contradiction(name, named.config, file, config, image_size)
    return Settings(_known(whole.get("preprocess_cfg") or {}), bool(config.get("quick_gelu", own)))


def _config_beside(path: Path, repository: str | None, download: bool) -> tuple[Path, dict[str, Any]] | None:
    """The config that describes a file of weights: beside it, or in its repository."""
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
    """Raise ModelError where the config beside the weights describes another model than the one that was named."""
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
            "that the weights were made for, or take the config away if it is not theirs"
        )


def _differences(part: str, kind: Any, own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    mine, theirs = dict(own.get(part) or {}), dict(other.get(part) or {})
    found = {}
    of_timm = part == "vision_cfg" and (mine.get("timm_model_name") or theirs.get("timm_model_name"))
    for each in fields(kind):
        if each.name in _SHAPELESS or (of_timm and each.name not in _OF_TIMM):
            continue
        pair = tuple(_plain(config.get(each.name, each.default)) for config in (mine, theirs))
        if pair[0] != pair[1]:
            found[f"{part}.{each.name}"] = (pair[0], pair[1])
    return found


def _plain(value: Any) -> Any:
    """A square size as one number; None and an empty table are the same."""
    if isinstance(value, list | tuple):
        return value[0] if value and all(each == value[0] for each in value) else list(value)
    return value or None


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {each: settings[each] for each in _PREPROCESS if settings.get(each) is not None}


def _whole(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    defaults = PreprocessCfg()
    found = {each: preprocess.get(each, getattr(defaults, each)) for each in _PREPROCESS}
    return {each: list(value) if isinstance(value, list | tuple) else value for each, value in found.items()}
