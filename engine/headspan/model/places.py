"""Find a model's weights: by a tag of open_clip, in a repository, in a file or folder, or random ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained

from headspan.errors import ModelError, one_line
from headspan.events import Listener
from headspan.model import hub
from headspan.model.checkpoint import weights_in
from headspan.model.configs import REFERENCE, REFERENCE_WEIGHTS, NamedConfig, not_cached, recorded_paths
from headspan.model.hints import hugging_face_hint
from headspan.user_paths import expand_user

# Where open_clip keeps weights that are not in a repository.
_DOWNLOADED = Path("~/.cache/clip")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights: a file, or random numbers if `path` is None."""

    path: Path | None
    seed: int = 0
    # The repository from which they were requested, or whose snapshot holds them.
    repository: str | None = None


def find_weights(
    name: str,
    named: NamedConfig,
    pretrained: str | None,
    weights: str | None,
    download: bool,
    on_progress: Listener,
    stored: Mapping[str, Any] | None,
    resumed: Mapping[str, Any] | None = None,
) -> Weights:
    """The weights that `pretrained` names, or that are at `weights` now.

    `stored` are the attributes of the store that names the weights, which may record their path. `resumed` are those of
    a store that a run resumes, whose weights may have moved. Raises ModelError if there are none, or if `pretrained`
    and `weights` contradict each other.
    """
    if named.with_weights and pretrained:
        raise ModelError(f"{name} brings its own weights; leave --pretrained {pretrained} out")
    if pretrained is not None and pretrained.startswith("random:"):
        return _at_random(pretrained, weights)
    if weights is not None:
        moved = resumed is not None and resumed.get("pretrained") == pretrained
        if stored is None and pretrained not in (None, weights) and not moved:
            assert pretrained is not None
            _refuse_contradiction(name, named, pretrained, weights)
        return _at_place(name, weights, download, on_progress)
    recorded = recorded_paths(stored).get("weights")
    if recorded and Path(recorded).is_file():
        return _file(Path(recorded))
    if named.with_weights:
        if named.folder is None:
            return _from_repository(name, named.known_as, download, on_progress)
        path = weights_in(named.folder)
        if path is None:
            raise ModelError(f"{name}: {named.folder} holds no weights; put its .safetensors there")
        return Weights(path)
    if pretrained is None and name == REFERENCE:
        return Weights(REFERENCE_WEIGHTS)
    if pretrained is None:
        raise ModelError(f"{name}: no weights named; {_choices(named)} with --pretrained")
    if pretrained.startswith(hub.PREFIX):
        return _from_repository(name, pretrained, download, on_progress)
    if tag := open_clip.get_pretrained_cfg(named.known_as, pretrained):
        return _of_tag(name, pretrained, tag, download, on_progress)
    if (file := expand_user(pretrained, ModelError)).is_file():
        return _file(file)
    if stored is not None:
        raise ModelError(
            f"{recorded or pretrained}: the weights that the store was made with were not found; give their "
            "place with --weights PATH (weights= in Python)"
        )
    raise _unknown(name, named, pretrained)


def _refuse_contradiction(name: str, named: NamedConfig, pretrained: str, weights: str) -> None:
    """Raise ModelError if `pretrained` names no weights, or a file other than the one at `weights`."""
    if pretrained.startswith(hub.PREFIX) or open_clip.get_pretrained_cfg(named.known_as, pretrained):
        return
    file = expand_user(pretrained, ModelError)
    if not file.is_file():
        raise _unknown(name, named, pretrained)
    place = expand_user(weights, ModelError)
    file_there = weights_in(place) if place.is_dir() else place
    if weights.startswith(hub.PREFIX) or (
        file_there is not None and file_there.exists() and not file_there.samefile(file)
    ):
        raise ModelError(
            f"--pretrained {pretrained} and --weights {weights} name two different files of weights; leave one of them "
            "out"
        )


def _unknown(name: str, named: NamedConfig, pretrained: str) -> ModelError:
    hint = hugging_face_hint(pretrained)
    folder = pretrained.removeprefix("local-dir:")
    if hint is None and folder and expand_user(folder, ModelError).is_dir():
        hint = f"is a folder; give a file of weights in it, or the folder as --weights {folder}"
    if hint is not None:
        return ModelError(f"{name}: --pretrained {pretrained} {hint}")
    return ModelError(f"{name}: --pretrained {pretrained} is neither a tag of this model nor a file; {_choices(named)}")


def _choices(named: NamedConfig) -> str:
    tags = open_clip.list_pretrained_tags_by_model(named.known_as)
    choices = f"a tag ({', '.join(tags)}), " if tags else ""
    return f"give {choices}hf-hub:NAME, a .pt or .safetensors file, or random:SEED"


def _at_random(pretrained: str, weights: str | None) -> Weights:
    seed = pretrained.removeprefix("random:")
    if not re.fullmatch(r"[0-9]{1,18}", seed):
        raise ModelError(f"--pretrained {pretrained}: the seed must be a whole number, as in random:0")
    if weights is not None:
        raise ModelError(
            f"--weights {weights}: --pretrained {pretrained} has no file of weights; leave one of them out"
        )
    return Weights(None, int(seed))


def _at_place(name: str, weights: str, download: bool, on_progress: Listener) -> Weights:
    """The weights at the place that the user gives: a file, a folder, or a repository."""
    if weights.startswith(hub.PREFIX):
        return _from_repository(name, weights, download, on_progress)
    place = expand_user(weights, ModelError)
    path = weights_in(place) if place.is_dir() else place
    if path is None or not path.is_file():
        what = "this folder holds no weights" if place.is_dir() else "no such file or folder"
        raise ModelError(f"--weights {weights}: {what}; give the .safetensors or .pt file of {name}, or its folder")
    return _file(path)


def _file(path: Path) -> Weights:
    path = path.absolute()
    return Weights(path, repository=hub.repository_of(path))


def _from_repository(name: str, named: str, download: bool, on_progress: Listener) -> Weights:
    repository = named.removeprefix(hub.PREFIX)
    what = f"fetching the weights of {name} from https://huggingface.co/{repository}"
    try:
        with hub.announced(on_progress, what):
            return Weights(hub.fetch(repository, hub.WEIGHTS, download), repository=repository)
    except ModelError as error:
        if not download:
            raise ModelError(not_cached(name, f"{hub.PREFIX}{repository}")) from error
        hint = hugging_face_hint(f"{hub.PREFIX}{repository}")
        raise ModelError(
            f"{named} {hint}"
            if hint and "transformers" in hint
            else f"{name}: the weights {hub.PREFIX}{repository} could not be fetched ({error}); check the name and the "
            "network, or fetch them on a connected machine and give their place with --weights"
        ) from error


def _of_tag(name: str, tag: str, settings: Mapping[str, Any], download: bool, on_progress: Listener) -> Weights:
    home = str(settings.get("hf_hub") or "").rpartition("/")[0]
    source = f"https://huggingface.co/{home}" if home else str(settings.get("url"))
    try:
        if not download and not home and not (_DOWNLOADED / source.rpartition("/")[2]).expanduser().is_file():
            raise FileNotFoundError
        with hub.announced(on_progress, f"fetching the weights {tag} of {name} from {source}"):
            return Weights(Path(download_pretrained(dict(settings))))
    except (OSError, RuntimeError, ValueError) as error:
        if not download:
            raise ModelError(
                f"{name}: the weights {tag} are not on this machine, and nothing may be fetched; give the file with "
                "--weights FILE"
            ) from error
        # open_clip's own sentence about the file adds nothing to the reason.
        reason = one_line(error).rpartition("Last error: ")[2].rstrip(".")
        raise ModelError(
            f"{name}: the weights {tag} could not be fetched from {source} ({reason}); check the network, or fetch "
            f"them on a connected machine and give the file with --pretrained {tag} --weights FILE"
        ) from error
