"""The saved runs of one kind, such as `features`, and the one that an address names."""

from __future__ import annotations

from headspan.store.results import runs
from headspan.web.asked import AskedStore
from headspan.web.refusals import Missing


def run_names(asked: AskedStore, kind: str) -> list[str]:
    """The names of the store's runs of a kind."""
    return asked.keep(("runs of", kind), lambda: runs(asked.store, kind))


def known_run(asked: AskedStore, kind: str, run: str | None, to_do: str) -> str | None:
    """`run` if the store has it; None if none is named. Raises Missing, with what to do if there is no run at all."""
    names = run_names(asked, kind)
    if not names:
        raise Missing(to_do.rstrip("."))
    if run is not None and run not in names:
        raise Missing(f"{asked.name}: has no run {run[:60]!r} of {kind}; the runs are: {', '.join(names)}")
    return run
