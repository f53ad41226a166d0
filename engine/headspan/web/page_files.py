"""The files of the explorer's page, as they are built into the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(str(files("headspan.web") / "static"))


class PageFiles(StaticFiles):
    """The page at `/`, and its files below it."""

    def __init__(self, folder: Path = FOLDER) -> None:
        super().__init__(directory=folder, html=True, check_dir=False)
        self._folder = folder

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file at `path`."""
        if not (self._folder / "index.html").is_file():
            raise HTTPException(404, "the page is not built; run `python -m tools.build_page` in headspan's repository")
        response = await super().get_response(path, scope)
        # Files with a checksum in their names never change; the page itself does with every version.
        response.headers["Cache-Control"] = "max-age=31536000, immutable" if path.startswith("assets/") else "no-cache"
        return response
