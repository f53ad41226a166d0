"""The command `describe inspect`: what descriptions teach about their classes, according to judges."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from headspan.cli.commands import described
from headspan.cli.describe_flags import runs_flags
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.llm_flags import (
    add_asking_flags,
    asker_of,
    asking_group,
    go_ahead,
    print_spent,
    refuse_asking_flags,
    value_of,
)
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.concepts.answers import texts_of
from headspan.describe.descriptions.result import UNDECIDED, VERDICTS, Descriptions
from headspan.describe.descriptions.saved import KIND, read_descriptions
from headspan.describe.inspecting.ballot import Votes, described_texts, open_ballot
from headspan.describe.inspecting.comparison import compare_inspections, shown
from headspan.describe.inspecting.inspect_run import inspect, missing_verdicts
from headspan.describe.inspecting.summary import SHARES, InspectionSummary, VerdictShares, inspected, inspection_summary
from headspan.describe.inspecting.verdict import Judge
from headspan.describe.inspecting.verdict_sheet import read_verdict_sheet, write_verdict_sheet
from headspan.errors import SettingsError, counted, percent
from headspan.store import results
from headspan.store.reader import Store

_DETAILS = (
    "Judges say of each text whether it teaches anything about its class (if not, it is spurious), whether that can be "
    "seen in images, and which attribute it is about. The verdict is that of most judges. All votes are saved with the "
    "descriptions. Without a judge, the command shows the saved inspection, or those of several runs side by side."
)
_ANNOTATIONS = "annotations"


def add_inspect(parser: Parser, text: str) -> None:
    """Describe `describe inspect`, and add its flags."""
    command = described(parser, text, _inspect, "headspan describe inspect run.zarr --judge gpt-4o --dry-run", _DETAILS)
    runs_flags(command, "the only run, or all inspected ones")
    judges = command.add_argument_group("judges")
    judges.add_argument(
        "--human", action="append", default=[], metavar="CSV", help="a filled file of --write; may be repeated"
    )
    judges.add_argument(
        "--annotations",
        action="store_true",
        help="judge by what is known of every image, for stores of the image world",
    )
    judges.add_argument("--add", action="store_true", help="keep the votes of the other judges, and add these")
    judges.add_argument("--overwrite", action="store_true", help="replace all votes")
    asking = asking_group(command)
    asking.add_argument(
        "--judge", action="append", default=[], metavar="MODEL", help="a language model that judges; may be repeated"
    )
    add_asking_flags(command, asking)
    people = command.add_argument_group("people's votes")
    people.add_argument("--write", metavar="CSV", help="write descriptions for a person to judge, and do nothing else")
    people.add_argument(
        "--count", type=FROM_1, metavar="N", default=100, help="how many texts to write (default: %(default)s)"
    )
    people.add_argument(
        "--seed", type=FROM_0, metavar="N", default=0, help="seed of the choice of texts, and of intervals (0)"
    )
    export_flags(command)


def _inspect(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    if not flags.judge:
        refuse_asking_flags(flags, "--judge")
    judged = bool(flags.judge or flags.human or flags.annotations)
    if not judged and (flags.add or flags.overwrite):
        raise SettingsError(
            "--add and --overwrite are about the votes of judges; name one with --judge, --human or --annotations"
        )
    if judged or flags.write:
        if len(flags.store) > 1 or len(flags.run_names) > 1:
            raise SettingsError("descriptions are judged one run at a time; name one store and one --run")
        store = Store(flags.store[0])
        descriptions = read_descriptions(store, next(iter(flags.run_names), None))
        return _write_sheet(flags, descriptions) if flags.write else _judge(flags, store, descriptions, progress)
    found = [(path, each) for path in flags.store for each in _runs(Store(path), flags.run_names)]
    if len(found) == 1:
        _show(flags, found[0][1])
        return 0
    compared = compare_inspections(found, seed=flags.seed)
    if not export(flags, compared):
        print_table(compared.rows())
        if not compared.comparable:
            say("shares of runs with other classes or judges do not compare")
    return 0


def _judge(flags: argparse.Namespace, store: Store, descriptions: Descriptions, progress: ProgressPrinter) -> int:
    others, people = _other_judges(flags, store, descriptions), _people(flags, descriptions)
    given = (flags.add, flags.overwrite, int(value_of(flags, "answer_tokens")))
    asker = None
    if flags.judge:
        asker = asker_of(flags)
        ballot = open_ballot(descriptions, flags.judge, [*others, *people], *given)
        if not go_ahead(asker, ballot.open, flags):
            return 0
    inspected_ones, unsaved = saved_or_not(
        lambda: inspect(
            *(store, descriptions.run),
            models=flags.judge,
            asker=asker,
            judges=others,
            people=people,
            add=given[0],
            overwrite=given[1],
            answer_tokens=given[2],
            on_progress=progress,
        )
    )
    progress.close()
    if asker is not None and not only_export(flags):
        print_spent(asker)
    _show(flags, inspected_ones)
    tell_unsaved(unsaved)
    return 0


def _show(flags: argparse.Namespace, descriptions: Descriptions) -> None:
    if not export(flags, _table(descriptions)):
        _print(inspection_summary(descriptions, seed=flags.seed), descriptions)


def _runs(store: Store, names: Sequence[str]) -> list[Descriptions]:
    """The runs of a store that are named, else all inspected ones, else the only one."""
    found = [read_descriptions(store, name) for name in names or results.runs(store, KIND)]
    if not names:
        found = [each for each in found if each.inspection is not None]
    return found or [read_descriptions(store)]


def _write_sheet(flags: argparse.Namespace, descriptions: Descriptions) -> int:
    if flags.judge or flags.human or flags.annotations or flags.csv or flags.json or flags.parquet:
        raise SettingsError("--write judges nothing; name judges and tables in a second command")
    written = write_verdict_sheet(descriptions, flags.write, flags.count, flags.seed)
    say(
        f"{counted(written, 'text')} written to {flags.write}; write {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]} into "
        "the column verdict, an attribute such as colour beside it, then give the file with --human"
    )
    return 0


def _other_judges(flags: argparse.Namespace, store: Store, descriptions: Descriptions) -> dict[str, Judge]:
    if not flags.annotations:
        return {}
    # Imported here, since most inspections are not of the image world.
    from headspan.world.annotated_judge import annotated_judge

    return {_ANNOTATIONS: annotated_judge(store, descriptions)}


def _people(flags: argparse.Namespace, descriptions: Descriptions) -> dict[str, Votes]:
    """The votes of each person, who is named after the file."""
    names = [Path(path).stem for path in flags.human]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"--human {twice[0]}: two files have this name, which is the judge's; rename one of them")
    return {name: read_verdict_sheet(descriptions, path) for name, path in zip(names, flags.human, strict=True)}


def _table(descriptions: Descriptions) -> Table:
    """A row for each description, with the vote of each judge, and the last reply of each language model."""
    inspection = inspected(descriptions)
    replies = {
        (each["judge"], each["class"], each["text"]): " ".join(texts_of(each)[-1:]) for each in inspection.answers
    }
    models = dict.fromkeys(judge for judge, _, _ in replies)
    votes = {
        f"vote of {judge}": [None if vote == UNDECIDED else VERDICTS[vote] for vote in cast]
        for judge, cast in zip(inspection.judges, inspection.votes.tolist(), strict=True)
    }
    said = {
        f"reply of {model}": [replies.get((model, *each)) for each in described_texts(descriptions)] for model in models
    }
    return Table({**descriptions._columns(), **votes, **said})


def _print(found: InspectionSummary, descriptions: Descriptions) -> None:
    inspection = inspected(descriptions)
    say(f"descriptions/{found.run} by {descriptions.model}, rewarded for {descriptions.target}")
    say(f"judged by {', '.join(found.judges)}")
    rows = [("class", "texts", "sampled", *SHARES), _row("all", found.every)]
    print_table([*rows, *(_row(name, shares) for name, shares in found.classes.items())])
    say("shares of sampled descriptions, in brackets 95 % intervals: over classes for all, over questions for a class")
    for verdict, attributes in found.attributes.items():
        say(f"{verdict}: {_listed(attributes)}")
    if len(found.judges) > 1:
        print_table([("judge", *SHARES), *((judge, *_cells(shares)) for judge, shares in found.by_judge.items())])
    for pair in found.agreement:
        if not pair.verdicts.pairs:
            say(f"{pair.first} and {pair.second} judged no text in common")
            continue
        same = "" if pair.same_attribute != pair.same_attribute else f", attribute {percent(pair.same_attribute)}"
        say(
            f"{pair.first} and {pair.second}: {counted(pair.verdicts.pairs, 'text')}, verdict "
            f"{percent(pair.verdicts.same)} the same{same}, κ {pair.verdicts.kappa}"
        )
    for judge, missing in missing_verdicts(inspection).items():
        if missing:
            say(f"{judge} gave no verdict on {counted(missing, 'description')}")


def _row(name: str, found: VerdictShares) -> tuple[str, ...]:
    return (name, f"{found.texts:,}", f"{found.times:,}", *_cells(found))


def _cells(found: VerdictShares) -> tuple[str, ...]:
    return tuple(shown(found.shares[share]) for share in SHARES)


def _listed(attributes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in attributes.items()) or "none"
