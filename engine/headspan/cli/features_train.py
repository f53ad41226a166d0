"""The command `features train`: learn a dictionary of sparse features from stores."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from headspan.cli.commands import described
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import ABOVE_ZERO, FROM_0, FROM_1, ZERO_OR_MORE
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import Flags, weights_flag
from headspan.cli.terminal import say
from headspan.config import parse_layers
from headspan.errors import SettingsError, counted
from headspan.features.learners.kinds import LEARNERS
from headspan.features.pairs.space import EMBEDDING, HEADS, KINDS
from headspan.head_names import parse_heads
from headspan.store.reader import Store

if TYPE_CHECKING:
    from headspan.features.training.dictionary import Dictionary

_DETAILS = (
    "Pairs are the images of the stores with their captions, which are embedded once and kept. The folder of the "
    "dictionary has SAELens' files. A training that was interrupted continues with the same command."
)


def add_train(parser: Parser, text: str) -> None:
    """Describe `features train`, and add its flags."""
    command = described(parser, text, _train, "headspan features train run.zarr --out run.features", _DETAILS)
    command.set_defaults(kept="checkpoints")
    command.add_argument("stores", nargs="+", metavar="STORE", help="stores of one model")
    command.add_argument("--out", required=True, metavar="FOLDER", help="the folder of the dictionary")
    what = command.add_argument_group("what is learned from")
    what.add_argument(
        "--space", choices=KINDS, help="embedding, heads or patches (default: embedding, or heads with --head)"
    )
    pairs_flags(what)
    learner = command.add_argument_group("learner")
    learner.add_argument(
        "--learner",
        choices=LEARNERS,
        default="batch_topk",
        metavar="LEARNER",
        help=f"one of {', '.join(LEARNERS)} (default: batch_topk)",
    )
    learner.add_argument(
        "--features", type=FROM_1, metavar="N", help="size of the dictionary (default: 16 times the width)"
    )
    learner.add_argument("--k", type=FROM_1, metavar="N", help="active features of a vector (default: by learner)")
    learner.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="further",
        help="another setting of the learner, such as aux_k=256; may be repeated",
    )
    how = command.add_argument_group("training")
    how.add_argument(
        "--epochs", type=FROM_1, metavar="N", help="passes over the pairs (default: 5, at least 2,000 steps)"
    )
    how.add_argument("--steps", type=FROM_1, metavar="N", help="steps, instead of --epochs")
    how.add_argument("--batch-size", type=FROM_1, metavar="N", help="pairs in a step (default: 1024)")
    how.add_argument("--lr", type=ABOVE_ZERO, metavar="RATE", help="largest learning rate (default: 4e-4)")
    how.add_argument("--weight-decay", type=ZERO_OR_MORE, metavar="X", help="AdamW's weight decay (default: 0)")
    how.add_argument(
        "--clip", type=ZERO_OR_MORE, metavar="X", help="length that gradients are cut to; 0 for none (default: 1)"
    )
    how.add_argument("--seed", type=FROM_0, default=0, metavar="N", help="seed of weights, order and drawing (0)")
    how.add_argument("--precision", default="auto", help="fp32 or bf16 (default: bf16 on a GPU)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")


def pairs_flags(flags: Flags) -> None:
    """Add the flags that choose pairs: heads, captions, and where vectors and weights are."""
    flags.add_argument(
        "--head",
        action="append",
        metavar="HEAD",
        dest="heads",
        help="learn from this head, as in L22.H13; may be repeated",
    )
    flags.add_argument("--layers", metavar="LAYERS", help="learn from all heads of these layers, as in 23 or last2")
    flags.add_argument("--images-only", action="store_true", help="learn from images alone, without captions")
    flags.add_argument(
        "--keep-captions",
        metavar="FOLDER",
        help="where the vectors of captions are kept (default: the user's cache folder)",
    )
    weights_flag(flags)


def _train(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    if flags.heads and flags.layers is not None:
        raise SettingsError("--head and --layers both choose heads; give one of them")
    settings = {name: value for name in ("features", "k") if (value := getattr(flags, name)) is not None}
    for each in flags.further:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set {each}: write NAME=VALUE, as in aux_k=256")
        if name in settings:
            raise SettingsError(f"--set {each}: {name} is given twice; give it once")
        settings[name] = _value(value)
    stores = [Store(each) for each in flags.stores]
    chosen = bool(flags.heads) or flags.layers is not None
    space = flags.space or (HEADS if chosen else EMBEDDING)
    # Imported here, since it takes torch a second to load, and wrong flags are refused before.
    from headspan.features.training.train import train

    found = train(
        stores,
        flags.out,
        flags.learner,
        space=space,
        heads=parse_heads(flags.heads, "--head") if flags.heads else None,
        layers=None if flags.layers is None else parse_layers(flags.layers, stores[0].all_layers),
        captions=not flags.images_only,
        seed=flags.seed,
        epochs=flags.epochs,
        steps=flags.steps,
        batch=flags.batch_size,
        lr=flags.lr,
        weight_decay=flags.weight_decay,
        clip=flags.clip,
        precision=flags.precision,
        device=flags.device,
        keep=flags.keep_captions,
        weights=flags.weights,
        on_progress=progress,
        **settings,
    )
    progress.close()
    _print(found)
    return 0


def _value(text: str) -> Any:
    """A setting's value: a number or a truth value if it is written as one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print(found: Dictionary) -> None:
    trained = found.trained
    say(f"{counted(found.features, 'feature')} of {found.space}, learned by {found.kind}")
    if "training" in trained:
        settings, pairs = trained["training"], trained["pairs"]
        with_texts = " of images and captions" if trained["texts"] else ""
        say(f"{counted(settings['steps'], 'step')} of {settings['batch']:,} of {counted(pairs, 'pair')}{with_texts}")
    say(f"dictionary written to {found.folder} (sha256 {found.sha256[:12]})")
