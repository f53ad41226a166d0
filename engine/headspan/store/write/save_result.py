"""Give a result its lineage, and save it as a run if its caller asks for that."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from headspan.errors import NotSavedError, StoreError
from headspan.events import Listener, ignore
from headspan.store.lineage import Lineage, checksum_of, content_checksum
from headspan.store.reader import Store
from headspan.store.results import Named
from headspan.store.write.analyses import has_content, save

# Errors of stores that their user may only read.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# A frozen dataclass with a field `lineage`.
R = TypeVar("R")


def save_result(
    store: Store,
    kind: str,
    run: str,
    result: R,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
    sources: Mapping[str, Lineage | None] | None = None,
    saved: bool = True,
    overwrite: bool = False,
    on_progress: Listener = ignore,
    before: Callable[[], object] = lambda: None,
    additions: Collection[str] = (),
) -> R:
    """Return `result` with its lineage; if `saved`, write `arrays` and `settings` as the run `<kind>/<run>` first.

    `sources` are the lineages of the results that it was made from, by `<kind>/<run>`; None for one that is not known.
    `before` is called before the run is written, and writes what the run needs. `additions` are as in `analyses.save`.
    Raises as `analyses.save` does;
    StoreError if a source is not in the store as it was; and NotSavedError, which holds the result, if the store cannot
    be written.
    """
    made_from = {source: lineage.checksum for source, lineage in (sources or {}).items() if lineage is not None}
    storage = store.contents.storage
    if not saved:
        stored = has_content(store, kind, run, arrays, settings, made_from)
        checksum = (
            checksum_of(storage, kind, run) if stored else content_checksum(arrays, settings, made_from, additions)
        )
        older = next((each.older for each in (sources or {}).values() if each is not None and each.older), None)
        return _with_lineage(result, Lineage(checksum, made_from, older))
    for source, checksum in made_from.items():
        if checksum_of(storage, *source.split("/")) != checksum:
            raise StoreError(
                f"{store.path}: {kind}/{run} cannot be saved, because the {source} that it was made from is not in the "
                "store; save that result first, with save=True"
            )
    try:
        before()
        checksum = save(store, kind, run, arrays, settings, overwrite, on_progress, made_from, additions)
    except StoreError as error:
        cause = _cause_of(error)
        if not isinstance(cause, OSError):
            raise
        found = _with_lineage(result, Lineage(content_checksum(arrays, settings, made_from, additions), made_from))
        raise NotSavedError(str(error), found, cause.errno in _READ_ONLY) from error
    return _with_lineage(result, Lineage(checksum, made_from))


def _with_lineage(result: R, lineage: Lineage) -> R:
    found: R = replace(result, lineage=lineage)  # type: ignore[type-var]
    return found


def _cause_of(error: BaseException) -> BaseException:
    """Return the first OSError that led to `error`; without one, its first cause."""
    while error.__cause__ is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error
