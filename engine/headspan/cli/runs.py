"""The command `runs`."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import store_argument
from headspan.cli.tables import aligned
from headspan.cli.terminal import say
from headspan.errors import SettingsError
from headspan.store.kept_runs import list_runs
from headspan.store.write.removal import remove_runs


def add_runs(section: Section) -> None:
    """Add `runs`."""
    command = section.add(
        "runs",
        _runs,
        "headspan runs run.zarr",
        "A run that was made from a run that has been replaced or removed since is of an older run.",
    )
    store_argument(command)
    command.add_argument(
        "--remove",
        action="append",
        metavar="NAME",
        help="delete the runs of that name, or one run as in labels/general; what was made from them stays; may be "
        "repeated",
    )
    export_flags(command)


def _runs(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    if flags.remove:
        if flags.csv or flags.json or flags.parquet:
            raise SettingsError("--remove lists no runs, so there is no table to write; list them in a second command")
        done = remove_runs(flags.store, flags.remove)
        say(f"removed {', '.join(done.removed)}")
        if done.marked:
            say(f"kept {', '.join(done.marked)}, now marked as of an older run")
        return 0
    found = list_runs(flags.store)
    if export(flags, found):
        return 0
    rows = [(f"{each.kind}/{each.name}", each.made_at or "-", each.settings, each.state) for each in found]
    for line in aligned(rows):
        say(line)
    if not rows:
        say(f"no runs in {flags.store}; headspan textspan makes the first")
    return 0
