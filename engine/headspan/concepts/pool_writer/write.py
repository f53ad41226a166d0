"""Write a text pool with a language model, list by list, until there are enough different texts.

Each request names some of the existing texts, which the model should avoid. A second file next to the pool contains
every raw answer; from it, a later call continues, with the same count or a higher one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headspan.concepts.pool_writer.draft import Draft
from headspan.concepts.pool_writer.request import PoolRequest
from headspan.errors import LanguageModelError, SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.llm.asking import Asker
from headspan.user_paths import expand_user

# Give up after this many rounds without a new text.
_IDLE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class WrittenPool:
    """A pool on disk, its number of texts, and how many repeated texts were dropped."""

    path: Path
    texts: int
    repeated: int


def check_count(count: int) -> None:
    """Raise SettingsError if `count` is below 1."""
    if count < 1:
        raise SettingsError(f"--count {count} is too small; give at least 1")


def write_pool(
    asker: Asker, request: PoolRequest, count: int, path: str | Path, on_progress: Listener = ignore
) -> WrittenPool:
    """Write `count` different texts to `path`, one a line (with concepts: text, tab, concept).

    Continues from the file if an earlier call with the same request ended or was killed. Raises SettingsError if
    `path` contains something else, LanguageModelError if the model stops giving new texts, and the errors of
    `Asker.ask`. Texts received before an error stay in the file.
    """
    path = expand_user(path)
    check_count(count)
    draft = Draft.open(path, request)
    idle = 0
    while len(draft.texts) < count:
        before = len(draft.texts)
        questions = draft.next_round(count, asker.endpoint.parallel)
        answers = asker.ask(questions)
        if all(answer.value is None for answer in answers):
            raise LanguageModelError(
                f"{request.model} gave no usable list of texts: its answer {answers[0].complaint}; name another --llm, "
                f"or ask for fewer texts per request with --per-call ({counted(before, 'text')} kept in {path})"
            )
        draft.add(answer.replies[-1]["content"] for answer in answers if answer.value is not None)
        draft.save(count)
        on_progress(Progress("pool", min(count, len(draft.texts)), count, f"{draft.repeated:,} repeated"))
        idle = idle + 1 if len(draft.texts) == before else 0
        if idle == _IDLE_ROUNDS:
            raise LanguageModelError(
                f"{request.model} gives no new texts: {before} of {counted(count, 'text')} after "
                f"{counted(len(draft.lists), 'list')}, kept in "
                f"{path}; lower --count, or ask for other texts with another --ask and another --out"
            )
    draft.save(count)
    return WrittenPool(path, min(count, len(draft.texts)), draft.repeated)
