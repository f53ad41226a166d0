"""A text pool written by a language model: asked for list after list, until there are enough different texts.

Every list is asked for with some of the texts that are there already, to be avoided. The pool's file comes with a
second one of every raw answer, from which a later run goes on, with the same or a higher count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headspan.concepts.pool_writer.draft import Draft
from headspan.concepts.pool_writer.request import PoolRequest
from headspan.errors import LanguageModelError, SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.llm.asking import Asker

# A model that repeats itself is left after so many rounds without a new text.
_IDLE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class WrittenPool:
    """A pool on disk: where, how many texts it has, and how many the model repeated."""

    path: Path
    texts: int
    repeated: int


def check_count(count: int) -> None:
    """Raise SettingsError where `count` is no number of texts to write."""
    if count < 1:
        raise SettingsError(f"--count {count} is too small; give at least 1")


def write_pool(
    asker: Asker, request: PoolRequest, count: int, path: str | Path, on_progress: Listener = ignore
) -> WrittenPool:
    """Write `count` different texts to `path`, one a line (with concepts: text, tab, concept).

    Goes on where an earlier call with the same request ended; killed, it goes on as well. Raises SettingsError
    where `path` is something else, LanguageModelError where the model only repeats itself, and what
    `Asker.ask` raises; what is there until then is kept in the file.
    """
    path = Path(path)
    check_count(count)
    draft = Draft.open(path, request)
    idle = 0
    while len(draft.texts) < count:
        before = len(draft.texts)
        questions = draft.next_round(count, asker.endpoint.parallel)
        answers = asker.ask(questions)
        if all(answer.value is None for answer in answers):
            raise LanguageModelError(
                f"{request.model} writes no list as asked: its answer {answers[0].complaint}; name another --llm, or "
                f"ask for fewer texts at once with --per-call ({counted(before, 'text')} kept in {path})"
            )
        draft.add(answer.replies[-1]["content"] for answer in answers if answer.value is not None)
        draft.save(count)
        on_progress(Progress("pool", min(count, len(draft.texts)), count, f"{draft.repeated:,} repeated"))
        idle = idle + 1 if len(draft.texts) == before else 0
        if idle == _IDLE_ROUNDS:
            raise LanguageModelError(
                f"{request.model} repeats itself: {before} of {counted(count, 'text')} after "
                f"{counted(len(draft.lists), 'list')}, kept in "
                f"{path}; lower --count, or ask for more with another --ask and another --out"
            )
    draft.save(count)
    return WrittenPool(path, min(count, len(draft.texts)), draft.repeated)
