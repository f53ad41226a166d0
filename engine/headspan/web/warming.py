"""Load a store's model once the first answer about the store is sent, so that it does not delay the first screen."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from headspan.errors import HeadspanError
from headspan.web.guard import API
from headspan.web.state.explorer import Explorer

_STORES = f"{API}stores/"
# A screen asks several questions at once; the model is loaded after those that come within this time.
_DELAY_SECONDS = 0.5


class Warming:
    """An application in front of another one, which begins to load the models of the stores that are asked about."""

    def __init__(self, app: ASGIApp, explorer: Explorer) -> None:
        self._app, self._explorer = app, explorer
        self._warmed: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, send)
        if scope["type"] == "http" and scope["path"].startswith(_STORES):
            name = unquote(scope["path"].removeprefix(_STORES).partition("/")[0])
            if name in self._explorer.stores.names and name not in self._warmed:
                self._warmed.add(name)
                asyncio.get_running_loop().call_later(_DELAY_SECONDS, self._warm, name)

    def _warm(self, name: str) -> None:
        try:
            self._explorer.model.warm(self._explorer.stores.get(name))
        except HeadspanError:
            # The store is gone; a request about it says so.
            self._warmed.discard(name)
