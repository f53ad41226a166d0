"""Serve stores until the process is interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import uvicorn

from headspan.web.app import application
from headspan.web.state.explorer import Explorer
from headspan.web.state.in_process import InProcess
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads


def serve(
    stores: Sequence[str | Path],
    *,
    port: int = 8000,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> None:
    """Serve the explorer of `stores` on 127.0.0.1, until Ctrl-C."""
    explorer = Explorer(OpenStores(stores), InProcess(weights, shards), Uploads(), tuple(shards))
    uvicorn.run(application(explorer), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    import sys

    serve(sys.argv[2:], port=int(sys.argv[1]))
