"""Errors on the wire: RFC 9457 problem details, always with a `hint`.

Rules kept: an answer names what happened and how to mend it; it never carries a stack trace, a request body, or a
token. Every `NatworkError` maps to one status by its class (`STATUS`), looked up along its ancestry. What nobody
foresaw is a bare 500: the text of such an error stays in the server's log.

`type` is `urn:natwork:problem:<name>` for our own errors, and `about:blank` (section 4.2.1) where the status says all.

Left out: `instance`; a problem is not a resource that could be fetched later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from natwork_ray.domain.values import encode, value
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    InputError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    StoreError,
    TimedOutError,
    UsageError,
    VerificationError,
)

MEDIA_TYPE = "application/problem+json"
# RefusedError is 409 and not 403: the caller's rights are fine, the state of quota, mode or capacity is not.
STATUS: dict[type[NatworkError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    RefusedError: 409,
    UsageError: 422,
    InputError: 422,
    ActionError: 502,
    TimedOutError: 503,
    StoreError: 503,
    PreconditionError: 503,
    VerificationError: 500,
    NatworkError: 500,
}
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_HINTS = {
    400: "send well-formed HTTP/1.1 with one Host header, and well-formed JSON",
    401: "send the header 'Authorization: Bearer TOKEN'; the token lies in <state_dir>/api-token",
    404: "/api/v1/openapi.json lists every path",
    405: "the Allow header lists the methods of this path",
    413: "send less at a time, or raise http.max_body_bytes",
    415: "send one of the media types that /api/v1/openapi.json lists",
    421: "address the server by a name in its allowed hosts",
    422: "compare with the schema in /api/v1/openapi.json",
    503: "try again in a moment",
}
_SHOWN_ERRORS = 8
_MAX_TEXT = 400
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@value
class Fault:
    """One thing wrong with a request: where (`body.granted`, `query.limit`), and what."""

    where: str
    what: str


@value
class Problem:
    """A problem detail (RFC 9457 section 3). `hint` says how to mend it; `errors` names each fault of a bad request."""

    type: str
    title: str
    status: int
    detail: str
    hint: str
    errors: tuple[Fault, ...] = ()


def problem(
    status: int,
    detail: str,
    hint: str = "",
    *,
    kind: str = "",
    errors: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response. Without `kind` its type is `about:blank`; without `hint` the status gives one."""
    body = Problem(
        type=f"urn:natwork:problem:{kind}" if kind else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=printable(detail),
        hint=printable(hint or _HINTS.get(status, "docs/http.md describes every route")),
        errors=tuple(errors),
    )
    more = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        more.setdefault("Retry-After", "1")
    if status == HTTPStatus.UNAUTHORIZED:
        more.setdefault("WWW-Authenticate", 'Bearer realm="natwork"')
    return Response(encode(body), status, {**_HEADERS, **more}, MEDIA_TYPE)


def of_error(error: NatworkError) -> Response:
    """The problem of one of our own errors."""
    status = next(STATUS[c] for c in type(error).__mro__ if c in STATUS)
    return problem(status, error.what, error.hint, kind=kind_of(type(error)))


def kind_of(error: type[NatworkError]) -> str:
    """Last part of the problem type: `NotFoundError` is `not-found`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__.removesuffix("Error")).lower()


def input_error(error: ValidationError, where: str) -> InputError:
    """A failed validation as one of our own errors; the values sent are not repeated."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join((where, *(str(part) for part in first["loc"])))
    return InputError(f"{place}: {first['msg']}", hint=_HINTS[422])


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem, and say so in its OpenAPI document."""

    def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, NatworkError)  # noqa: S101 - registered for that class
        return of_error(error)

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for that class
        faults = [
            Fault(where=printable(".".join(str(p) for p in e["loc"]), 120), what=printable(e["msg"], 200))
            for e in error.errors()[:_SHOWN_ERRORS]
        ]
        detail = "; ".join(f"{f.where}: {f.what}" for f in faults)
        return problem(422, detail, kind="input", errors=faults)

    def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for that class
        return problem(error.status_code, error.detail, headers=error.headers)

    def unforeseen(_: Request, error: Exception) -> Response:
        # Starlette raises it again after this answer, so the server logs it whole.
        return problem(500, f"an error that nobody foresaw ({type(error).__name__})", "see the server's log")

    app.add_exception_handler(NatworkError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _as_problems(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for its OpenAPI entry. The doors' own refusals (400, 413, 421) are in each."""
    return {s: {"model": Problem, "description": HTTPStatus(s).phrase} for s in sorted({400, 413, 421, *statuses})}


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Text that may be shown on a terminal and written as UTF-8: no control characters, no lone surrogates, bounded."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", cut)


def _as_problems(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                # FastAPI files a model under the media type of the route's own answer.
                if status >= "400":
                    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return document
