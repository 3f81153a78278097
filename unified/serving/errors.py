"""OpenAI's error object, whatever goes wrong: unknown paths and bad bodies too."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from unified.serving.engine import Busy
from unified.serving.jobs import Failed

KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 504: "timeout"}
REQUEST_ID = "x-request-id"
NO_PATH = "Not Found: the API is under /v1, and /docs lists its paths"
LONGEST = 500  # characters of what pydantic says, which may repeat a part's type
FAILURES = {"timeout": 504, "stopped": 503, "cancelled": 499, "error": 500}  # by `Failed.reason`


class ErrorBody(BaseModel):
    """What went wrong: in words, and in ones that programs compare."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    error: ErrorBody


class ApiError(Exception):
    """An answer other than 200. `param` is the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = KINDS.get(status, "invalid_request_error")
        self.status, self.headers = status, dict(headers or {})
        self.body = ErrorBody(message=message, type=kind, param=param, code=code or CODES.get(status))

    def content(self) -> dict[str, Any]:
        """The error object as JSON."""
        return ErrorObject(error=self.body).model_dump()

    def response(self) -> JSONResponse:
        """As an HTTP response."""
        return JSONResponse(self.content(), self.status, self.headers)


def unsupported(param: str, why: str) -> ApiError:
    """What this model cannot do, and would not do harmlessly."""
    return ApiError(400, f"{param}: {why}", param, "unsupported_value")


def of_busy(busy: Busy) -> ApiError:
    """A full queue."""
    headers = {"Retry-After": str(busy.retry_after)}
    return ApiError(429, str(busy), code="queue_full", headers=headers)


def of_failure(failed: Failed) -> ApiError:
    """An answer that the engine could not finish."""
    return ApiError(FAILURES[failed.reason], failed.message, code=failed.reason)


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong in a request's body; the deepest of a field that may be this or that."""
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    places = [place_of(one, error.body) for one in found]
    within = [number for number, place in enumerate(places) if place[: len(places[0])] == places[0]]
    deepest = max(within, key=lambda number: len(places[number]))
    field = ".".join(places[deepest]) or "body"
    return ApiError(422, f"{field}: {found[deepest]['msg']}"[:LONGEST], field, found[deepest]["type"])


def place_of(found: Mapping[str, Any], body: Any) -> list[str]:
    """Where in `body` an error is; pydantic's path also names the kinds that were tried, which are left out."""
    place, last = [], len(found["loc"]) - 1
    for depth, part in enumerate(found["loc"]):
        is_there = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if is_there:
            body = body[part]
        if is_there or (depth == last and found["type"] == "missing" and part != "body"):
            place.append(str(part))
    return place


def answer_errors(app: FastAPI) -> None:
    """Let `app` answer all errors by OpenAI's object."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(error).response()

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        """A fault of the server's; what it is stands in its log. Middleware does not see this answer."""
        headers = {REQUEST_ID: request.state.request_id}
        return ApiError(500, "the server met an error", code="error", headers=headers).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        detail = NO_PATH if error.status_code == 404 else str(error.detail)
        return ApiError(error.status_code, detail, headers=error.headers).response()
