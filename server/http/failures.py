"""Exceptions to answers, each in the shape of the API that its path belongs to.

Wire formats: Anthropic's ``ErrorResponse`` below ``/v1/messages``, Ollama's ``{"error": text}`` below ``/api``,
OpenAI's everywhere else.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import Scope

from server.errors import ApiError, ClientGoneError, api_error
from tandem.errors import TandemError

REQUEST_ID = "request-id"
_ID_KEY = "tandem.request_id"
_HTTP_CODES = {
    404: ("unknown_url", "there is no {method} {path}"),
    405: ("method_not_allowed", "{path} does not take {method}"),
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# refusals that Anthropic's clients recover from: without a thread, their tool runners send the whole conversation
_ANTHROPIC_DETAILS = {"thread": {"error_code": "thread_unsupported_request"}}


def failure(error: Exception, scope: Scope) -> Response:
    """The answer to the request of ``scope`` that ``error`` has ended."""
    refusal = api_error(error)
    path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    if _is_below(path, "/v1/messages"):
        request_id = request_id_of(scope)
        headers = {**refusal.headers, REQUEST_ID: request_id}
        body = msgspec.json.encode({**anthropic_error(refusal), "request_id": request_id})
        return Response(body, refusal.status, headers, "application/json")
    if _is_below(path, "/api"):
        return Response(
            msgspec.json.encode(ollama_error(refusal)), refusal.status, refusal.headers, "application/json"
        )
    return refusal.response


def anthropic_error(error: ApiError) -> dict[str, object]:
    """The object of Anthropic's API, which has no place for the field to blame but the message."""
    kind = "api_error" if error.status >= 500 else "invalid_request_error"
    shown: dict[str, object] = {"type": _ANTHROPIC_TYPES.get(error.status, kind), "message": _named(error)}
    if error.code == "unsupported_parameter" and error.param in _ANTHROPIC_DETAILS:
        shown["details"] = _ANTHROPIC_DETAILS[error.param]
    return {"type": "error", "error": shown}


def ollama_error(error: ApiError) -> dict[str, object]:
    """The object of Ollama's API."""
    return {"error": _named(error)}


def request_id_of(scope: Scope) -> str:
    """The id that Anthropic's API gives a request; made when first asked for."""
    request_id: str = scope.setdefault(_ID_KEY, f"req_{uuid.uuid4().hex}")
    return request_id


def install_handlers(app: FastAPI) -> None:
    """Give every exception that can leave a route its answer."""

    async def answer(request: Request, error: Exception) -> Response:
        refusal = api_error(error)
        app.state.tandem.metrics.rejected(refusal.status, refusal.code)
        return failure(refusal, request.scope)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, text = _HTTP_CODES.get(error.status_code, ("http_error", str(error.detail)))
        message = text.format(method=request.method, path=request.scope["path"])
        headers = {"allow": _allowed(app, request.scope)} if error.status_code == 405 else error.headers
        return failure(ApiError(error.status_code, message, code, headers=headers), request.scope)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # only the log sees it

    app.add_exception_handler(ApiError, answer)
    app.add_exception_handler(TandemError, answer)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(Exception, answer)


def _allowed(app: FastAPI, scope: Scope) -> str:
    """The methods that the path takes: an exception of the router knows only those of one of its routes.

    They are those of the most specific template: ``/v1/responses/input_tokens`` is not the response of that id.
    """
    found = [route for route in _routes(app.router) if route.matches(scope)[0] != Match.NONE]
    own = min((route.path for route in found), key=lambda path: path.count("{"), default="")
    methods = {method for route in found if route.path == own for method in route.methods or ()}
    return ", ".join(sorted(methods))


def _routes(router: Router) -> Iterator[Route]:
    """All routes, those of included routers too, which FastAPI keeps within theirs."""
    for route in router.routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from _routes(included)
        elif isinstance(route, Route):
            yield route


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _named(error: ApiError) -> str:
    """The message, with the field to blame in it."""
    message = str(error)
    return message if error.param is None or error.param in message else f"{error.param}: {message}"
