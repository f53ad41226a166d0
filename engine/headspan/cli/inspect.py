"""The commands about models and stores: `models`, `info`, `verify` and `repair`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headspan.cli.commands import Section
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.numbers import FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import pipe_flag, shards_flag, store_argument, weights_flag
from headspan.cli.terminal import say, say_row
from headspan.config import as_ranges
from headspan.errors import SettingsError, counted
from headspan.escapes import shell_command
from headspan.store.info import info
from headspan.store.reader import Store

if TYPE_CHECKING:
    from headspan.run.verify import Verdict


def add_inspect(section: Section) -> None:
    """Add the four commands."""
    export_flags(section.add("models", _models, "headspan models"))
    about = section.add("info", _info, "headspan info run.zarr --bad")
    store_argument(about)
    about.add_argument(
        "--heads", action="store_true", help="show how much every layer and head adds to the embeddings' variance"
    )
    about.add_argument(
        "--watch", action="store_true", help="show who computes the store, how fast and what is left, until it is done"
    )
    lists = about.add_argument_group("lists (on each line: row, key, shard and reason)")
    lists.add_argument("--bad", action="store_true", help="list the images that could not be used")
    lists.add_argument(
        "--notes", action="store_true", help="list the captions and other members that could not be used"
    )
    export_flags(about)

    check = section.add("verify", _verify, "headspan verify run.zarr --sources")
    store_argument(check)
    sources = check.add_argument_group("sources")
    sources.add_argument("--sources", action="store_true", help="read every image again and compare checksums")
    shards_flag(sources)

    command = section.add(
        "repair",
        _repair,
        "headspan repair run.zarr",
        "Everything else in the store stays as it is. Shards and model must be those that the store was made from.",
    )
    command.set_defaults(kept="finished units")
    store_argument(command)
    inputs = command.add_argument_group("inputs")
    inputs.add_argument(
        "shards", nargs="*", default=[], help="all shards, if they have moved or if their URLs hold secrets"
    )
    weights_flag(inputs)
    pipe_flag(inputs)
    computation = command.add_argument_group("computation")
    computation.add_argument(
        "--batch-size", type=FROM_1, metavar="N", help="images per forward pass (default: the store's)"
    )
    computation.add_argument("--device", help="auto, cpu or cuda:0, the first of several (default: the store's)")
    computation.add_argument(
        "--workers",
        type=FROM_1,
        metavar="N",
        help="threads or processes that decode images (default: about one per core)",
    )


def _models(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    # Needs torch.
    from importlib.metadata import version

    from headspan.model.convert import catalogue, models_needing_transformers, two_pass_models

    reasons, later, twice = catalogue(), models_needing_transformers(), two_pass_models()
    why = list(reasons.values())
    columns: dict[str, Sequence[Any]] = {
        "model": list(reasons),
        "supported": [reason is None for reason in why],
        "reason": why,
    }
    if export(flags, Table(columns)):
        return 0
    width = max(map(len, reasons))
    for name, reason in reasons.items():
        yes = "yes, after pip install transformers, for its text tower" if name in later else "yes"
        yes += ", in two passes per image, since it normalises its rows before their mean" if name in twice else ""
        say(f"{name:<{width}}  {'no: ' + reason if reason else yes}")
    supported = sum(reason is None for reason in reasons.values())
    say(f"headspan supports {supported} of the {len(reasons)} models of open_clip {version('open_clip_torch')}")
    return 0


def _info(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    if flags.watch:
        return _watch(flags)
    if flags.heads:
        from headspan.cli.magnitudes import print_magnitudes

        if flags.bad or flags.notes:
            raise SettingsError(f"--heads and --{'bad' if flags.bad else 'notes'}: give each in a command of its own")
        magnitudes = Store(flags.store).magnitudes()
        if not export(flags, magnitudes):
            print_magnitudes(magnitudes)
        return 0
    if flags.bad or flags.notes:
        store = Store(flags.store)
        images = [*(store.bad_images() if flags.bad else []), *(store.notes() if flags.notes else [])]
        names = ("row", "key", "url", "reason")
        if not export(flags, Table({name: [getattr(image, name) for image in images] for name in names})):
            for image in images:
                say_row(image.row, image.key, image.url, image.reason)
        return 0
    found = info(flags.store)
    if export(flags, found):
        return 0
    facts = found.facts
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"{name:<{width}}  {value}")
    return 0


def _watch(flags: argparse.Namespace) -> int:
    from headspan.cli.watch import watch

    for name in ("heads", "bad", "notes"):
        if getattr(flags, name):
            raise SettingsError(f"--watch and --{name}: give each in a command of its own")
    watch(flags.store)
    return 0


def _verify(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    # Imported here and below, because `info` needs none of it.
    from headspan.run.verify import verify

    # Open all rows, since `verify` also checks which of them hold an image.
    store = Store(flags.store, include_failed=True)
    verdict = verify(store, progress, flags.sources, flags.shards)
    progress.close()
    code = _print_verdict(store, verdict)
    # Sources that could not be reached were not checked, though the user asked for it.
    return 1 if flags.sources and verdict.unreached else code


def _print_verdict(store: Store, verdict: Verdict) -> int:
    from headspan.run.problems import WHOLE_STORE

    for problem in verdict.problems:
        where = f"rows {problem.first_row} to {problem.first_row + problem.rows - 1}"
        if problem.unit != WHOLE_STORE:
            where = f"unit {problem.unit}, {where}"
        elif not problem.of_source:
            where = "whole store"
        say(f"{where}: {problem.what}")
    if verdict.unreached:
        say(
            f"{counted(verdict.unreached, 'source shard')} could not be compared with the plan (commands, remote or "
            "missing files); name all shards with --shards (relative paths start in the folder where precompute ran)"
        )
    if verdict.problems:
        of_store = any(problem.of_store for problem in verdict.problems)
        command = shell_command(["headspan", "repair", str(store.path)])
        todo = f"; `{command}` repairs the store" if of_store else ""
        say(f"{counted(len(verdict.problems), 'problem')} in {counted(verdict.units, 'unit')}{todo}")
        return 1
    checked = f"{counted(verdict.images, 'image')} in {counted(verdict.units, 'unit')}"
    say(f"{checked}: files, records, rows and moments agree")
    if verdict.largest_error is None:
        say("the sum of contributions was not checked, because that needs a store of --layers all --emit heads,mlps")
    else:
        say(f"contributions sum to the embeddings within {verdict.largest_error:.1e} (16-bit numbers)")
    if not store.complete:
        say("the run is unfinished; run the same precompute command to continue it")
    return 0


def _repair(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    # Needs torch.
    from headspan.run.problems import WHOLE_STORE
    from headspan.run.repair import repair

    names = ("batch_size", "device", "workers", "allow_pipe", "weights")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    done = repair(flags.store, flags.shards, progress, **given)
    progress.close()
    for name in done.files:
        say(f"restored {name}")
    say(f"{counted(len(done.units), 'unit')} computed again" + (f": {as_ranges(done.units)}" if done.units else ""))
    for problem in done.verdict.problems:
        if problem.unit == WHOLE_STORE and problem.of_store and problem.where:
            say(
                f"{problem.where} could not be restored, because this version of headspan makes a different file from "
                "these shards and this model; restore it from a copy of the store, or precompute into another --out"
            )
    return _print_verdict(Store(flags.store, include_failed=True), done.verdict)
