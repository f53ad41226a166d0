"""The state of a running explorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headspan.explore.nearest.search import Answering, answered
from headspan.web.state.kept import Kept
from headspan.web.state.model import Model
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.pictures import Pictures
from headspan.web.state.uploads import Uploads


@dataclass(frozen=True)
class Explorer:
    """The stores that are shown, what answers questions about them, and the images that were dropped in."""

    stores: OpenStores
    model: Model
    uploads: Uploads
    # Where shards are now, if they have moved; given on the command line, never by a request.
    shards: Sequence[str] = ()
    pictures: Pictures = field(default_factory=Pictures)
    # Finds the nearest images.
    searches: Answering = answered
    # Answers and parts of answers, which stay as they are while a store shows the same images and results.
    kept: Kept = field(default_factory=Kept, compare=False)
