"""Read the fields of a task's declaration, and refuse invalid values by one sentence each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from headspan.errors import SettingsError, shortened
from headspan.tasks.imagenet_names import imagenet_classes, imagenet_templates

# The value of `classes` and `templates` that stands for ImageNet's.
IMAGENET = "imagenet"


def classes(found: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of `classes`, or ImageNet's, or those of them that `classes_at` picks."""
    if found.get("classes") == IMAGENET:
        names = imagenet_classes()
        places = _places(found["classes_at"], len(names), f"{where}: classes_at") if "classes_at" in found else None
        return names if places is None else tuple(names[place] for place in places)
    if "classes_at" in found:
        raise SettingsError(f'{where}: classes_at picks from classes = "{IMAGENET}"; name the classes themselves')
    names = texts(found, "classes", where, f' or "{IMAGENET}"')
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"{where}: class {repeated[0]!r} occurs twice; give every class a name of its own")
    return names


def templates(found: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The prompts of `templates`, or ImageNet's."""
    if found.get("templates") == IMAGENET:
        return imagenet_templates()
    return texts(found, "templates", where, f' or "{IMAGENET}"')


def texts(found: Mapping[str, Any], field: str, where: str, other: str = "") -> tuple[str, ...]:
    """A list of texts; `other` says what else may stand in its place."""
    value = found.get(field, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise SettingsError(f"{where}: {field} must be a list of texts{other}; it is {shown(value)}")
    return tuple(" ".join(each.split()) for each in value)


def settings(found: Mapping[str, Any], where: str) -> dict[str, str | int | float | bool]:
    """The table `settings`."""
    values = found.get("settings", {})
    if not isinstance(values, dict) or not all(isinstance(each, str | int | float) for each in values.values()):
        raise SettingsError(f"{where}: settings must be a table of numbers, texts and booleans; it is {shown(values)}")
    return dict(values)


def published(found: Mapping[str, Any], where: str) -> dict[str, dict[str, float]]:
    """The table `published`: figures by model, then by variant."""
    models = found.get("published", {})
    if not isinstance(models, dict) or not all(
        isinstance(figures, dict) and all(type(each) in (int, float) for each in figures.values())
        for figures in models.values()
    ):
        raise SettingsError(
            f'{where}: published must hold numbers, as in [published."ViT-L-14 openai"] with whole = 75.2 below it; it '
            f"is {shown(models)}"
        )
    return {model: {variant: float(each) for variant, each in figures.items()} for model, figures in models.items()}


def merged(found: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """The table `merged`: for groups of images by name, the values of metadata that count as each."""
    groups = found.get("merged", {})
    if not isinstance(groups, dict):
        raise SettingsError(f"{where}: merged must be a table of lists of values; it is {shown(groups)}")
    return {name: texts(groups, name, f"{where}: merged") for name in groups}


def concepts(found: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """The table `concepts`: groups of the classes `names`."""
    groups = found.get("concepts", {})
    chosen: dict[str, tuple[str, ...]] = {}
    if not isinstance(groups, dict):
        raise SettingsError(f"{where}: concepts must be a table of groups of classes; it is {shown(groups)}")
    for name, members in groups.items():
        if members == "all":
            chosen[name] = tuple(names)
        elif isinstance(members, str):
            places = _places(members, len(names), f"{where}: group {name}")
            chosen[name] = tuple(names[place] for place in places)
        else:
            chosen[name] = texts(groups, name, where, ', "all" or places such as "0-9"')
            if unknown := [each for each in chosen[name] if each not in names]:
                raise SettingsError(f"{where}: group {name} has {unknown[0]!r}, which is not a class; correct the name")
        if not chosen[name]:
            raise SettingsError(f"{where}: group {name} has no classes; name at least one")
    return chosen


def _places(text: str, count: int, where: str) -> list[int]:
    """Places in a list of `count` as `0-3, 8` gives them."""
    places: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not span or not int(span[1]) <= int(span[2] or span[1]) < count:
            raise SettingsError(
                f"{where} {shortened(part.strip(), 40)!r}: write places from 0 to {count - 1}, such as 0-9, 12"
            )
        places += range(int(span[1]), int(span[2] or span[1]) + 1)
    return list(dict.fromkeys(places))


def shown(value: Any) -> str:
    """A value in a message."""
    return shortened(repr(value), 60)
