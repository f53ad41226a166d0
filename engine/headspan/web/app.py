"""The explorer's application: its routes, its page, and how it answers errors."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from headspan.errors import HeadspanError, ModelError
from headspan.web.asked import Missing
from headspan.web.routes import images, maps, neighbours, status, what_if
from headspan.web.state.explorer import Explorer

ROUTERS = (status.router, images.router, maps.router, neighbours.router, what_if.router)


def application(explorer: Explorer) -> FastAPI:
    """The application that serves the page, its HTTP API below `/api`, and the API's description."""
    app = FastAPI(
        title="headspan explorer", version=version("headspan"), openapi_url="/api/openapi.json", docs_url=None
    )
    app.state.explorer = explorer
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(HeadspanError, _refused)
    static = Path(str(files("headspan.web") / "static"))
    app.mount("/", StaticFiles(directory=static, html=True, check_dir=False), name="page")
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """One sentence, with the status that fits."""
    status_code = 404 if isinstance(error, Missing) else 503 if isinstance(error, ModelError) else 400
    kind = "model_failed" if isinstance(error, ModelError) else "refused"
    return JSONResponse({"error": str(error), "kind": kind}, status_code)
