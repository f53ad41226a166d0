"""The command `spectra`: what the heads' weights can write, described by texts, beside the images."""

from __future__ import annotations

import argparse

import numpy as np

from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.magnitudes import share_in_percent
from headspan.cli.numbers import FROM_1, ZERO_OR_MORE
from headspan.cli.progress import ProgressPrinter
from headspan.cli.selection_flags import selected, selection_flags
from headspan.cli.shared_flags import store_argument, weights_flag
from headspan.cli.terminal import say
from headspan.errors import percent
from headspan.explore.heads.spectra import COHERENCE, COUNT, spectra
from headspan.head_names import head_name
from headspan.store.reader import Store

_DIRECTIONS_SHOWN = 3


def add_spectra(section: Section) -> None:
    """Add `spectra`."""
    command = section.add(
        "spectra",
        _spectra,
        "headspan spectra run.zarr --head L5.H1",
        "The singular directions of a head's value-output matrix in the joint space are what its weights can write. "
        "Each is described by texts of a pool, along it (+) and against it (-), beside its share of the variance of "
        "the head's contributions over the images. The model is loaded.",
    )
    store_argument(command)
    texts = command.add_argument_group("texts")
    texts.add_argument(
        "--texts", metavar="POOL", default="general", help="the pool of texts, as in textspan (default: general)"
    )
    texts.add_argument(
        "--texts-per-direction",
        type=FROM_1,
        metavar="N",
        default=COUNT,
        help="texts for each direction (default: %(default)s)",
    )
    texts.add_argument(
        "--coherence",
        type=ZERO_OR_MORE,
        metavar="LAMBDA",
        default=COHERENCE,
        help="weight of a text's likeness to the texts chosen before (default: %(default)s)",
    )
    weights_flag(texts)
    selection_flags(command)
    result = command.add_argument_group("result")
    head_flag(result)
    result.add_argument(
        "--directions",
        type=FROM_1,
        metavar="N",
        default=_DIRECTIONS_SHOWN,
        help="directions of a head that are printed (default: %(default)s); files have all",
    )
    result.add_argument(
        "--by-variance",
        action="store_true",
        help="print the directions with the largest share of the variance, not the largest singular values",
    )
    export_flags(command)


def _spectra(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    heads = chosen_heads(flags.heads, store.layers, store.heads_per_layer)
    found = spectra(
        store,
        heads if flags.heads else None,
        flags.texts,
        flags.texts_per_direction,
        flags.coherence,
        progress,
        weights=flags.weights,
        images=selected(store, flags, progress),
    )
    progress.close()
    if export(flags, found):
        return 0
    weight = found.singular_values**2
    weight /= weight.sum(axis=1, keepdims=True)
    for place, head in enumerate(found.heads):
        say(f"{head_name(*head)}  its directions cover {share_in_percent(found.covered[place])} of its variance")
        order = np.argsort(-found.share[place], kind="stable") if flags.by_variance else range(weight.shape[1])
        for direction in list(order)[: flags.directions]:
            share = share_in_percent(found.share[place, direction])
            say(
                f"  {direction}: {percent(weight[place, direction])} of the squared singular values, {share} of the "
                "variance"
            )
            for side, sign in enumerate("+-"):
                texts = "; ".join(found.texts(*head, int(direction), against=bool(side))) or "no text matches"
                say(f"    {sign} {found.fidelity[place, direction, side]:.2f}  {texts}")
    if np.isnan(found.covered).any():
        say("-: contributions that do not vary, or are of one image, have no variance to share out")
    low, high = np.quantile(found.random, [0.5, 0.95])
    say(
        f"numbers after + and -: cosine of the direction and its texts; a random direction's is {low:.2f}, and below "
        f"{high:.2f} for 95 % of them"
    )
    return 0
