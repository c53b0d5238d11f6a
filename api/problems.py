"""Errors as RFC 9457 `application/problem+json`, each with a stable `code`; one table from our errors to them."""

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from outbox import db, errors
from outbox.logs import log

# An error is answered by the first entry that fits, so subclasses stand before their base class.
TABLE: tuple[tuple[type[errors.DeprovisionerError], int, str], ...] = (
    (errors.NotFound, 404, "not_found"),
    (errors.Forbidden, 403, "forbidden"),
    (errors.Rewound, 503, "rewound"),
    (errors.QuotaExceeded, 429, "quota_exceeded"),
    (errors.UnknownBackend, 422, "unknown_backend"),
    (errors.UnknownKind, 422, "unknown_kind"),
    (errors.BadCursor, 422, "invalid_cursor"),
    (errors.BadRequest, 422, "invalid_request"),
    (errors.DeletionProtected, 409, "deletion_protected"),
    (errors.VersionMismatch, 412, "version_mismatch"),
    (errors.Restoring, 409, "restoring"),
    (errors.OutOfManagement, 409, "out_of_management"),
    (errors.TeardownStarted, 409, "teardown_started"),
    (errors.NothingToRestore, 409, "nothing_to_restore"),
    (errors.NotDeleting, 409, "not_deleting"),
    (errors.NotActive, 409, "not_active"),
    (errors.NoCredentials, 409, "no_credentials"),
    (errors.IdempotencyKeyReused, 409, "idempotency_key_reused"),
    (errors.AlreadyManaged, 409, "already_managed"),
    (errors.ExternalIdTaken, 409, "external_id_taken"),
    (errors.JobNotStuck, 409, "job_not_stuck"),
    (errors.FenceMismatch, 409, "fence_mismatch"),
    (errors.BackendRetired, 409, "backend_retired"),
    (errors.NotRetired, 409, "not_retired"),
    (errors.HasAbandoned, 409, "has_abandoned"),
    (errors.AlreadyReleased, 409, "already_released"),
    (errors.AlreadyRunning, 409, "already_running"),
    (errors.DigestMismatch, 409, "digest_mismatch"),
    (errors.AlreadyFinished, 409, "already_finished"),
    (errors.StillThere, 409, "still_there"),
    (errors.NotObserved, 409, "not_observed"),
    (errors.NotATeardown, 409, "not_a_teardown"),
    (errors.StillWanted, 409, "still_wanted"),
    (errors.NothingToForce, 409, "nothing_to_force"),
    (errors.Conflict, 409, "conflict"),
)
_HTTP_CODES = {405: "method_not_allowed"}
# How long a control database that restarts usually needs.
RETRY_AFTER_SECONDS = 2
# A body may have thousands of wrong fields, and each may have a long name: the answer is not larger than the request.
MOST_ERRORS = 20
LONGEST_NAME = 200


@dataclass(eq=False)
class Problem(Exception):
    """An error that is its own answer. `more` are further members of the problem."""

    status: int
    code: str
    detail: str
    more: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        """The answer."""
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        return JSONResponse(body | self.more, self.status, self.headers, media_type="application/problem+json")


# How a detail begins that is about one field. A detail about several has one such part for each.
_FIELD = re.compile(r"([^\s:;]+): (.*)", re.DOTALL)
_NEXT_FIELD = re.compile(r"; (?=[\w.]+: )")


def invalid(detail: str) -> Problem:
    """422 `invalid_request` of a detail such as `field: message`; one that names no field is about the whole body."""
    found = [(part, _FIELD.fullmatch(part)) for part in _NEXT_FIELD.split(detail)[:MOST_ERRORS]]
    wrong = [{"field": m[1], "message": m[2]} if m else {"field": "body", "message": part} for part, m in found]
    return Problem(422, "invalid_request", detail, {"errors": wrong})


def shortened(name: str) -> str:
    """A name that a caller sent, as an answer repeats it."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def busy(detail: str) -> Problem:
    """503: what the request needs is taken, and will soon be free."""
    return Problem(503, "busy", detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


class ProblemOut(BaseModel):
    """An error as RFC 9457 defines it; `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer, for OpenAPI."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": ProblemOut.model_json_schema()}},
        }
        for status in statuses
    }


# Those of any route.
RESPONSES = responses(400, 401, 403, 404, 405, 408, 409, 413, 422, 431, 500, 503)


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem."""
    app.add_exception_handler(Problem, lambda _, problem: problem.response())
    app.add_exception_handler(errors.DeprovisionerError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(Exception, _unexpected)


def _ours(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, errors.Unconfirmed):
        log.error("commit_unconfirmed", error=str(error))
        return Problem(
            503, "outcome_unconfirmed", str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)}
        ).response()
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            if code == "invalid_request":
                return invalid(str(error)).response()
            return Problem(status, code, str(error), _more(error)).response()
    log.error("unmapped_error", error=repr(error))
    return Problem(500, "internal_error", str(error)).response()


def _more(error: errors.DeprovisionerError) -> dict[str, Any]:
    """The members that only this kind of error has."""
    if isinstance(error, errors.StillThere):
        return {"seen": error.seen}
    if isinstance(error, errors.QuotaExceeded):
        return {"quota": error.quota, "limit": error.limit}
    return {}


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - this handler is registered for no other
    found = error.errors()
    if refused := await _refused(request):
        return refused
    literal = any(getattr(route, "path", None) == request.scope["path"] for route in _routes(request))
    if literal and any(e["loc"][0] == "path" for e in found):  # `redrive` in /v1/jobs/redrive is not a job's number
        return _method_not_allowed(request)
    if broken := next((e for e in found if e["type"] == "json_invalid"), None):
        detail = f"the body is not JSON, at character {broken['loc'][-1]}: {broken.get('ctx', {}).get('error', '')}"
        return Problem(422, "invalid_json", detail).response()
    if any(e["loc"] == ("body",) for e in found) and "json" not in request.headers.get("content-type", ""):
        return invalid("body: send JSON, and `Content-Type: application/json`").response()
    where = [".".join(str(part) for part in e["loc"][1:]) or str(e["loc"][0]) for e in found[:MOST_ERRORS]]
    wrong = [{"field": shortened(name), "message": _in_words(e)} for name, e in zip(where, found, strict=False)]
    code = "invalid_id" if any(e["loc"][0] == "path" for e in found) else "invalid_request"
    return Problem(422, code, "; ".join(f"{w['field']}: {w['message']}" for w in wrong), {"errors": wrong}).response()


_WORDS = {"missing": "is missing", "extra_forbidden": "there is no such field or filter"}


def _in_words(error: Any) -> str:
    """What is wrong, in words that need no knowledge of the library that found it."""
    said = _WORDS.get(error["type"], error["msg"])
    return re.sub("^Input should", "it must", said.removeprefix("Value error, "))


async def _refused(request: Request) -> JSONResponse | None:
    """The 401 of a caller whose request is answered without a route that reads the token, or before it does."""
    from api import deps  # noqa: PLC0415 - it imports this module

    if not request.scope["path"].startswith("/v1/"):
        return None
    try:
        await deps.caller(request, await deps.bearer(request))
    except Problem as problem:
        return problem.response()
    except SQLAlchemyError as error:
        return _database(request, error)
    return None


def _routes(request: Request) -> list[Any]:
    """All routes; FastAPI keeps those of an included router inside it."""
    return [r for each in request.app.routes for r in getattr(getattr(each, "original_router", None), "routes", [each])]


def _method_not_allowed(request: Request) -> JSONResponse:
    """405 with all methods of the path; a route alone knows only its own."""
    scope = {key: request.scope[key] for key in ("type", "method", "path", "headers")}
    routes = [route for route in _routes(request) if route.matches(scope)[0] is not Match.NONE]
    exact = [r for r in routes if getattr(r, "path", None) == request.scope["path"]] or routes
    allowed = ", ".join(sorted({method for route in exact for method in getattr(route, "methods", None) or ()}))
    detail = f"{request.method} is not possible here; possible: {allowed}"
    return Problem(405, "method_not_allowed", detail, headers={"Allow": allowed}).response()


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - this handler is registered for no other
    if refused := await _refused(request):
        return refused
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _method_not_allowed(request)
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI could not parse the body
        detail = "the body is not JSON in UTF-8, or it is nested too deep"
        return Problem(422, "invalid_json", detail).response()
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {shortened(request.scope['path'])}; /openapi.json has every path"
        return Problem(404, "not_found", detail).response()
    code = _HTTP_CODES.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_"))
    return Problem(error.status_code, code, str(error.detail), headers=dict(error.headers or {})).response()


def _database(request: Request, error: Exception) -> JSONResponse:
    if db.busy(error):
        log.warning("control_database_busy", error=repr(error))
        return busy("another transaction has what this needs, or all connections are taken; ask again").response()
    if not db.unreachable(error):
        return _unexpected(request, error)
    log.error("control_database_lost", error=repr(error))
    detail = "the control database cannot be reached; send a DELETE again as it is, and a POST with its Idempotency-Key"
    return Problem(503, "database_unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}).response()


def _unexpected(_: Request, error: Exception) -> JSONResponse:
    log.error("unexpected_error", error=repr(error), exc_info=error)
    return Problem(500, "internal_error", "an unexpected error; the log of the API has the details").response()
