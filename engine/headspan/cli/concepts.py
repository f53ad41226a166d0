"""The command `concepts`: whether the heads of a concept matter for that concept in particular."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial

from headspan.cli.chance_flags import chance_flags
from headspan.cli.commands import Section
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import shards_flag, store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import SettingsError
from headspan.head_names import head_name
from headspan.prune.choice.groups import HeadGroup, head_group
from headspan.prune.studies.concept_specific import ConceptEffect, Pruner, concept_effects, concepts_of
from headspan.prune.studies.statistics import Interval
from headspan.prune.total.total_effect import total_effect
from headspan.store.reader import Store
from headspan.tasks.classification import Classification
from headspan.tasks.task_file import read_task


def add_concepts(section: Section) -> None:
    """Add `concepts`."""
    command = section.add(
        "concepts",
        _concepts,
        "headspan concepts run.zarr --task cifar10 --heads animals=label:animals",
        "Prunes the heads of one concept and compares what the classes of every concept lose. A difference is the loss "
        "of the concept minus the mean, or the largest, loss of the others, with a 95 % interval over images, beside "
        "the same for as many random heads of the same layers. Nothing is saved.",
    )
    store_argument(command)
    what = command.add_argument_group("what is measured")
    what.add_argument(
        "--task", metavar="TASK", required=True, help="a classification with groups of classes (concepts), as in prune"
    )
    what.add_argument(
        "--heads",
        action="append",
        default=[],
        metavar="CONCEPT=HEADS",
        help="the heads of a concept, as in prune: label:NAME, high:NAME, L22.H13,L23.H1, or a file; may be repeated "
        "(default: label:CONCEPT for every concept)",
    )
    what.add_argument(
        "--own-classes",
        action="store_true",
        help="classify a concept's images among its own classes only, as published",
    )
    what.add_argument(
        "--mode", choices=("direct", "total"), default="direct", help="which effect is measured (default: direct)"
    )
    chance_flags(command.add_argument_group("chance"))
    total = command.add_argument_group("total effect")
    shards_flag(total)
    total.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    weights_flag(command.add_argument_group("result"))
    export_flags(command)


def _concepts(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    if flags.mode == "direct" and flags.shards:
        raise SettingsError("--shards is for the total effect; give --mode total too")
    store, task = Store(flags.store), read_task(flags.task)
    if task.metric != "accuracy":
        raise SettingsError(f"--task {flags.task}: has metric {task.metric}; concepts needs one of metric accuracy")
    if len(task.concepts) < 2:
        raise SettingsError(f"--task {flags.task}: has fewer than two groups of classes; declare them under concepts")
    groups = _groups(store, flags.heads, task.concepts)
    given = {name: each.heads for name, each in groups.items() if each.heads}
    if not given:
        why = next(each.why_empty for each in groups.values())
        raise SettingsError(f"no concept has heads ({why}); name some with --heads CONCEPT=HEADS")
    concepts = concepts_of(Classification.of(task, store, progress, weights=flags.weights), flags.own_classes)
    prune: Pruner | None = None
    if flags.mode == "total":
        prune = partial(
            total_effect, store, on_progress=progress, weights=flags.weights, shards=flags.shards, device=flags.device
        )
    found = concept_effects(
        store, concepts, given, progress, prune=prune, draws=flags.draws, samples=flags.samples, seed=flags.seed
    )
    progress.close()
    export(flags, Table(_columns(found)))
    if not alone:
        _print(found, flags.mode)
        for name, each in groups.items():
            if not each.heads:
                say(f"note: concept {name} is not pruned: {each.why_empty}")
    return 0


def _groups(store: Store, given: Sequence[str], concepts: Mapping[str, Sequence[str]]) -> dict[str, HeadGroup]:
    """The heads of each concept; those of the default may be none, and say why."""
    found = {}
    for each in given:
        concept, equals, heads = each.partition("=")
        if not (equals and heads) or concept not in concepts:
            raise SettingsError(
                f"--heads {each}: write a concept of the task ({', '.join(concepts)}) before =, and heads behind it, "
                f"as in {next(iter(concepts))}=label:{next(iter(concepts))}"
            )
        found[concept] = head_group(store, heads)
    if not given:
        for concept in concepts:
            try:
                found[concept] = head_group(store, f"label:{concept}")
            except SettingsError as error:
                found[concept] = HeadGroup(concept, (), str(error))
    return found


def _columns(found: Sequence[ConceptEffect]) -> dict[str, list[object]]:
    """A row for each pruned concept and each concept that is scored."""
    columns: dict[str, list[object]] = {}
    for effect in found:
        for scored, drop in effect.drops.items():
            own = scored == effect.concept
            row: dict[str, object] = {
                "pruned": effect.concept,
                "heads": " ".join(head_name(*head) for head in effect.heads),
                "scored": scored,
                **_ends("loss", drop),
                **_ends("above_mean", effect.above_mean if own else None),
                **_ends("above_largest", effect.above_largest if own else None),
                **_ends("random_above_mean", effect.random_above_mean if own else None),
                **_ends("random_above_largest", effect.random_above_largest if own else None),
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    values = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _print(found: Sequence[ConceptEffect], mode: str) -> None:
    scored = list(found[0].drops)
    header = ("pruned", "heads", *scored, "above mean", "above largest", "random, same layers")
    rows: list[tuple[str, ...]] = [header]
    for each in found:
        random = each.random_above_largest
        rows.append(
            (
                each.concept,
                f"{len(each.heads)}",
                *(f"{100 * each.drops[name].value:+.1f}" for name in scored),
                _shown(each.above_mean),
                _shown(each.above_largest),
                "none" if random is None else _shown(random),
            )
        )
    print_table(rows)
    say(f"columns of concepts: accuracy lost, in points ({mode} effect)")
    say(
        "above mean, above largest: the concept's loss minus the mean and the largest loss of the others, with the "
        "95 % interval over images; random: above largest, mean over sets of heads"
    )
    for each in found:
        for remark in each.remarks:
            say(f"note: {each.concept}: {remark}")


def _shown(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
