"""Load a model by open_clip name, repository, local folder or config, with weights by tag or file.

Weights are never unpickled: they come from `.safetensors`, or from `.pt` with torch's weights-only loading. A model
that cannot be decomposed is refused before its weights are fetched.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch

from headspan.config import Preprocess
from headspan.errors import ModelError, SettingsError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.locations import Location
from headspan.model import hub
from headspan.model.checkpoint import LOADING_ERRORS, first_line, load_into
from headspan.model.checksums import TowerChecksums
from headspan.model.configs import REFERENCE, NamedConfig, find_config
from headspan.model.convert import SUPPORTED, lacks_transformers, patch_pixels, to_tower, unsupported_reason
from headspan.model.description import parts_of
from headspan.model.initialisation import NoInitialisation
from headspan.model.layers import Mlp
from headspan.model.places import Weights, find_weights
from headspan.model.provenance import ModelSettings, find_settings
from headspan.user_paths import expand_user


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An open_clip model, and what is needed to name it, prepare its images and find it again."""

    name: str
    pretrained: str | None
    # An open_clip CLIP, CustomTextCLIP or CoCa, which share no typed base.
    clip: Any
    config: dict[str, Any]
    preprocess: Preprocess
    checksums: TowerChecksums
    # Whether open_clip runs QuickGELU in both towers.
    quick_gelu: bool
    named: NamedConfig
    # What was assumed about preprocessing and activation, since nothing states it.
    assumed: str | None = None
    # Absolute paths, if paths were given: `model` (config or folder) and `weights` (the file that was read).
    paths: dict[str, str] = field(default_factory=dict)
    # Whether files that the tokenizer needs may be fetched.
    download: bool = True
    # The tokenizer, once it has been made, which takes a tenth of a second.
    _made_tokenizer: list[Any] = field(default_factory=list, repr=False)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the image tower's parameters, by name, as float32."""
        return self.checksums.image

    @property
    def text_sha256(self) -> str:
        """The same for the text tower: all other parameters except the scale and bias of the logits."""
        return self.checksums.text

    @property
    def activation(self) -> str:
        """The activation that the image tower's MLPs run, such as `gelu` or `quick_gelu`."""
        tower = to_tower(self.clip.visual, self.name)
        return ", ".join(sorted({mlp.activation for mlp in parts_of(tower, Mlp)}))

    def tokenizer(self) -> Any:
        """open_clip's tokenizer for this model. Raises ModelError if a package or file is missing."""
        if not self._made_tokenizer:
            self._made_tokenizer.append(self._new_tokenizer())
        return self._made_tokenizer[0]

    def _new_tokenizer(self) -> Any:
        try:
            with hub.offline(not self.download), _quiet_logging():
                return self.named.tokenizer()
        except ImportError as error:
            raise ModelError(
                f"{self.name}: open_clip's tokenizer for it needs a package ({first_line(error)}); install it with "
                "pip install transformers sentencepiece"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            todo = (
                "check the network" if self.download else "name its repository with --weights hf-hub:NAME to fetch it"
            )
            raise ModelError(f"{self.name}: its tokenizer could not be loaded ({first_line(error)}); {todo}") from error


def load_model(
    name: str,
    pretrained: str | None,
    image_size: int | None = None,
    *,
    weights: str | None = None,
    download: bool = True,
    on_progress: Listener = ignore,
    resumed: Mapping[str, Any] | None = None,
    judge: Callable[[dict[str, Any]], object] | None = None,
) -> LoadedModel:
    """Load an open_clip model, float32, on the CPU, in evaluation mode.

    Args:
        name: An open_clip model, `hf-hub:…`, `local-dir:…`, the path of an open_clip config (`.json`), or `reference`,
            the model that ships with headspan and needs no `pretrained`.
        pretrained: An open_clip tag, `hf-hub:…`, a local `.pt` or `.safetensors` file, or `random:SEED`.
        image_size: Height and width of the images in pixels; None for the model's own. open_clip interpolates the
            position embeddings for another size.
        weights: The place of the named weights: a file, a folder, or `hf-hub:…`.
        download: Whether files may be fetched; if not, repositories are read from the local cache only.
        on_progress: Receives notes on fetches of more than two seconds, and on assumptions about preprocessing and
            activation.
        resumed: The attributes of a store that a run resumes. Its preprocessing and activation are used.
        judge: Receives the config before weights are looked for, and may raise an error.

    Raises SettingsError if the images would be smaller than a patch. Raises ModelError if the model is unknown or
    cannot be decomposed, if its config asks for remote code, or if its weights are missing, hold pickled objects, or
    belong to another model.
    """
    return _load(name, pretrained, image_size, weights, download, on_progress, resumed, None, judge)


def load_stored_model(
    attributes: Mapping[str, Any], path: Location, weights: str | Path | None = None, on_progress: Listener = ignore
) -> LoadedModel:
    """The model that made the store at `path`, by its attributes; `weights` is the place of its weights now.

    A store may come from somebody else. So a repository that it names is read only from the local cache, unless
    `weights` names it too (`hf-hub:…`). Raises ModelError if the model is not available, or is not the one that made
    the store. Nothing is fetched where the environment's HF_HUB_OFFLINE is 1.
    """
    name, pretrained, image_size = (attributes.get(key) for key in ("model", "pretrained", "image_size"))
    place = None if weights is None else str(weights)
    by_user = place is not None and place.startswith(hub.PREFIX)
    # Tags and tokenizers of open_clip's models come from its own tables, so they are fetched even if only the store
    # names the model.
    by_open_clip = name in open_clip.list_models() and not (
        place is None and str(pretrained or "").startswith(hub.PREFIX)
    )
    download = (by_user or by_open_clip) and not hub.is_offline()
    model = _load(str(name), pretrained, image_size, place, download, on_progress, attributes, attributes)
    _refuse_other_weights(model, attributes, path, place)
    return model


def _refuse_other_weights(model: LoadedModel, attributes: Mapping[str, Any], path: Location, place: str | None) -> None:
    checksums = {"image": ("weights_sha256", model.weights_sha256), "text": ("text_sha256", model.text_sha256)}
    for tower, (key, own) in checksums.items():
        # Stores of the first release do not record the text tower.
        expected = attributes.get(key, own)
        if own != expected:
            todo = "give" if place else "restore"
            also = "" if place else ", or give their place with --weights"
            raise ModelError(
                f"{place or f'{model.name} {model.pretrained}'}: the {tower} tower is {own[:12]}, but {path} was made "
                f"with {expected[:12]}; {todo} the weights that the store was made with{also}"
            )


def _load(
    name: str,
    pretrained: str | None,
    image_size: int | None,
    weights: str | None,
    download: bool,
    on_progress: Listener,
    resumed: Mapping[str, Any] | None,
    stored: Mapping[str, Any] | None,
    judge: Callable[[dict[str, Any]], object] | None = None,
) -> LoadedModel:
    weights = weights and weights.removeprefix("local-dir:")
    with hub.offline(not download):
        with hub.announced(on_progress, f"fetching the config of {name}"):
            named = find_config(name, weights, download, stored, resumed)
        _refuse_unsupported(name, named.config, image_size)
        if judge is not None:
            judge(named.config)
        found = find_weights(name, named, pretrained, weights, download, on_progress, stored, resumed)
        with hub.announced(on_progress, f"looking for the preprocessing and activation of the weights of {name}"):
            settings = find_settings(name, named, found, pretrained, image_size, download, resumed)
        if settings.note and stored is None:
            on_progress(Progress(NOTE, 0, None, settings.note))
        clip = _built(name, named, found, settings, image_size)
        if found.path is not None:
            with _quiet_logging():
                load_into(clip, found.path, name, weights or pretrained or str(found.path))
    clip.eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        # A store keeps the name that it was made with.
        pretrained=pretrained if stored is not None or named.with_weights else pretrained or weights,
        clip=clip,
        config=named.config,
        preprocess=_preprocess(clip.visual),
        checksums=TowerChecksums.begin(clip),
        quick_gelu=settings.quick_gelu,
        named=named,
        assumed=settings.note,
        paths={} if name == REFERENCE else _paths(named, found, pretrained, weights),
        download=download,
    )


def _refuse_unsupported(name: str, config: dict[str, Any], image_size: int | None) -> None:
    try:
        reason = unsupported_reason(config)
    except LOADING_ERRORS as error:
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
            f"--image-size {image_size}: a patch of {name} has {patch} pixels on a side; give a multiple of that"
        )


def _built(name: str, named: NamedConfig, found: Weights, settings: ModelSettings, image_size: int | None) -> Any:
    """The model as open_clip builds it from the config of a local folder, without weights if a file has them all."""
    config = {**named.config, "quick_gelu": settings.quick_gelu}
    if not settings.quick_gelu:
        config.pop("quick_gelu")
    with tempfile.TemporaryDirectory(prefix="headspan-model-") as folder:
        whole = {"model_cfg": config, "preprocess_cfg": settings.preprocess}
        (Path(folder) / hub.CONFIG).write_text(json.dumps(whole), encoding="utf-8")
        try:
            with _quiet_logging(), _initialisation(found):
                return open_clip.create_model(
                    f"local-dir:{folder}", force_image_size=image_size, load_weights=False, pretrained_text=False
                )
        except LOADING_ERRORS as error:
            raise ModelError(_config_failure(name, error)) from error


@contextmanager
def _initialisation(found: Weights) -> Iterator[None]:
    """Draw weights with their seed, or as few as possible if each of them is loaded from the file."""
    # open_clip accepts files of NumPy arrays that hold a part of the weights.
    loaded = found.path is not None and found.path.suffix not in (".npz", ".npy")
    with torch.random.fork_rng(devices=[]), NoInitialisation() if loaded else nullcontext():
        # Not torch.manual_seed, which seeds the generators of GPUs too.
        torch.default_generator.manual_seed(found.seed)
        yield


def _paths(named: NamedConfig, found: Weights, pretrained: str | None, weights: str | None) -> dict[str, str]:
    paths = {}
    of_repository = named.of_store or named.known_as.startswith(hub.PREFIX)
    if (place := named.folder or named.file) is not None and not of_repository:
        paths["model"] = str(place)
    given = next((each for each in (weights, pretrained) if each), None)
    by_path = given is not None and expand_user(given, ModelError).exists()
    # For a folder, the file that was read is recorded.
    if found.path is not None and (by_path or named.folder is not None):
        paths["weights"] = str(found.path.absolute())
    return paths


def _config_failure(name: str, error: Exception) -> str:
    return f"{name}: open_clip cannot build a model with this config ({first_line(error)}); correct the config"


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


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence open_clip, which logs what headspan's own errors say better."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)
