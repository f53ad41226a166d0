"""The command `explore`: serve stores as linked pages in a web browser."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.numbers import ZERO_OR_MORE, Whole
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import shards_flag
from headspan.cli.terminal import OUT, say, tell
from headspan.errors import SettingsError
from headspan.io.disk_blocks import MOST_BYTES


def add_explore(section: Section) -> None:
    """Add `explore`."""
    command = section.add(
        "explore",
        _explore,
        "headspan explore run.zarr",
        "Prints the address of the page, and serves it until Ctrl-C. Nothing is written to the stores. The page and "
        "its HTTP API need the extra: pip install 'headspan[explore]'.",
    )
    command.add_argument("stores", nargs="+", metavar="STORE", help="the stores, folders or s3://bucket/run.zarr")
    address = command.add_argument_group("address")
    address.add_argument(
        "--port", type=Whole(0, 65_535), metavar="N", help="the port (default: the first free one from 8000)"
    )
    address.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, which only this machine reaches)",
    )
    address.add_argument(
        "--allow-host",
        nargs="+",
        default=[],
        metavar="HOST",
        help="further hosts, with ports, under which browsers reach the page, as through a tunnel: localhost:9000",
    )
    address.add_argument("--open", action="store_true", help="open the page in the web browser")
    sources = command.add_argument_group("where things are now")
    sources.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="PATH",
        help="where the models' weights are now, if they have moved: a file, a folder, or hf-hub:NAME to fetch them; "
        "one for all stores, or one for each",
    )
    sources.add_argument(
        "--download", action="store_true", help="fetch weights that the stores name and this machine does not have"
    )
    shards_flag(sources)
    buckets = command.add_argument_group("stores in buckets")
    buckets.add_argument(
        "--cache-gb",
        type=ZERO_OR_MORE,
        default=MOST_BYTES / 2**30,
        metavar="GB",
        help="how much of them is kept in the user's cache folder on disk, those parts that were used last "
        "(default: %(default)g; 0 keeps none)",
    )


def _explore(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    try:
        from headspan.web.serve import is_local, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "headspan":
            raise
        raise SettingsError(
            f"explore needs the package {error.name}; install it with pip install 'headspan[explore]'"
        ) from error

    def on_ready(address: str) -> None:
        if not is_local(flags.host):
            tell(f"other machines may reach {flags.host}, and whoever does sees the stores without a password")
        say(f"explorer ready at {address} (Ctrl-C ends it)")
        OUT.flush()
        if flags.open:
            import webbrowser

            webbrowser.open(address)

    serve(
        flags.stores,
        port=flags.port,
        host=flags.host,
        weights=flags.weights,
        shards=flags.shards,
        download=flags.download,
        cache_bytes=int(flags.cache_gb * 2**30),
        allowed_hosts=flags.allow_host,
        on_ready=on_ready,
    )
    return 0
