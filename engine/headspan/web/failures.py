"""Every error of a request as one sentence: the handlers that turn exceptions into `Failure` answers."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from headspan.errors import HeadspanError, ModelError, shortened
from headspan.escapes import escaped
from headspan.web.answers.common import Failure
from headspan.web.refusals import Missing
from headspan.web.state.model import ModelLoading

# Letters of a value that a sentence repeats.
_SHOWN = 60

# The schema is named and not given as a model, of which FastAPI would make one for every route and error.
_ANSWER = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Failure.__name__}"}}}
# The errors that the API's description declares for every route.
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The question cannot be answered with this store.", "content": _ANSWER},
    404: {"description": "The address names a store, head or image that is not here.", "content": _ANSWER},
    422: {"description": "A parameter is missing, or has a value that it cannot have.", "content": _ANSWER},
    503: {"description": "The model is needed, and is being loaded or cannot be loaded.", "content": _ANSWER},
}


def add_handlers(app: FastAPI) -> None:
    """Let the application answer every error with a `Failure`."""
    app.add_exception_handler(HeadspanError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)


def failure(
    status: int, sentence: str, kind: str = "refused", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer with that status and sentence."""
    return JSONResponse(Failure(error=sentence, kind=kind).model_dump(), status, headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ModelError):
        return failure(503, str(error), "model_loading" if isinstance(error, ModelLoading) else "model_failed")
    return failure(404 if isinstance(error, Missing) else 400, str(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return failure(422, "; ".join(map(_in_words, error.errors()[:3])))


async def _of_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = shortened(escaped(request.url.path), _SHOWN)
    sentence = error.detail
    if sentence == HTTPStatus(error.status_code).phrase:
        what = f"does not accept {request.method}" if error.status_code == 405 else "is no address of the explorer"
        sentence = f"{where} {what}; /api/docs lists all of them"
    return failure(error.status_code, sentence, headers=error.headers)


def _in_words(problem: Mapping[str, Any]) -> str:
    """A problem of pydantic's as a clause: which parameter, what came, what was expected."""
    kind, *names = map(str, problem["loc"])
    name = ".".join(names) or kind
    expected = str(problem["msg"]).removeprefix("Value error, ")
    expected = expected[:1].lower() + expected[1:]
    if problem["type"] == "missing":
        return f"{name}: is missing from the {kind}; /api/docs lists the parameters"
    came = shortened(escaped(repr(problem.get("input"))), _SHOWN)
    return f"{name}: {came} came, but {expected}"
