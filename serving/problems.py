"""Every refusal has one shape: {"detail": [{"loc": [...], "msg": "..."}]}. Nothing of the request is echoed."""

import logging
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from recsys.contracts.errors import RecsysError, StoreError
from serving.experiments import UnknownExperimentError
from serving.schemas import Problems, ReleaseList

logger = logging.getLogger(__name__)

Responses = dict[int | str, dict[str, Any]]
BAD_BODY: Final[Responses] = {
    400: {"model": Problems, "description": "The body is not JSON in UTF-8."},
    413: {"model": Problems, "description": "The body is too large."},
    415: {"model": Problems, "description": "The body is not said to be JSON."},
    422: {"model": Problems, "description": "The body breaks a rule; `loc` names the field."},
}
GUARDED: Final[Responses] = {
    401: {"model": Problems, "description": "No token, or one that is not known."},
    403: {"model": Problems, "description": "The token lacks the scope."},
    429: {"model": Problems, "description": "Too many requests of this client."},
}
UNDER_WAY: Final[Responses] = {
    202: {"model": ReleaseList, "description": "It takes longer: sessions are being encoded before the switch."}
}
REFUSED: Final[Responses] = {409: {"model": Problems, "description": "The release or the setting cannot be used."}}
NOT_FOUND: Final[Responses] = {404: {"model": Problems, "description": "Not known here."}}
STORE_TROUBLE: Final[Responses] = {503: {"model": Problems, "description": "The store could not keep them."}}


def problem(status: int, loc: Sequence[str | int], message: str) -> JSONResponse:
    """One problem as an answer."""
    return JSONResponse({"detail": [{"loc": list(loc), "msg": message}]}, status_code=status)


def refusal(error: HTTPException) -> JSONResponse:
    """A refusal as an answer, wherever it was raised."""
    answer = problem(error.status_code, ["request"], str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def invalid(errors: Sequence[Any]) -> JSONResponse:
    """What is wrong with a request, the first of it. The input is left out: it may be private, large, or not JSON."""
    detail = [{"loc": [_printable(part) for part in e["loc"]], "msg": _printable(e["msg"])} for e in errors[:20]]
    return JSONResponse({"detail": detail}, status_code=422)


def add_handlers(app: FastAPI) -> None:
    """Answer refusals and failures in the one shape."""

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(StoreError)
    async def store_trouble(_: Request, error: StoreError) -> JSONResponse:
        logger.error("%s", error)  # the database's own words may name hosts, tables and values
        return problem(503, ["store"], "the store cannot be used at the moment; try again later")

    @app.exception_handler(UnknownExperimentError)
    async def unknown(_: Request, error: UnknownExperimentError) -> JSONResponse:
        return problem(404, ["request"], str(error))

    @app.exception_handler(RecsysError)
    async def unusable(_: Request, error: RecsysError) -> JSONResponse:
        return problem(409, ["request"], str(error))

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return problem(500, ["server"], "internal error; the server's log says more")


def _printable(part: Any) -> Any:
    return part.encode("utf-8", "replace").decode() if isinstance(part, str) else part
