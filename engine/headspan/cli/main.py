"""Flags to settings to one call, and what the commands say.

Errors are one sentence on standard error and exit code 2; an interrupted precompute says how to go on and exits
with 130, or with 143 where it was told to end (SIGTERM). `verify` and `repair` exit with 1 where something does not
agree, `precompute` where units had to be set aside or no image could be used.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

from tqdm import tqdm

from headspan.cli.flag_parser import Parser
from headspan.cli.labels import add_label_commands
from headspan.cli.llm_flags import overwrite_flag
from headspan.cli.terminal import ERR, conclude, prepare, say, say_row, tell
from headspan.cli.votes import add_vote_commands
from headspan.config import DECODERS, EMISSIONS, PRECISIONS, PrecomputeSettings, parse_layers
from headspan.config import spans as spans_of
from headspan.errors import HeadspanError, counted
from headspan.escapes import escaped, shell_command
from headspan.events import NOTE, Progress
from headspan.report.collect import write_report
from headspan.run.summary import Summary
from headspan.run.verify import WHOLE_STORE, Verdict, verify
from headspan.spans.over_store import textspan
from headspan.spans.result import HeadSpans
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.store.schema import decoding
from headspan.timing import IN_TURN, MEANWHILE


class ProgressPrinter:
    """Progress events as bars on a terminal, as plain lines every few seconds elsewhere; on standard error."""

    _LINE_SECONDS = 5.0
    # A rate over less says nothing.
    _RATE_SECONDS = 1.0
    _UNITS = {  # noqa: RUF012
        "plan": "tar",
        "images": "image",
        "texts": "text",
        "verify": "unit",
        "shards": "image",
        "answers": "answer",
        "pool": "text",
    }

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._printed: dict[str, float] = {}
        self._finished: dict[str, int | None] = {}
        self._on_terminal = ERR.isatty()

    def __call__(self, event: Progress) -> None:
        if event.stage in ("planned", NOTE):
            self.close()
            images = f"{counted(event.done, 'image')}: " if event.stage == "planned" else ""
            tell(images + event.note)
        elif self._on_terminal:
            self._draw(event)
        else:
            self._line(event)

    def close(self) -> None:
        """Leave the bars as they stand."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def _draw(self, event: Progress) -> None:
        bar = self._bars.get(event.stage)
        if bar is None:
            unit = f" {self._UNITS.get(event.stage, 'step')}s"
            bar = tqdm(desc=event.stage, total=event.total, initial=event.done, unit=unit, file=ERR, dynamic_ncols=True)
            self._bars[event.stage] = bar
        bar.set_postfix_str(escaped(event.note), refresh=False)
        bar.update(event.done - bar.n)

    def _line(self, event: Progress) -> None:
        now = time.monotonic()
        began, done_then = self._started.setdefault(event.stage, (now, event.done))
        last = event.total is not None and event.done >= event.total
        if event.total is not None and self._finished.get(event.stage) == event.total:
            return
        if last:
            self._finished[event.stage] = event.done
        if not last and now - self._printed.setdefault(event.stage, now) < self._LINE_SECONDS:
            return
        self._printed[event.stage] = now
        rate = (event.done - done_then) / (now - began) if now - began > self._RATE_SECONDS else 0.0
        parts = [f"{event.stage}: {event.done:,}"]
        if event.total:
            parts[0] += f" of {event.total:,} ({event.done / event.total:.0%})"
        if rate:
            parts.append(f"{rate:,.1f} {self._UNITS.get(event.stage, 'step')}s/s")
            if event.total and not last:
                parts.append(f"{(event.total - event.done) / rate:,.0f} s left")
        if event.note:
            parts.append(event.note)
        tell(", ".join(parts))


class Terminated(KeyboardInterrupt):
    """SIGTERM came; it ends a command as Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    prepare()
    try:
        return _run(_parser().parse_args(arguments))
    finally:
        conclude()


def _run(flags: argparse.Namespace) -> int:
    progress = ProgressPrinter()
    # Python takes signal handlers in its main thread alone.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        return int(flags.run(flags, progress))
    except HeadspanError as error:
        progress.close()
        tell(f"headspan: {error}")
        return 2
    except KeyboardInterrupt as error:
        progress.close()
        kept = f"; {flags.kept} are kept, run the same command to go on" if "kept" in flags else ""
        ended = isinstance(error, Terminated)
        tell(f"headspan: {'terminated' if ended else 'interrupted'}{kept}")
        return 143 if ended else 130
    finally:
        progress.close()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _precompute(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    from headspan.run.precompute import precompute

    names = {field.name for field in fields(PrecomputeSettings)}
    given = {name: value for name, value in vars(flags).items() if name in names and value is not None}
    summary = precompute(PrecomputeSettings.from_dict(given), progress)
    progress.close()
    _print_summary(summary)
    store = Store(summary.path)
    if store.complete and not store.images:
        say(
            f"none of {counted(store.planned_images, 'image')} could be used, so the store holds no numbers; "
            f"`{shell_command(['headspan', 'info', summary.path, '--bad'])}` lists the reasons"
        )
        return 1
    return 1 if summary.quarantined else 0


def _repair(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    from headspan.run.repair import repair

    names = ("batch_size", "device", "workers", "allow_pipe", "weights")
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    done = repair(flags.store, flags.shards, progress, **given)
    progress.close()
    for name in done.files:
        say(f"{name} made again")
    say(f"{counted(len(done.units), 'unit')} computed again" + (f": {spans_of(done.units)}" if done.units else ""))
    for problem in done.verdict.problems:
        if problem.unit == WHOLE_STORE and problem.of_store and problem.where:
            say(
                f"{problem.where} could not be made again, since shards and model, planned by this headspan, give "
                "another file; restore it from a copy of the store, or precompute into another --out"
            )
    return _print_verdict(Store(flags.store, include_failed=True), done.verdict)


def _print_summary(summary: Summary) -> None:
    if summary.skipped:
        say(f"finished before, or by another process: {counted(summary.skipped, 'image')}")
    say(f"{counted(summary.images, 'image')} stored in {summary.path}")
    if summary.images:
        say(_where_time_went(summary.seconds))
    if summary.bad:
        say(f"{counted(len(summary.bad), 'image')} set aside:")
        for bad in summary.bad[:10]:
            say(f"  row {bad.row}, {bad.key} in {bad.url}: {bad.reason}")
        if len(summary.bad) > 10:
            lists = shell_command(["headspan", "info", summary.path, "--bad"])
            say(f"  and {len(summary.bad) - 10:,} more; `{lists}` lists all")
    for unit in summary.quarantined:
        last_row = unit.first_row + unit.rows - 1
        say(
            f"unit {unit.index}, rows {unit.first_row} to {last_row}, was set aside, since it ended its process again "
            f"and again; `{shell_command(['headspan', 'repair', summary.path])}` tries it once more"
        )


def _where_time_went(seconds: dict[str, float]) -> str:
    in_turn, meanwhile = (
        ", ".join(f"{stage} {seconds[stage]:,.1f} s" for stage in stages) for stages in (IN_TURN, MEANWHILE)
    )
    return f"{seconds['total']:,.1f} s: {in_turn}; on other threads meanwhile: {meanwhile}"


def _models(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    from headspan.model.convert import catalogue, running_twice, waiting

    reasons, later, twice = catalogue(), waiting(), running_twice()
    width = max(map(len, reasons))
    for name, reason in reasons.items():
        yes = "yes, after pip install transformers, for its text tower" if name in later else "yes"
        yes += ", in two passes an image, since its rows are normed before their mean" if name in twice else ""
        say(f"{name:<{width}}  {'no: ' + reason if reason else yes}")
    supported = sum(reason is None for reason in reasons.values())
    say(f"{supported} of the {len(reasons)} models of open_clip {version('open_clip_torch')} are decomposed")
    return 0


def _info(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store)
    attributes, bad = store.attributes, store.bad_images()
    notes, aside = store.notes(), store.quarantined_units()
    if flags.bad or flags.notes:
        for image in [*(bad if flags.bad else []), *(notes if flags.notes else [])]:
            say_row(image.row, image.key, image.url, image.reason)
        return 0
    size = store.stored_bytes
    rows = {
        "store": store.path,
        "model": f"{attributes['model']}, {attributes['pretrained'] or 'its own weights'}",
        "image tower": f"sha256 {attributes['weights_sha256']}",
        "images": f"{store.images:,} of {store.planned_images:,} planned, {len(bad):,} set aside"
        + ("" if store.complete else "; unfinished: run the same precompute command to go on"),
        "notes": f"{len(notes):,} on captions, metadata and members that are no images",
        "layers": f"{spans_of(store.layers)} of {store.all_layers}"
        + (f"; {spans_of(store.through_pool_layers)} as carried through it" if store.through_pool_layers else ""),
        "sum": _sum_of(attributes["sum"]),
        "heads": f"{store.heads_per_layer} a layer, {store.head_dim} dimensions; joint space {store.joint}",
        "emitted": ", ".join(attributes["emit"]),
        "precision": f"{attributes['precision']}, {attributes['backend']}",
        "size": f"{size / 1e6:,.1f} MB on disk, {size / max(store.images, 1):,.0f} bytes an image, all files counted",
        "units": f"{len(store.records):,} done, of {attributes['dimensions']['unit_images']:,} images each"
        + (
            f"; set aside: {spans_of([unit.index for unit in aside])}, which `headspan repair` tries again"
            if aside
            else ""
        ),
        "written by": f"headspan {attributes['version']}, store format {attributes['format']}",
        "made with": _made_with(store),
        "made again by": _command_of(store),
        # Where a name among the shards is relative.
        **({"run from": folder} if (folder := attributes.get("made_with", {}).get("folder")) else {}),
        "textspan": ", ".join(runs(store, "textspan")) or "none",
        "labels": ", ".join(runs(store, "labels")) or "none",
        "ccs": ", ".join(runs(store, "ccs")) or "none",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        say(f"{name:<{width}}  {value}")
    return 0


def _sum_of(terms: dict[str, Any]) -> str:
    """Which terms sum to the embedding."""
    layers, others = terms["direct_layers"], terms["terms"]
    if terms["carried"] is None:
        return f"heads of layers {spans_of(layers)} + initial state + MLPs + biases"
    return " + ".join([f"heads of layer {layers[0]}, the pooling", *others, "biases"])


def _made_with(store: Store) -> str:
    made = store.attributes.get("made_with")
    if made is None:
        return "not recorded by the headspan that wrote it"
    libraries = ", ".join(f"{name} {number}" for name, number in made["libraries"].items())
    return f"{made['machine']}, {made['torch_threads']} torch threads, Python {made['python']}, {libraries}"


def _command_of(store: Store) -> str:
    """The command that makes the store again, the secrets of urls left out."""
    attributes = store.attributes
    made = attributes.get("made_with", {})
    flags = {
        "model": attributes["model"],
        "pretrained": attributes["pretrained"],
        "weights": made.get("weights", {}).get("given"),
        "layers": spans_of([*store.through_pool_layers, *store.layers]).replace(" ", ""),
        "emit": ",".join(attributes["emit"]),
        "precision": attributes["precision"],
        "decode": decoding(attributes),
        "image-size": attributes.get("image_size"),
        "image-member": attributes.get("image_member"),
        "caption-member": attributes.get("caption_member"),
        "caption-json": attributes.get("caption_json"),
        "unit-images": attributes["dimensions"]["unit_images"],
        "batch-size": made.get("batch_size"),
        "device": made.get("device"),
    }
    shards = made.get("shards") or [shard.url for shard in store.shards()]
    flags["out"] = store.path.name
    options = ["--allow-pipe"] if made.get("allow_pipe") else []
    for name, value in flags.items():
        if value is not None:
            # A value that begins with a dash would be taken for a flag.
            options += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    if any(shard.startswith("-") for shard in shards):
        return shell_command(["headspan", "precompute", *options, "--", *shards])
    return shell_command(["headspan", "precompute", *shards, *options])


def _verify(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    # Every row, since which ones are good is among what is checked.
    store = Store(flags.store, include_failed=True)
    verdict = verify(store, progress, flags.sources, flags.shards)
    progress.close()
    found = _print_verdict(store, verdict)
    # What was asked for has not been done.
    return 1 if flags.sources and verdict.unreached else found


def _print_verdict(store: Store, verdict: Verdict) -> int:
    for problem in verdict.problems:
        where = f"rows {problem.first_row} to {problem.first_row + problem.rows - 1}"
        if problem.unit != WHOLE_STORE:
            where = f"unit {problem.unit}, {where}"
        elif not problem.of_source:
            where = "whole store"
        say(f"{where}: {problem.what}")
    if verdict.unreached:
        say(
            f"not compared with the plan: {counted(verdict.unreached, 'source tar')}, commands, remote or not there "
            "(relative paths are those of the run); --shards names them where they lie now"
        )
    if verdict.problems:
        of_store = any(problem.of_store for problem in verdict.problems)
        mends = shell_command(["headspan", "repair", str(store.path)])
        todo = f"; `{mends}` mends the store" if of_store else ""
        say(f"{counted(len(verdict.problems), 'problem')} in {counted(verdict.units, 'unit')}{todo}")
        return 1
    checked = f"{counted(verdict.images, 'image')} in {counted(verdict.units, 'unit')}"
    say(f"{checked}: files, records, rows and moments agree")
    if verdict.largest_error is None:
        say("contributions were not summed: that takes all layers and --emit heads,mlps")
    else:
        say(f"contributions sum to the embeddings within {verdict.largest_error:.1e} (16-bit numbers)")
    if not store.complete:
        say("the run is unfinished: the same precompute command goes on")
    return 0


def _textspan(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store)
    layers = None if flags.layers is None else parse_layers(flags.layers, store.all_layers)
    also = [Store(path) for path in flags.also]
    given = (flags.texts, flags.texts_per_head, layers, flags.rank, flags.run_name)
    spans = textspan(store, *given, progress, also, flags.overwrite, weights=flags.weights)
    progress.close()
    for layer, head in spans.heads():
        _print_head(spans, layer, head)
    say(f"kept as textspan/{spans.run} in {store.path}")
    return 0


def _print_head(spans: HeadSpans, layer: int, head: int) -> None:
    explained = spans.explained[spans.layers.index(layer), head]
    first = spans.texts(layer, head, 5)
    texts = counted(len(explained), "text")
    say(f"L{layer}.H{head}  {explained[-1]:.0%} of the variance by {texts}, the first {len(first)}:")
    for text in first:
        say(f"    {text}")


def _report(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store)
    path = store.path.resolve()
    out = flags.out or path.with_name(f"{path.stem}-report.html")
    written = write_report(store, out, flags.run_name, progress, flags.shards)
    progress.close()
    say(f"report written to {written}")
    return 0


def _demo(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    from headspan.demo import run_demo

    began = time.monotonic()
    result = run_demo(flags.out, progress)
    progress.close()
    _print_summary(result.summary)
    named = ", ".join(f"{factor.replace('_', ' ')} {each.share:.1%}" for factor, each in result.truth.zero_shot.items())
    say(f"named right, zero-shot: {named}")
    say(f"open {result.report} in a browser ({time.monotonic() - began:.0f} s)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="headspan", description="Every attention head of CLIP image encoders, taken apart.")
    parser.add_argument("--version", action="version", version=f"headspan {version('headspan')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "shards, precompute, TEXTSPAN, CCS and report, all local")
    demo.add_argument("--out", default="headspan-demo", help="folder to write (default: %(default)s)")

    precompute = _command(commands, "precompute", _precompute, "stream shards through an encoder into a store")
    precompute.set_defaults(kept="finished units")
    precompute.add_argument("shards", nargs="+", help="tars: brace patterns, globs, directories, urls")
    precompute.add_argument("--out", required=True, help="the store to write, a folder such as run.zarr")
    precompute.add_argument(
        "--model",
        help="open_clip name, hf-hub:…, local-dir:…, config .json, or reference, which ships with headspan "
        "(default: ViT-B-32)",
    )
    precompute.add_argument("--image-size", type=int, help="pixels, if not the model's own; positions are interpolated")
    precompute.add_argument("--pretrained", help="open_clip tag, hf-hub:…, .pt or .safetensors file, or random:SEED")
    _weights_flag(precompute, "file or folder that holds the weights of --pretrained TAG, or of --model")
    precompute.add_argument("--layers", help="all, last4, 8-11 or 0,3,8-11, counting from 0 (default: last4)")
    precompute.add_argument("--emit", help=f"with commas, of {', '.join(EMISSIONS)} (default: heads)")
    precompute.add_argument("--device", help="auto, cpu or cuda:0 (default: auto)")
    precompute.add_argument("--precision", help=f"{', '.join(PRECISIONS)} (default: fp32; fp16 is for GPUs)")
    precompute.add_argument("--decode", help=f"{' or '.join(DECODERS)}: JPEGs to two grey levels, or all to the bit")
    precompute.add_argument(
        "--image-member",
        metavar="FIELD",
        help="what the images' names have behind their first dot, as input.jpg or *.left.png (default: all images)",
    )
    precompute.add_argument("--caption-member", metavar="FIELD", help="the same of the captions (default: txt)")
    precompute.add_argument(
        "--caption-json", metavar="KEY", help="the captions are under this key of the .json members"
    )
    precompute.add_argument("--batch-size", type=int, help="images a forward pass (default: 32)")
    precompute.add_argument("--workers", type=int, help="decoding threads (default: one a core)")
    precompute.add_argument("--max-bad", help="end the run where more images are bad: 1%% of all, or a number")
    _pipe_flag(precompute)
    precompute.add_argument(
        "--unit-images",
        type=int,
        help="images a unit of work (default: 256 on a CPU; on a GPU 1024 with patches, 16384 without)",
    )

    _command(commands, "models", _models, "the models that open_clip has, and which are decomposed")

    info = _command(commands, "info", _info, "what a store holds")
    info.add_argument("store")
    info.add_argument("--bad", action="store_true", help="list the images set aside: row, key, shard, reason")
    info.add_argument("--notes", action="store_true", help="list captions and other members that could not be used")
    check = _command(commands, "verify", _verify, "files, records, sums and moments agree")
    check.add_argument("store")
    check.add_argument("--sources", action="store_true", help="read every image again and compare checksums")
    _shards_flag(check)
    mend = _command(commands, "repair", _repair, "compute damaged units again")
    mend.set_defaults(kept="finished units")
    mend.add_argument("store")
    mend.add_argument("shards", nargs="*", default=[], help="the shards, where they moved or their urls hold secrets")
    _weights_flag(mend)
    mend.add_argument("--batch-size", type=int, help="default: the store's")
    mend.add_argument("--device", help="default: the store's")
    mend.add_argument("--workers", type=int, help="decoding threads (default: one a core)")
    _pipe_flag(mend)

    spans = _command(commands, "textspan", _textspan, "describe every head by texts")
    spans.add_argument("store")
    spans.add_argument(
        "--texts",
        default="general",
        help="a file, one text or text<TAB>concept a line, or a pool of headspan's: general, world (default: general)",
    )
    spans.add_argument("--texts-per-head", type=int, default=60, help="default: %(default)s")
    spans.add_argument("--layers", help="default: all that are stored")
    spans.add_argument("--rank", type=int, default=80, help="default: %(default)s")
    spans.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="STORE",
        help="further stores of the same model; heads are described over the images of all",
    )
    _weights_flag(spans)
    _run_flag(spans)
    overwrite_flag(spans, "the labels and scores made from it")
    add_label_commands(partial(_command, commands), _run_flag)
    add_vote_commands(partial(_command, commands), _run_flag)
    report = _command(commands, "report", _report, "one HTML file, no network")
    report.add_argument("store")
    report.add_argument("--out", help="default: STORE-report.html beside the store")
    _shards_flag(report)
    _run_flag(report)
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=function)
    return command


def _pipe_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--allow-pipe", action="store_true", default=None, help="run shards that are `pipe:` commands")


def _shards_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shards", nargs="+", default=[], help="the shards where they lie now, if they moved: all")


def _weights_flag(command: argparse.ArgumentParser, text: str | None = None) -> None:
    moved = "where the model's weights lie now, if they moved: a file, a folder, or hf-hub:NAME to fetch them"
    command.add_argument("--weights", metavar="PATH", help=text or moved)


def _run_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", dest="run_name", help="name of the run (default: the pool's name, or the only run)")


if __name__ == "__main__":
    sys.exit(main())
