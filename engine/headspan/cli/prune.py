"""The command `prune`: what tasks lose without groups of heads."""

from __future__ import annotations

import argparse

from headspan.cli.chance_flags import chance_flags
from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.shared_flags import overwrite_flag, shards_flag, store_argument, weights_flag
from headspan.cli.study_print import print_every_set, print_greedy, print_single_heads, print_study
from headspan.cli.terminal import tell
from headspan.errors import SettingsError
from headspan.prune.studies.study import GROUPS, read_study, study
from headspan.prune.studies.study_result import Study
from headspan.prune.studies.study_tasks import TaskOf
from headspan.store.reader import Store
from headspan.user_paths import expand_user

_DETAILS = (
    "Each task is scored with the whole model and without each group of heads. --mode direct replaces what the heads "
    "write to the embedding by its mean over images, which is arithmetic on the store. --mode total prunes the live "
    "model, so that later layers feel it; this reads the images again. Groups stand beside random heads, as many in "
    "each layer. Nothing is saved without --run."
)
_TABLES = ("groups", "heads", "greedy", "sets")


def add_prune(section: Section) -> None:
    """Add `prune`."""
    command = section.add(
        "prune",
        _prune,
        "headspan prune run.zarr --task cifar10 --heads high --heads random",
        _DETAILS,
    )
    store_argument(command)
    what = command.add_argument_group("what is measured")
    what.add_argument(
        "--task",
        action="append",
        default=[],
        dest="tasks",
        metavar="TASK[=STORE]",
        help="a task: the name of a shipped one, a TOML file, or a folder in CLIP-benchmark's layout; =STORE takes the "
        "images of another store of the same model; may be repeated",
    )
    what.add_argument(
        "--heads",
        action="append",
        default=[],
        metavar="HEADS",
        help="heads to prune: high, moderate or low (CCS), label:NAME, high:NAME, L22.H13,L23.H1, or a file with a "
        "head in each line; beside them random (as many in each layer), unmatched (as many in any layer), equal (equal "
        f"numbers of two groups) and single (each head alone); may be repeated (default: {', '.join(GROUPS)})",
    )
    what.add_argument(
        "--mode", choices=("direct", "total"), default="direct", help="which effect is measured (default: direct)"
    )
    what.add_argument(
        "--scores", metavar="RUN", help="the run of scores and labels that groups are about (default: the only one)"
    )
    what.add_argument(
        "--greedy",
        type=FROM_0,
        default=0,
        metavar="N",
        help="also remove N heads one after the other, each time the one that costs least; direct effect on "
        "classifications",
    )
    about = command.add_argument_group("chance")
    about.add_argument(
        "--unmatched", action="store_true", help="also the published random heads, of any layer; as --heads unmatched"
    )
    chance_flags(about, sets="sets of random heads for each group")
    total = command.add_argument_group("total effect")
    shards_flag(total)
    total.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    total.add_argument("--batch-size", type=FROM_1, metavar="N", help="images per forward pass (default: by device)")
    total.add_argument(
        "--keep", metavar="FOLDER", help="keep the embeddings of finished units here; the same command then continues"
    )
    result = command.add_argument_group("result")
    weights_flag(result)
    result.add_argument(
        "--run",
        dest="run_name",
        metavar="NAME",
        help="save the study in the store as prune/NAME; without --task, show the saved study of that name",
    )
    overwrite_flag(result)
    result.add_argument(
        "--table",
        choices=_TABLES,
        default="groups",
        help="the table to print and export: tasks by groups, by single heads, by greedy removal, or by every set "
        "(default: groups)",
    )
    export_flags(command)


def _prune(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    store = Store(flags.store)
    unsaved = None
    if not flags.tasks and flags.run_name is not None:
        found = read_study(store, flags.run_name)
    else:
        found, unsaved = saved_or_not(lambda: _studied(store, flags, progress))
    progress.close()
    if flags.table == "heads" and not found.labels:
        raise SettingsError("--table heads: no heads were removed alone; add --heads single")
    if flags.table == "greedy" and not found.greedy():
        raise SettingsError("--table greedy: no heads were removed one after the other; add --greedy with their number")
    tables = {"groups": found, "heads": found.single(), "greedy": found.greedy(), "sets": found.every_set()}
    export(flags, tables[flags.table])
    if not alone:
        prints = {"groups": print_study, "heads": print_single_heads, "greedy": print_greedy, "sets": print_every_set}
        prints[flags.table](found)
    tell_unsaved(unsaved)
    if unsaved is None and flags.run_name is not None and flags.tasks:
        tell(f"saved as prune/{flags.run_name}")
    return 0


def _studied(store: Store, flags: argparse.Namespace, progress: ProgressPrinter) -> Study:
    if not flags.tasks:
        raise SettingsError(
            "prune needs a task: give --task with a shipped one, a TOML file or a folder; --run alone shows a "
            "saved study"
        )
    heads = flags.heads or list(GROUPS)
    if flags.unmatched and "unmatched" not in heads:
        heads = [*heads, "unmatched"]
    if flags.mode == "direct":
        for name in ("shards", "keep", "batch_size"):
            if getattr(flags, name):
                raise SettingsError(f"--{name.replace('_', '-')} is for the total effect; give --mode total too")
    return study(
        store,
        [_task(each) for each in flags.tasks],
        heads,
        flags.mode,
        run=flags.run_name,
        scores=flags.scores,
        draws=flags.draws,
        samples=flags.samples,
        seed=flags.seed,
        greedy=flags.greedy,
        overwrite=flags.overwrite,
        on_progress=progress,
        weights=flags.weights,
        shards=flags.shards,
        device=flags.device,
        batch_size=flags.batch_size,
        keep=flags.keep,
    )


def _task(given: str) -> TaskOf:
    """A task, with the store after the last `=`, unless there is a file of the whole name."""
    task, equals, other = given.rpartition("=")
    if not equals or expand_user(given).exists():
        return given
    if not task or not other:
        raise SettingsError(f"--task {given}: write the task before = and a store behind it, as in imagenet-a=ina.zarr")
    return task, other
