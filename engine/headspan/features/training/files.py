"""The files of a dictionary's folder: weights with SAELens' names, and the state of an unfinished training.

`sae_weights.safetensors` and `cfg.json` have the names and keys of SAELens, which loads the folders of the learners
that it knows. `learner.safetensors` holds what other learners have beside them. `training.json` names what the
dictionary is trained on and how, `training.safetensors` holds all of an unfinished training, and `losses.json` its
losses. `cfg.json` is written last: a folder without it is not finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headspan.errors import StoreError
from headspan.features.learners.kinds import BATCH_TOPK, MATRYOSHKA, TOPK
from headspan.features.learners.learner import Learner
from headspan.features.learners.settings import SEPARATE
from headspan.features.pairs.space import Space
from headspan.io.json_files import write_json
from headspan.io.tensor_files import read_tensors, write_tensors

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
REST, SETTINGS, STATE, LOSSES = "learner.safetensors", "training.json", "training.safetensors", "losses.json"
FORMAT = 1
# The keys that SAELens reads of every autoencoder.
_SHARED_KEYS = ("W_enc", "b_enc", "W_dec", "b_dec")
_THRESHOLD, JUMPRELU = "threshold", "jumprelu"
# The version of SAELens whose keys `cfg.json` has.
_SAELENS = "6.54.0"


def write_dictionary(folder: Path, learner: Learner, space: Space, trained: Mapping[str, Any]) -> None:
    """Write a finished learner, `cfg.json` last."""
    state = learner.state_dict()
    weights = {name: state[name] for name in _SHARED_KEYS if name in state}
    rest = {name: tensor for name, tensor in state.items() if name not in weights}
    architecture = _architecture(learner)
    if architecture == JUMPRELU:
        # SAELens keeps a threshold for each feature.
        weights[_THRESHOLD] = state[_THRESHOLD].clamp_min(0).expand(len(state["b_enc"]))
    write_tensors(folder / REST, rest)
    write_tensors(folder / WEIGHTS, weights)
    features = int(learner.settings["features"])
    config = {
        "architecture": architecture,
        "d_in": space.width,
        "d_sae": features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **({"k": learner.settings["k"]} if architecture == TOPK else {}),
        "metadata": {"sae_lens_version": _SAELENS},
        "headspan": {
            "format": FORMAT,
            "learner": learner.kind,
            "settings": learner.settings,
            "space": space.as_json(),
            "training": dict(trained),
            "sha256": weights_sha256(folder),
        },
    }
    write_json(folder / CONFIG, config)


def _architecture(learner: Learner) -> str:
    """The name by which SAELens loads a learner; one that it does not know for learners that it cannot load."""
    settings = learner.settings
    if settings.get("input_bias") != SEPARATE:
        if learner.kind == BATCH_TOPK:
            return JUMPRELU
        if learner.kind in (TOPK, MATRYOSHKA) or settings.get("code") == TOPK:
            return TOPK
    return f"headspan_{learner.kind}"


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of a dictionary's weights: of its files of tensors, one after the other."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, REST):
        path = folder / name
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def learner_state(folder: Path, learner: Learner) -> dict[str, Tensor]:
    """The state of a learner as `write_dictionary` wrote it."""
    todo = "restore the folder from a copy, or train again"
    weights, _ = read_tensors(folder / WEIGHTS, todo)
    rest, _ = read_tensors(folder / REST, todo)
    if _THRESHOLD in rest:
        weights.pop(_THRESHOLD, None)
    found = {**weights, **rest}
    wanted = learner.state_dict()
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            has = "is missing" if name not in found else f"is {list(found[name].shape)}"
            raise StoreError(
                f"{folder / WEIGHTS}: {name} {has}, but the dictionary's settings need {list(tensor.shape)}; {todo}"
            )
    return found


def load_state(learner: Learner, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a learner, which keeps its tensors' layout in memory."""
    with torch.no_grad():
        for name, tensor in learner.state_dict().items():
            tensor.copy_(state[name])
