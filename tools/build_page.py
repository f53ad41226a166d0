"""Build the explorer's page: `python -m tools.build_page` compiles `web/page` of the engine to `web/static`.

It needs Node 20 or newer and, on the first run, the npm registry. The build's record, `static/build.json`, holds
checksums of the page's sources and of the HTTP API's answers and parameters. A test compares them with the files beside
it, so that a build that is older than its sources is noticed without Node. `--types` only writes `src/api/types.ts`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "engine" / "headspan" / "web" / "page"
STATIC = PAGE.parent / "static"
RECORD = STATIC / "build.json"
TYPES = "src/api/types.ts"
# What the page is built from, besides everything in src/.
SETTINGS = (".npmrc", "index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.js")


def openapi() -> dict[str, Any]:
    """The description of the explorer's HTTP API, without its release number. No server is started."""
    from headspan.web.app import application
    from headspan.web.state.explorer import Explorer
    from headspan.web.state.model_processes import ModelProcesses
    from headspan.web.state.open_stores import OpenStores
    from headspan.web.state.uploads import Uploads

    described = application(Explorer(OpenStores([]), ModelProcesses(), Uploads())).openapi()
    del described["info"]["version"]
    return described


def checksum_of_sources() -> str:
    """SHA-256 over the names and contents of the page's sources."""
    found = hashlib.sha256()
    sources = [PAGE / name for name in SETTINGS] + [path for path in (PAGE / "src").rglob("*") if path.is_file()]
    for path in sorted(sources):
        contents = path.read_bytes()
        found.update(f"{path.relative_to(PAGE).as_posix()} {len(contents)}\n".encode())
        found.update(contents)
    return found.hexdigest()


def checksum_of_api() -> str:
    """SHA-256 over what the page's types are made of: the fields of all answers, and the parameters of all addresses.

    They are read from the sources, since their OpenAPI document differs between releases of FastAPI and pydantic.
    """
    found = hashlib.sha256()
    for folder in ("answers", "routes"):
        for path in sorted((PAGE.parent / folder).glob("*.py")):
            for line in _declared(path.read_text()):
                found.update(f"{path.name}: {line}\n".encode())
    return found.hexdigest()


def _declared(source: str) -> Iterator[str]:
    """Constants, fields of classes, and signatures of functions with decorators; no docstrings and no bodies."""
    # The text itself, since what `ast.unparse` writes differs between releases of Python.
    for node in ast.parse(source).body:
        parts: list[ast.AST] = []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            parts = [node]
        elif isinstance(node, ast.ClassDef):
            parts = [*node.bases, *(each for each in node.body if isinstance(each, ast.AnnAssign))]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.decorator_list:
            parts = [*node.decorator_list, *node.args.args, *node.args.defaults, *filter(None, [node.returns])]
        if parts:
            yield f"{getattr(node, 'name', '')} {[ast.get_source_segment(source, part) for part in parts]}"


def write_types() -> None:
    """Write the TypeScript types of the HTTP API's answers."""
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "openapi.json"
        # openapi-typescript expects a release number.
        document = openapi()
        document["info"]["version"] = "0"
        described.write_text(json.dumps(document))
        _run("npx", "openapi-typescript", str(described), "--root-types", "--root-types-no-schema-prefix", "-o", TYPES)


def build() -> None:
    """Install what the build needs, write the types, check the page, build it, and record what it was built from."""
    if not (PAGE / "node_modules" / ".package-lock.json").exists():
        _run("npm", "ci")
    write_types()
    _run("npm", "run", "check")
    _run("npm", "run", "build")
    record = {"sources": checksum_of_sources(), "api": checksum_of_api()}
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


def _run(*command: str) -> None:
    subprocess.run(command, cwd=PAGE, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the explorer's page.")
    parser.add_argument("--types", action="store_true", help="only write the types of the HTTP API's answers")
    if parser.parse_args().types:
        write_types()
    else:
        build()
