"""Find a model's open_clip config by the model's name.

The name is that of a model of open_clip, a config file, a local folder or a repository. Configs that ask for remote
code are refused. No model is built here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import open_clip
from open_clip.factory import get_model_config, parse_model_name

from headspan.errors import ModelError, one_line
from headspan.model import hub
from headspan.model.config_file import check_model, read_json, read_saved, refuse_remote_code
from headspan.model.hints import hugging_face_hint, unknown_model
from headspan.user_paths import expand_user

# The model that ships with headspan: its name, its config and its weights.
REFERENCE = "reference"
REFERENCE_CONFIG = Path(__file__).parents[1] / "world" / "reference" / "headspan-reference.json"
REFERENCE_WEIGHTS = REFERENCE_CONFIG.with_name("weights.safetensors")
_FOLDER = "local-dir:"
# The name under which open_clip knows a config from a store, if the model was a folder or a repository.
_OF_A_STORE = "headspan-model-of-a-store"
# The config files that this process has registered with open_clip, by their names there.
_REGISTERED: dict[str, Path] = {}


@dataclass(frozen=True, slots=True)
class NamedConfig:
    """The model that a name stands for."""

    # open_clip's model config.
    config: dict[str, Any]
    # The name under which open_clip finds the model's tokenizer, and its tags if it has some.
    known_as: str
    # Whether weights come with the config, as in a repository or a local folder.
    with_weights: bool = False
    # How images are prepared, if the config's file says so.
    preprocess: dict[str, Any] = field(default_factory=dict)
    # The config's file; None for a model of open_clip.
    file: Path | None = None
    # The folder, if it holds the weights too; None if they come from a repository.
    folder: Path | None = None
    # Whether the config was read from a store's attributes. Then `file` is no more than a name.
    of_store: bool = False

    def tokenizer(self) -> Any:
        """open_clip's tokenizer for the model."""
        if self.file is not None and self.file.stem == self.known_as:
            # Another config may have been registered with this name since.
            _register(self.file, self.config)
        return open_clip.get_tokenizer(self.known_as)


class _MissingConfig(ModelError):
    """The config of a local folder or a repository is not available."""


def find_config(
    name: str,
    weights: str | None = None,
    download: bool = True,
    stored: Mapping[str, Any] | None = None,
    resumed: Mapping[str, Any] | None = None,
) -> NamedConfig:
    """The open_clip config of the model `name`.

    Args:
        name: A model of open_clip, `reference`, a config file (`.json`), `local-dir:…` or `hf-hub:…`.
        weights: The place of the weights. An `open_clip_config.json` in that folder, or next to that file, replaces the
            config of the local folder or repository `name`.
        download: Whether a repository may be fetched; if not, only the local cache is searched.
        stored: The attributes of a store that this model made. Their config replaces a config file, and that of a local
            folder or repository if `weights` is a local path without a config.
        resumed: The attributes of a store that a run resumes. Their config is used if they name the same local folder
            or repository, its config is not available, and `weights` is a local path.

    Raises ModelError if there is no such config, or if it asks for remote code.
    """
    if not name.strip():
        raise ModelError("--model is empty; give a model's name (`headspan models` lists open_clip's models)")
    try:
        found = _find(name, weights, download, stored)
    except _MissingConfig:
        local = weights is not None and not weights.startswith(hub.PREFIX)
        if not local or resumed is None or resumed.get("model") != name:
            raise
        found = _from_store(_OF_A_STORE, resumed, with_weights=True)
    refuse_remote_code(name, found.config)
    return found


def _find(name: str, weights: str | None, download: bool, stored: Mapping[str, Any] | None) -> NamedConfig:
    if name == REFERENCE:
        return _from_file(REFERENCE, REFERENCE_CONFIG)
    if name.endswith(".json"):
        return (
            _from_file(name, expand_user(name, ModelError)) if stored is None else _from_store(Path(name).stem, stored)
        )
    try:
        schema, identifier = parse_model_name(name)
    except ValueError as error:
        raise ModelError(f"{name}: {one_line(error)}; write hf-hub:ORGANISATION/NAME or local-dir:FOLDER") from error
    if schema is None:
        config = get_model_config(name)
        if config is None:
            raise ModelError(f"{name}: {_path_hint(name) or unknown_model(name, [REFERENCE])}")
        return NamedConfig(config, name)
    if weights is not None and not weights.startswith(hub.PREFIX):
        given = expand_user(weights, ModelError)
        config = given / hub.CONFIG if given.is_dir() else hub.beside(given, hub.CONFIG)
        if config is not None and config.is_file():
            return _from_folder(name, config.parent)
        if stored is not None:
            return _from_store(_OF_A_STORE, stored, with_weights=True)
    recorded = recorded_paths(stored).get("model")
    if recorded and (Path(recorded) / hub.CONFIG).is_file():
        return _from_folder(name, Path(recorded))
    if schema == "local-dir":
        return _from_folder(name, expand_user(identifier, ModelError))
    repository = weights.removeprefix(hub.PREFIX) if weights and weights.startswith(hub.PREFIX) else identifier
    return _from_hub(name, repository, download)


def _path_hint(name: str) -> str | None:
    """The end of a sentence that begins with `name`, if it is a path instead of a model's name."""
    path = expand_user(name, ModelError)
    if path.is_dir():
        if (path / hub.CONFIG).is_file():
            return f"is a folder; give it as --model {_FOLDER}{name}"
        return (
            f"is a folder without {hub.CONFIG}; give the name of the model, and the folder with --weights if it "
            "holds the weights"
        )
    if path.is_file():
        return "is a file, not a model's name; give the name of the model, and a file of weights with --pretrained"
    return None


def recorded_paths(stored: Mapping[str, Any] | None) -> dict[str, str]:
    """The absolute paths of the model's files, as the attributes of a store record them."""
    found: dict[str, str] = ((stored or {}).get("made_with") or {}).get("paths") or {}
    return found


def _from_file(name: str, path: Path) -> NamedConfig:
    if not path.is_file():
        raise ModelError(f"{name}: no such model config; give the path of an open_clip config, or a model name")
    config = read_json(path)
    refuse_remote_code(name, config)
    if isinstance(config, dict) and "model_cfg" in config and "embed_dim" not in config:
        raise ModelError(
            f"{name}: is the config of a folder with weights, so give --model {_FOLDER}{path.parent}; for other "
            "weights save its model_cfg as a separate file, and give that"
        )
    if not _is_whole(config):
        raise ModelError(f"{name}: an open_clip config needs embed_dim, vision_cfg and text_cfg; add what is missing")
    check_model(name, config)
    known = get_model_config(path.stem)
    if known not in (None, config) and path.stem not in _REGISTERED:
        raise ModelError(f"{name}: open_clip has another model named {path.stem}; rename the file")
    _register(path.absolute(), config)
    return NamedConfig(config, path.stem, file=path.absolute())


def _is_whole(config: Any) -> TypeGuard[dict[str, Any]]:
    parts = [config.get(part) for part in ("vision_cfg", "text_cfg")] if isinstance(config, dict) else [None]
    return all(isinstance(part, dict) for part in parts) and "embed_dim" in config


def _register(path: Path, config: dict[str, Any]) -> None:
    if get_model_config(path.stem) != config or path.stem not in _REGISTERED:
        # open_clip reads only files, and a store's config is in none.
        with tempfile.TemporaryDirectory(prefix="headspan-configs-") as folder:
            copy = Path(folder) / path.name
            copy.write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(copy)
    _REGISTERED[path.stem] = path


def _from_store(stem: str, stored: Mapping[str, Any], with_weights: bool = False) -> NamedConfig:
    """The config in a store's attributes, under the name that its file had."""
    config = dict(stored["model_config"])
    refuse_remote_code(stem, config)
    known = get_model_config(stem)
    if known is not None and known != config and stem not in _REGISTERED:
        # A model of open_clip has this name now.
        stem = f"headspan-{stem}"
    path = Path(f"{stem}.json")
    _register(path, config)
    return NamedConfig(
        config, stem, with_weights=with_weights, preprocess=dict(stored["preprocess"]), file=path, of_store=True
    )


def _from_folder(name: str, folder: Path) -> NamedConfig:
    file = (folder / hub.CONFIG).absolute()
    if not file.is_file():
        raise _MissingConfig(
            f"{name}: its config could not be read (there is no {file}); give the folder of a model that open_clip "
            "saved, with its open_clip_config.json"
        )
    return _with_preprocessing(name, file, f"{_FOLDER}{folder.absolute()}", folder.absolute())


def _from_hub(name: str, repository: str, download: bool) -> NamedConfig:
    try:
        file = hub.fetch(repository, [hub.CONFIG], download)
    except ModelError as error:
        hint = hugging_face_hint(f"{hub.PREFIX}{repository}")
        if not download:
            raise _MissingConfig(not_cached(name, f"hf-hub:{repository}")) from error
        raise _MissingConfig(
            f"{name}: {hint}"
            if hint and "transformers" in hint
            else f"{name}: its config could not be read ({error}); check the name and the network, or fetch the "
            "repository on a connected machine and give local-dir:FOLDER"
        ) from error
    return _with_preprocessing(name, file, f"{hub.PREFIX}{repository}", None)


def not_cached(name: str, repository: str) -> str:
    """The error text for a repository that a store names: it is not fetched unless the user names it too."""
    return (
        f"{name}: is not in the local cache of Hugging Face, and a repository that a store names is fetched only if "
        f"you name it too; if you trust it give --weights {repository} (weights= in Python), or give the folder or "
        "file with --weights PATH"
    )


def _with_preprocessing(name: str, file: Path, known_as: str, folder: Path | None) -> NamedConfig:
    whole = read_saved(file, name)
    config = whole.get("model_cfg")
    if not _is_whole(config):
        raise ModelError(
            f"{name}: {file} has no model_cfg with embed_dim, vision_cfg and text_cfg; give a config that "
            "open_clip saved"
        )
    preprocess = whole.get("preprocess_cfg") or {}
    return NamedConfig(config, known_as, True, preprocess, file, folder)
