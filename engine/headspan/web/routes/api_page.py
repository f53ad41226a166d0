"""The description of the HTTP API as a page that needs no network and no script."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

router = APIRouter(prefix="/api", include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { margin: 2rem 0; border-top: 1px solid #8888; }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
"""


@router.get("/docs")
def api_page(request: Request) -> HTMLResponse:
    """Every address with its parameters and answers."""
    described = request.app.openapi()
    parts = [
        _operation(path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    title = f"{described['info']['title']} {described['info']['version']}: HTTP API"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="docs.css"></head>'
        f"<body><main><h1>{escape(title)}</h1><p>{escape(described['info']['description'])} Images are named by their "
        'rows. <a href="openapi.json">openapi.json</a> is the same for programs.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


@router.get("/docs.css")
def style() -> Response:
    """The page's style; the content security policy allows none within the page."""
    return Response(_STYLE, media_type="text/css")


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{escape(each['in'])}"
        f"{', required' if each.get('required') else ''}</td><td><code>{escape(_type(each['schema']))}</code></td>"
        f"<td>{escape(each.get('description', ''))}</td></tr>"
        for each in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td><code>{escape(_answer(answer))}</code></td>"
        f"<td>{escape(answer.get('description', ''))}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    table = f"<h3>Parameters</h3><table>{rows}</table>" if rows else ""
    return (
        f"<article><h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
        f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>{table}"
        f"<h3>Answers</h3><table>{answers}</table></article>"
    )


def _answer(answer: dict[str, Any]) -> str:
    kinds = answer.get("content", {})
    return ", ".join(_type(content.get("schema", {})) or kind for kind, content in kinds.items())


def _type(schema: dict[str, Any]) -> str:
    """A schema in short."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = {"minimum": "from", "maximum": "to", "minLength": "letters from", "maxLength": "letters to"}
    said = [f"{word} {schema[name]}" for name, word in limits.items() if name in schema]
    default = [f"default {schema['default']}"] if schema.get("default") is not None else []
    return ", ".join([str(schema.get("type", "")), *said, *default])
