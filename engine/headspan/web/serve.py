"""Serve stores until the process is interrupted."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from threadpoolctl import threadpool_limits

from headspan.errors import SettingsError, counted
from headspan.explore.nearest.kept_sketches import share_sketches
from headspan.io.disk_blocks import MOST_BYTES
from headspan.run.planned_sources import places
from headspan.web.allocator import share_one_heap
from headspan.web.app import application
from headspan.web.bounded_heads import BoundedHeads
from headspan.web.guard import ANY_ADDRESS
from headspan.web.searches.search_processes import SearchProcesses
from headspan.web.state.explorer import Explorer
from headspan.web.state.model_processes import ModelProcesses
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads

FIRST_PORT = 8000
# Ports that are tried if the user names none.
_TRIED_PORTS = 20
# Requests that are being answered when the server ends have this long.
_LAST_SECONDS = 2
# How long a thread that computes keeps the interpreter from one that reads requests and sends answers. An answer needs
# the interpreter between any two of NumPy's loops, so Python's own 5 milliseconds leave cores idle.
_SWITCH_SECONDS = 0.0005
_EACH = "name one for all stores, or one for each, in their order"


def serve(
    stores: Sequence[str | Path],
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    weights: Sequence[str | Path] = (),
    shards: Sequence[str] = (),
    download: bool = False,
    cache_bytes: int = MOST_BYTES,
    allowed_hosts: Sequence[str] = (),
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the explorer of `stores` until Ctrl-C.

    Args:
        stores: The folders of the stores, or their URLs in buckets.
        port: The port; by default the first free one from 8000.
        host: The address to listen on. Any but the default lets other machines read the stores.
        weights: As in `query_image`, one for all stores or one for each; `hf-hub:` may download.
        shards: Where the stores' shards are now, if they have moved; the stores have the same ones.
        download: Whether weights that the stores name may be fetched.
        cache_bytes: How much of stores in buckets is kept in the user's cache folder; those used last are kept.
        allowed_hosts: Further values of the header `Host`, with their ports, as through a tunnel or proxy.
        on_ready: Called with the address of the page once it is served.

    Raises StoreError if one of `stores` is none, SourceError if `shards` are too many or too few, and SettingsError if
    `weights` are, if the port is in use, or if the host is unknown.
    """
    share_one_heap()
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Requests are answered side by side, and threads of BLAS would spin while they wait for their next product.
    threadpool_limits(1, "blas")
    opened = OpenStores(stores, cache_bytes)
    if len(weights) not in (0, 1, len(stores)):
        raise SettingsError(f"{counted(len(weights), 'place')} of weights for {counted(len(stores), 'store')}; {_EACH}")
    for name in opened.names:
        store = opened.get(name)
        places(store.shards(), store.attributes, shards)
    each = [*weights] * len(stores) if len(weights) == 1 else weights
    known = {opened.get(name).path.absolute(): weight for name, weight in zip(opened.names, each, strict=False)}
    models = ModelProcesses(known, shards, download=download, cache_bytes=cache_bytes)
    share_sketches()
    with SearchProcesses() as searches, _listening(host, port) as listener:
        explorer = Explorer(opened, models, Uploads(), tuple(shards), searches=searches)
        found: int = listener.getsockname()[1]
        address = f"http://{_in_address(host)}:{found}/"
        app = application(explorer, [*_hosts(host, found), *allowed_hosts])
        config = uvicorn.Config(
            app,
            http=BoundedHeads,
            ws="none",
            proxy_headers=False,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        with suppress(KeyboardInterrupt):
            _Server(config, lambda: on_ready(address), explorer.model.close).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that tells when it answers requests, and when it is about to end."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after a signal. Requests that wait for a model are refused first; others have two seconds."""
        # What is cancelled then is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        threading.Thread(target=self._on_end).start()
        super().handle_exit(sig, frame)


def _listening(host: str, port: int | None) -> socket.socket:
    """A socket that listens at `port`, or else at the first free port from 8000."""
    if port is not None and not 0 <= port < 1 << 16:
        raise SettingsError(f"port {port} is out of range; choose one from 1 to 65535, or 0 for any free one")
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + _TRIED_PORTS)
    for each in ports:
        try:
            (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, each, type=socket.SOCK_STREAM)
            listener = socket.socket(family, kind, protocol)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(128)
            except BaseException:
                listener.close()
                raise
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SettingsError(
                    f"{host}:{each}: cannot be listened on ({error.strerror or error}); choose another --host or --port"
                ) from error
        except UnicodeError as error:
            raise SettingsError(f"{host}: is no address; choose another --host") from error
    if port is not None:
        raise SettingsError(f"port {port} of {host} is in use; choose another --port, or leave it out")
    raise SettingsError(f"the ports {ports[0]} to {ports[-1]} of {host} are in use; choose another with --port")


def _hosts(host: str, port: int) -> list[str]:
    """The values of `Host` with which browsers ask for the page."""
    own = sorted({"localhost", "127.0.0.1", "[::1]", _in_address(host)} | ({ANY_ADDRESS} if _is_any(host) else set()))
    return [f"{name}:{port}" for name in own] + (own if port == 80 else [])


def is_local(host: str) -> bool:
    """Whether only this machine reaches that host."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_any(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
