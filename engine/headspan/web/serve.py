"""Serve stores until the process is interrupted."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from headspan.errors import SettingsError
from headspan.web.app import application
from headspan.web.state.explorer import Explorer
from headspan.web.state.model_processes import ModelProcesses
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads

FIRST_PORT = 8000
# Ports that are tried if the user names none.
_TRIED_PORTS = 20
# Requests that are being answered when the server ends have this long.
_LAST_SECONDS = 2


def serve(
    stores: Sequence[str | Path],
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
    download: bool = False,
    allowed_hosts: Sequence[str] = (),
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the explorer of `stores` until Ctrl-C.

    Args:
        stores: The folders of the stores.
        port: The port; by default the first free one from 8000.
        host: The address to listen on. Any but the default lets other machines read the stores.
        weights: As in `query_image`; `hf-hub:` may download.
        shards: Where the stores' shards are now, if they have moved.
        download: Whether weights that the stores name may be fetched.
        allowed_hosts: Further values of the header `Host`, with their ports, as through a tunnel or proxy.
        on_ready: Called with the address of the page once it is served.

    Raises StoreError if one of `stores` is none, and SettingsError if the port is in use or the host unknown.
    """
    explorer = Explorer(
        OpenStores(stores),
        ModelProcesses(weights, shards, download=download or str(weights or "").startswith("hf-hub:")),
        Uploads(),
        tuple(shards),
    )
    with _listening(host, port) as listener:
        found: int = listener.getsockname()[1]
        address = f"http://{_in_address(host)}:{found}/"
        app = application(explorer, [*_hosts(host, found), *allowed_hosts])
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        with suppress(KeyboardInterrupt):
            _Server(config, lambda: on_ready(address)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that tells when it answers requests."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def _listening(host: str, port: int | None) -> socket.socket:
    """A socket that listens at `port`, or else at the first free port from 8000."""
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
        except (UnicodeError, OverflowError) as error:
            raise SettingsError(f"{host}:{each}: is no address; choose another --host or --port") from error
    if port is not None:
        raise SettingsError(f"port {port} of {host} is in use; choose another --port, or leave it out")
    raise SettingsError(f"the ports {ports[0]} to {ports[-1]} of {host} are in use; choose another with --port")


def _hosts(host: str, port: int) -> list[str]:
    """The values of `Host` with which browsers ask for the page."""
    own = {"localhost", "127.0.0.1", "[::1]", _in_address(host)}
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            own.add(socket.gethostname().lower())
    return [f"{name}:{port}" for name in sorted(own)] + (sorted(own) if port == 80 else [])


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    import sys

    serve(sys.argv[2:], port=int(sys.argv[1]))
