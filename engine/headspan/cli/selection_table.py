"""The table of heads over a selection of images beside the whole store."""

from __future__ import annotations

from headspan.cli.magnitudes import share_in_percent
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.explore.beside_store import BesideStore
from headspan.head_names import head_name

# Heads that the table has.
_HEADS = 10


def print_beside_store(found: BesideStore) -> None:
    """Print the heads that differ most from the whole store."""
    names = [head_name(layer, head) for layer, head in found.heads]
    rows: list[tuple[str, ...]] = [("head", "variance here", "in the store", "ratio", "shift", "label", "towards")]
    for place, name in list(enumerate(names))[:_HEADS]:
        shares = (share_in_percent(each[place]) for each in (found.variance_share, found.store_variance_share))
        words = found.labels[place] or "-", found.towards[place] or "-"
        rows.append((name, *shares, f"{found.ratio[place]:.2f}", f"{found.shift[place]:.2f}", *words))
    say(f"heads that differ most between these {found.spans.over} and the whole store:")
    print_table(rows, words=2)
    say(
        "variance: as a share of the embeddings'; shift: of the head's mean contribution, in standard deviations of "
        "the head over the store; towards: the text of the pool that the mean moves towards"
    )
