"""Judge descriptions of the image world by its annotations, without any language model.

`parts_of` says what each word of a description names, and the scenes' metadata and the captions say what is true of the
images. A part teaches something about a class if what it names is clearly more frequent in the class than elsewhere:

- A value of a factor, such as a colour, teaches something visual if clearly more of the class's images show it than of
  the other classes' images. An image shows a value if one of its objects has it, or its background or style.
- A non-visual phrase, such as a day, teaches something non-visual if clearly more captions of the class hold it.
- Empty phrases, structure and unknown words teach nothing.

"Clearly more" means a share that is at least `LEAST_RATIO` times the other, and that exceeds it by at least
`LEAST_SCORE` standard errors of the difference of two equal shares. A class of the world has some 100 values to try, so
in 30 classes one passes by chance with probability 0.1. The ratio keeps out small differences, which many images make
significant. Two classes need at least eight images each for any difference to be clear.

A description teaches what that part of it teaches whose shares differ the most; one without such a part is spurious.
The value that a class is named after teaches nothing about it, since whoever reads about a class knows its name;
language models are asked the same way. A part is judged on its own, so that parts that are planted can be looked up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.descriptions.result import NON_VISUAL as TEACHES_NON_VISUAL
from headspan.describe.descriptions.result import SPURIOUS, Descriptions
from headspan.describe.descriptions.result import VISUAL as TEACHES_VISUAL
from headspan.describe.inspecting.verdict import Verdict
from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.store.selection import chosen_images
from headspan.tasks.truths import UNKNOWN, metadata_of_images
from headspan.world.parts import NON_VISUAL, VISUAL, Part, parts_of

LEAST_RATIO, LEAST_SCORE = 1.5, 4.0
_OF_OBJECTS = ("shape", "colour", "texture", "size", "position")
_OF_SCENES = ("count", "style", "background", "background_colour", "background_tone")
# Both are about the background.
_ATTRIBUTE = {"background_colour": "background", "background_tone": "background"}

# What a part says: whether it is visual, its factor or kind, and the value or phrase.
Said = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class JudgedPart:
    """A part of a description, what it teaches about the class, and how frequent what it names is."""

    part: Part
    verdict: Verdict
    # Shares of the images of the class, and of the other classes, that have it; NaN for parts that name nothing.
    share: float
    other_share: float


class AnnotatedJudge:
    """A judge of descriptions of classes of scenes; `annotated_judge` makes that of a store."""

    def __init__(
        self,
        classes: DescribedClasses,
        scenes: Sequence[Mapping[str, Any]],
        captions: Sequence[str | None],
    ) -> None:
        """Count what the images of every class show, and what their captions say.

        `scenes` are the metadata of every image that `classes` number, as `Scene.metadata` gives them. Raises
        SettingsError if an image with a class has other metadata.
        """
        self._numbers = {name: number for number, name in enumerate(classes.names)}
        self._images = Counter(number for number in classes.numbers.tolist() if number != UNKNOWN)
        # How many images of each class have each thing that parts say.
        self._has: list[Counter[Said]] = [Counter() for _ in classes.names]
        for number, scene, caption in zip(classes.numbers.tolist(), scenes, captions, strict=True):
            if number != UNKNOWN:
                self._has[number].update(_shown(scene, classes.names[number]) | _spoken(caption))
        self._in_all: Counter[Said] = sum(self._has, Counter())

    def __repr__(self) -> str:
        return f"AnnotatedJudge({len(self._numbers)} classes, {self._images.total():,} images)"

    def __call__(self, text: str, class_name: str) -> Verdict:
        """What a description teaches about a class. Raises SettingsError for a class that the judge does not know."""
        teaching = [each for each in self.parts(text, class_name) if each.verdict.number != SPURIOUS]
        if not teaching:
            return Verdict(SPURIOUS)
        return max(teaching, key=lambda each: each.share - each.other_share).verdict

    def parts(self, text: str, class_name: str) -> tuple[JudgedPart, ...]:
        """What every part of a description teaches. Raises as calling the judge does."""
        if class_name not in self._numbers:
            raise SettingsError(
                f"class {class_name!r} is not one of the judge's classes ({', '.join(self._numbers)}); describe and "
                "judge the same classes"
            )
        return tuple(self._judged(part, class_name) for part in parts_of(text))

    def _judged(self, part: Part, class_name: str) -> JudgedPart:
        if part.kind not in (VISUAL, NON_VISUAL):
            return JudgedPart(part, Verdict(SPURIOUS), math.nan, math.nan)
        number, said = self._numbers[class_name], _said(part)
        images, count = self._images[number], self._has[number][said]
        others, other_count = self._images.total() - images, self._in_all[said] - count
        share, other_share = count / images, other_count / others if others else math.nan
        verdict = Verdict(SPURIOUS)
        if part.value != class_name and clearly_more(count, images, other_count, others):
            teaches = TEACHES_VISUAL if part.kind == VISUAL else TEACHES_NON_VISUAL
            verdict = Verdict(teaches, _ATTRIBUTE.get(part.factor, part.factor))
        return JudgedPart(part, verdict, share, other_share)


def annotated_judge(
    store: Store,
    described: Descriptions | DescribedClasses,
    captions: Sequence[str | None] | None = None,
) -> AnnotatedJudge:
    """The judge of descriptions of a store's classes.

    Args:
        store: The store, whose images must be scenes of the world.
        described: The descriptions, whose classes were read from a key of the metadata; or the classes themselves.
        captions: A caption for each image of the store; by default those of its samples. A model that was trained on
            other captions is judged by those.

    Raises SettingsError if the classes come from a task, or if an image with a class is not a scene of the world.
    """
    if isinstance(described, Descriptions):
        described = _classes_of(store, described)
    if captions is None:
        captions = store.samples(None, ["caption"])["caption"].to_pylist()
    scenes = metadata_of_images(store, chosen_images(store, None))
    try:
        return AnnotatedJudge(described, scenes, captions)
    except SettingsError as error:
        raise SettingsError(f"{store.path}: {error}") from error


def _classes_of(store: Store, descriptions: Descriptions) -> DescribedClasses:
    source, _, key = descriptions.classes_from.partition(" ")
    if source != "key":
        raise SettingsError(
            f"descriptions/{descriptions.run}: the classes come from {descriptions.classes_from}, but annotations "
            "judge classes of the image world; describe classes by a --class-key such as objects.shape"
        )
    return described_classes(store, key=key, names=descriptions.classes)


def clearly_more(count: int, images: int, other_count: int, others: int) -> bool:
    """Whether `count` of `images` is clearly more than `other_count` of `others`; false without others."""
    if not images or not others:
        return False
    share, other_share = count / images, other_count / others
    pooled = (count + other_count) / (images + others)
    error = math.sqrt(pooled * (1 - pooled) * (1 / images + 1 / others))
    return share >= LEAST_RATIO * other_share and share - other_share >= LEAST_SCORE * error > 0


def _said(part: Part) -> Said:
    return part.kind, part.factor, part.value


def _shown(scene: Mapping[str, Any], class_name: str) -> set[Said]:
    """Every value that an image shows."""
    try:
        objects: Iterable[Mapping[str, Any]] = scene["objects"]
        found = {(VISUAL, name, str(each[name])) for each in objects for name in _OF_OBJECTS}
        return found | {(VISUAL, name, str(scene[name])) for name in _OF_SCENES}
    except (LookupError, TypeError) as error:
        raise SettingsError(
            f"an image of class {class_name!r} is not a scene of the image world, so annotations cannot judge the "
            "class; name a language model or a person as judge"
        ) from error


def _spoken(caption: str | None) -> set[Said]:
    """The non-visual phrases that a caption holds."""
    return {_said(part) for part in parts_of(caption or "") if part.kind == NON_VISUAL}
