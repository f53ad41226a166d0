"""Choose the decoder of a run by the device that the tower is on."""

from __future__ import annotations

from collections.abc import Callable

from headspan.config import PrecomputeSettings, Preprocess
from headspan.decode.decoder import Decoder
from headspan.decode.routes import route
from headspan.decode.threads import ThreadDecoder
from headspan.shards.reader import ShardReader
from headspan.timing import StageTimes


def decoder_of(
    settings: PrecomputeSettings,
    preprocess: Preprocess,
    in_flight_bytes: int,
    open_source: Callable[[str], ShardReader],
    times: StageTimes,
) -> Decoder:
    """The decoder for `settings`, which keeps within `in_flight_bytes` and opens shards with `open_source`.

    Raises SettingsError if the library of the route cannot be loaded.
    """
    return ThreadDecoder(route(settings.decode), preprocess, in_flight_bytes, settings.workers, open_source, times)
