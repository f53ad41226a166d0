"""The explorer's application: its routes, its page, and how it answers errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from headspan.web.failures import add_handlers
from headspan.web.guard import Guard
from headspan.web.page_files import PageFiles
from headspan.web.routes import (
    api_page,
    categories,
    comparisons,
    descriptions,
    features,
    heads,
    images,
    maps,
    neighbours,
    pictures,
    planes,
    selections,
    status,
    stores,
    texts,
    uploads,
    what_if,
)
from headspan.web.state.explorer import Explorer
from headspan.web.state.turns import Turns
from headspan.web.warming import Warming

ROUTERS = (
    status.router,
    pictures.router,
    uploads.router,
    stores.router,
    heads.router,
    planes.router,
    categories.router,
    texts.router,
    selections.router,
    images.router,
    maps.router,
    neighbours.router,
    what_if.router,
    comparisons.router,
    features.router,
    descriptions.router,
)

# What the clients of tests send as `Host`; `serve` passes what browsers send.
_TEST_HOSTS = ("testserver", "localhost")
# Files of up to 32 MB that are received and decoded at once; further ones wait.
_UPLOADS = 8


def application(explorer: Explorer, hosts: Collection[str] = _TEST_HOSTS) -> FastAPI:
    """The application that serves the page, its HTTP API below `/api`, and the API's description.

    `hosts` are the values of the header `Host` that it answers to, with their ports.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        explorer.model.close()

    app = FastAPI(
        title="headspan explorer",
        description="What the heads of an image encoder do, from the stores that `headspan explore` was started with.",
        version=version("headspan"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        # As they are: `include_router` would make all of them again while the first screen waits.
        routes=[route for router in (*ROUTERS, api_page.router) for route in router.routes],
    )
    app.state.explorer = explorer
    add_handlers(app)
    app.mount("/", PageFiles(), name="page")
    app.add_middleware(Turns, path="/api/stores/")
    # Files that are dropped in are in memory while they arrive.
    app.add_middleware(Turns, path="/api/stores/", at_once=_UPLOADS, method="POST")
    app.add_middleware(Warming, explorer=explorer)
    # The last one added is the first to see a request.
    app.add_middleware(Guard, hosts=hosts)
    return app
