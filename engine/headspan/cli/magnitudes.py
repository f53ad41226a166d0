"""The magnitudes of heads in words, and the table of `headspan info --heads`."""

from __future__ import annotations

import math

from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import percent
from headspan.head_names import head_name
from headspan.store.magnitudes import Magnitudes

# The heads of the columns that `magnitude_cells` fills.
MAGNITUDE_COLUMNS = ("variance", "squared length")
# Shares below this are not 0, but print as if they were.
_LEAST = 5e-5
_MEANING = (
    "variance: of a head's contributions, as a share of the unit embeddings' variance",
    "squared length: mean squared length of a head's contributions, as a share of the unit embeddings'",
    "contributions correlate, so shares may exceed 100 % and need not sum to 100 %; a layer's are sums over its heads",
)


def share_in_percent(share: float) -> str:
    """Return a share as a percentage with two decimals; `-` for NaN."""
    if math.isnan(share):
        return "-"
    return "< 0.01 %" if 0 < share < _LEAST else percent(share, 2)


def magnitude_cells(magnitudes: Magnitudes, layer: int, head: int) -> tuple[str, str]:
    """Return the cells of a head in a table with the MAGNITUDE_COLUMNS."""
    variance, squared_length = map(share_in_percent, magnitudes.of(layer, head))
    return variance, squared_length


def variance_in_words(magnitudes: Magnitudes, layer: int, head: int) -> str:
    """Return a head's magnitude for a listing, such as `1.25 % of the variance`."""
    return f"{magnitude_cells(magnitudes, layer, head)[0]} of the variance"


def print_magnitudes(found: Magnitudes) -> None:
    """Print the magnitude of every stored layer and head."""
    layers = [(f"L{layer}", *map(share_in_percent, sums)) for layer, sums in found.by_layer().items()]
    heads = [
        (head_name(layer, head), *magnitude_cells(found, layer, head))
        for layer in found.layers
        for head in range(found.variance_share.shape[1])
    ]
    print_table([("layer", *MAGNITUDE_COLUMNS), *layers])
    say("")
    print_table([("head", *MAGNITUDE_COLUMNS), *heads])
    for line in _MEANING:
        say(line)
