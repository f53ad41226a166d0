"""Suggest a name for a model that open_clip does not have: a misspelt name, or one of Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

import open_clip

from headspan.model.hub import PREFIX

_SIZES = {"base": "B", "large": "L", "so400m": "SO400M", "giant-opt": "gopt", "b": "B", "l": "L", "h": "H", "g": "bigG"}
# Models that open_clip has too, by the names of repositories for transformers, which open_clip does not read.
_OPENAI = re.compile(r"openai/clip-vit-(base|large)-patch(\d+)(-336)?")
_SIGLIP = re.compile(r"google/siglip(2?)-(base|large|so400m|giant-opt)-patch(\d+)-(?:i18n|(\d+))(-multilingual)?")
_METACLIP = re.compile(r"facebook/metaclip-(b|l|h|g)(\d+)-(400m|fullcc2\.5b)")
_PE = re.compile(r"facebook/pe-core-([tsblg])(\d+)-(\d+)")


def unknown_model(name: str, own: Iterable[str]) -> str:
    """The end of a sentence that begins with `name`, an unknown model. `own` are headspan's own models."""
    if hint := hugging_face_hint(name):
        return hint
    known = {each.lower(): each for each in (*own, *open_clip.list_models())}
    asked = name.lower().replace("/", "-")
    near = [known[each] for each in get_close_matches(asked, known, n=8)]
    near += [each for lower, each in known.items() if asked[:6] in lower and each not in near]
    if near:
        return f"open_clip has no such model; similar {'is' if len(near) == 1 else 'are'} {', '.join(near[:8])}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return (
            f"open_clip has no such model; for a repository of Hugging Face with an open_clip_config.json write "
            f"{PREFIX}{name}"
        )
    return "open_clip has no such model; `headspan models` lists its models"


def hugging_face_hint(name: str) -> str | None:
    """What to give instead of `name`, if Hugging Face has a model of open_clip under it, with or without `hf-hub:`."""
    repository = name.removeprefix(PREFIX)
    if "/" not in repository:
        return None
    for model, tag in open_clip.list_pretrained():
        home = str(open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").rpartition("/")[0]
        if home and home.lower() == repository.lower():
            also = "" if name.startswith(PREFIX) else f", or --model {PREFIX}{home}"
            return f"is a repository of Hugging Face; give --model {model} --pretrained {tag}{also}"
    for model, tag in _translated(repository.lower()):
        if tag in open_clip.list_pretrained_tags_by_model(model):
            return (
                f"is a repository in the format of the package transformers, which open_clip does not read; for the "
                f"same model give --model {model} --pretrained {tag}"
            )
    return None


def _translated(repository: str) -> Iterator[tuple[str, str]]:
    """Models and tags of open_clip that a name on Hugging Face may stand for; some may not exist."""
    if found := _OPENAI.fullmatch(repository):
        yield f"ViT-{_SIZES[found[1]]}-{found[2]}{found[3] or ''}", "openai"
    if found := _SIGLIP.fullmatch(repository):
        stem = f"ViT-{_SIZES[found[2]]}-{found[3]}-SigLIP{found[1]}"
        pixels = found[4] or "256"
        if found[5] or not found[4]:
            yield f"{stem}-i18n-{pixels}", "webli"
        yield f"{stem}-{pixels}", "webli"
        # open_clip omits 224 from names, and writes 378 for 384 if the patch size divides only 378.
        yield f"{stem}{'-378' if pixels == '384' else ''}", "webli"
    if found := _METACLIP.fullmatch(repository):
        yield f"ViT-{_SIZES[found[1]]}-{found[2]}", "metaclip_400m" if found[3] == "400m" else "metaclip_fullcc"
    if found := _PE.fullmatch(repository):
        size = "bigG" if found[1] == "g" else found[1].upper()
        yield f"PE-Core-{size}-{found[2]}-{found[3]}", "meta"
        yield f"PE-Core-{size}-{found[2]}", "meta"
