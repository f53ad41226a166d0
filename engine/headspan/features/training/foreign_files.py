"""Read the files of SAELens (as of 6.54) and of Prisma (2.0): a configuration in JSON, and tensors.

SAELens: a folder with `cfg.json` and `sae_weights.safetensors`. Prisma: a folder with `config.json` and `weights.pt`,
or the path of such a `.pt` file. Files are never unpickled, so Prisma's files that hold a pickled configuration beside
the weights are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from headspan.errors import HeadspanError, StoreError
from headspan.features.training.files import CONFIG, WEIGHTS
from headspan.features.training.foreign import GATED, JUMPRELU, STANDARD, TOPK, Foreign, ForeignSettings
from headspan.io.json_files import read_json
from headspan.io.tensor_files import read_tensors

_TODO = "fetch the folder again"
_PRISMA_CONFIG = "config.json"
# Architectures of SAELens whose codes are those of a threshold: the last one by its inference formula.
_THRESHOLDED = ("batchtopk", "matryoshka_batchtopk")
_KEYS = {
    STANDARD: ("W_enc", "b_enc", "W_dec", "b_dec"),
    TOPK: ("W_enc", "b_enc", "W_dec", "b_dec"),
    JUMPRELU: ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    GATED: ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
}


def open_foreign(path: Path) -> tuple[Foreign, Path]:
    """The learner of a folder or file of another library, and the file of its weights.

    Raises StoreError if it is no such thing, is damaged, or cannot be read without unpickling.
    """
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        tensors, _ = read_tensors(path / WEIGHTS, _TODO)
        return _saelens(path / CONFIG, tensors), path / WEIGHTS
    found = path if path.suffix == ".pt" and path.is_file() else _only_weights(path)
    if found is None or not found.with_name(_PRISMA_CONFIG).is_file():
        raise StoreError(
            f"{path}: holds no dictionary of features; give the folder that `headspan features train` wrote, a folder "
            f"of SAELens ({CONFIG} and {WEIGHTS}), or one of Prisma ({_PRISMA_CONFIG} and weights.pt)"
        )
    return _prisma(found.with_name(_PRISMA_CONFIG), _unpickled(found)), found


def _only_weights(folder: Path) -> Path | None:
    """The only `.pt` file of a folder; None if there is none, or more than one."""
    found = sorted(folder.glob("*.pt"))
    return found[0] if len(found) == 1 else None


def _saelens(path: Path, tensors: dict[str, Tensor]) -> Foreign:
    config = read_json(path, _TODO)
    architecture = str(config.get("architecture", STANDARD))
    # Before 6.0, TopK was an activation function.
    if architecture == STANDARD and config.get("activation_fn", config.get("activation_fn_str")) == TOPK:
        architecture = TOPK
        config = {"k": (config.get("activation_fn_kwargs") or {}).get("k"), **config}
    if architecture in _THRESHOLDED:
        # A training's own folder has one threshold, which its inference uses for every feature.
        if "threshold" not in tensors and "topk_threshold" in tensors:
            tensors["threshold"] = tensors["topk_threshold"].expand(len(tensors["b_enc"]))
        architecture = JUMPRELU
    return _made(path, "SAELens", architecture, config, tensors, config.get("k"))


def _prisma(path: Path, tensors: dict[str, Tensor]) -> Foreign:
    config = read_json(path, _TODO)
    architecture, activation = config.get("architecture", STANDARD), config.get("activation_fn_str", "relu")
    if config.get("is_transcoder"):
        raise StoreError(f"{path}: is of a transcoder, whose outputs are not its inputs; give an autoencoder's folder")
    if architecture == STANDARD and activation == TOPK:
        architecture = TOPK
    elif activation != "relu":
        raise StoreError(f"{path}: its activation is {activation!r}, but headspan reads relu and topk; {_TODO}")
    k = (config.get("activation_fn_kwargs") or {}).get("k")
    return _made(path, "Prisma", str(architecture), {**config, "apply_b_dec_to_input": True}, tensors, k)


def _made(
    path: Path, library: str, architecture: str, config: Mapping[str, Any], tensors: dict[str, Tensor], k: Any
) -> Foreign:
    """The learner of a configuration and its weights; both are checked."""
    if architecture not in _KEYS:
        raise StoreError(
            f"{path}: its architecture is {architecture!r}, but headspan reads {', '.join(_KEYS)} of {library}; give "
            "another dictionary"
        )
    weights = {name: tensors[name].to(torch.float32) for name in _KEYS[architecture] if name in tensors}
    if missing := [name for name in _KEYS[architecture] if name not in weights]:
        raise StoreError(f"{path.parent}: has no {missing[0]}, which a {architecture} autoencoder needs; {_TODO}")
    if weights["W_dec"].ndim != 2:
        raise StoreError(f"{path.parent}: W_dec has {weights['W_dec'].ndim} axes, but must have 2; {_TODO}")
    features, width = weights["W_dec"].shape
    shapes = {"W_enc": (width, features), "W_dec": (features, width), "b_dec": (width,)}
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes.get(name, (features,)):
            wanted = list(shapes.get(name, (features,)))
            raise StoreError(f"{path.parent}: {name} is {list(tensor.shape)}, but must be {wanted}; {_TODO}")
    if config.get("rescale_acts_by_decoder_norm"):
        # The activations are then those of a dictionary with unit rows.
        norms = weights["W_dec"].norm(dim=1)
        weights |= {
            "W_enc": weights["W_enc"] * norms,
            "b_enc": weights["b_enc"] * norms,
            "W_dec": weights["W_dec"] / norms[:, None],
        }
    try:
        settings = ForeignSettings(
            width=width,
            features=features,
            library=library,
            architecture=architecture,
            k=int(k or 0) if architecture == TOPK else 0,
            input_bias=bool(config.get("apply_b_dec_to_input", True)),
            normalises=str(config.get("normalize_activations") or "none"),
        )
    except (HeadspanError, ValueError, TypeError) as error:
        raise StoreError(f"{path}: cannot be used ({error}); give another dictionary") from error
    return Foreign(settings, weights)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file, by torch's loading of weights alone."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise StoreError(
            f"{path}: holds more than weights, and headspan unpickles nothing; save its state_dict alone as weights.pt "
            f"beside {_PRISMA_CONFIG}"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read ({type(error).__name__}); {_TODO}") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise StoreError(f"{path}: holds no tensors by name; {_TODO}")
    return state
