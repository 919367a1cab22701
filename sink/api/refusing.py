"""Errors as the API tells them: one shape, `schemas.http.Error`."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from policy.errors import PolicyError
from schemas.errors import SchemaError
from sink.errors import AbsentError, BusyError, QueryError, SinkError

STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (AbsentError, 404), (QueryError, 400), (SchemaError, 400), (PolicyError, 400), (BusyError, 503), (SinkError, 500),
)  # fmt: skip
MEANINGS = {
    400: "the question cannot be answered as it stands",
    404: "what the path names is not there",
    405: "the path takes another method",
    500: "the sink failed",
    503: "too many questions at once, or this one took too long: ask again",
}
"""HTTP status → what it says."""
REFUSED = (SinkError, SchemaError, PolicyError)
"""What a question may raise."""


def status_of(error: Exception) -> int:
    """The HTTP status of an error of REFUSED."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def refusal(error: Exception) -> JSONResponse:
    """Of an error of REFUSED."""
    status = status_of(error)
    said = {"error": " ".join(str(error).split()), "hint": getattr(error, "hint", ""),
            "exit": getattr(error, "exit_status", 2)}  # fmt: skip
    return JSONResponse(said, status, {"Retry-After": "1"} if status == 503 else None)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """Of a path or a method that is not there."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path
    what = {404: f"there is nothing at {path}", 405: f"{path} does not take {request.method}"}.get(status, "")
    hint = "GET /api/v1/openapi.json lists what there is"
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"error": what or MEANINGS.get(status, str(status)), "hint": hint, "exit": 2}, status, headers)


async def broken(request: Request, error: Exception) -> JSONResponse:
    """Of an exception nobody foresaw."""
    said = f"internal error: {type(error).__name__}: {' '.join(str(error).split())}"
    return JSONResponse({"error": said, "hint": "see the sink's log, and report it", "exit": 3}, 500)
