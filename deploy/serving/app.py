"""The application: its routes, their documentation, and what surrounds every request.

    Config(make_app(Access(), current, refresher), **UVICORN_OPTIONS)         # for uvicorn

``/docs`` shows the routes with examples, ``/openapi.json`` describes them.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json
from starlette.routing import Route

from crossfade.base.errors import InputError
from crossfade.deploy.access import Access
from crossfade.deploy.serving.answers import Answers
from crossfade.deploy.serving.current import CurrentVersion, OverloadedError
from crossfade.deploy.serving.metrics import RecordedRequests, exposition
from crossfade.deploy.serving.refresher import Refresher
from crossfade.deploy.serving.schemas import (
    PROBLEMS,
    Health,
    KnownRequest,
    ModelDescription,
    Neighbors,
    NewRequest,
    OneResult,
    RecommendQuery,
    RecommendRequest,
    Results,
    RowQuery,
    SimilarQuery,
    SimilarRequest,
    Vectors,
)
from crossfade.deploy.web.middleware import LimitedBodies, RestrictedAccess, security_headers
from crossfade.deploy.web.protocol import Bounds
from crossfade.kvstore import __version__
from crossfade.trainer.recommend.row_names import UnknownRowError

_SWITCH_SECONDS = 5e-4
"""Seconds that a thread waits for Python's global lock before it asks the thread that holds it to release it; Python's
default is 5 ms. A ranking takes the lock several times, and under load it waits that long each time."""
_DESCRIPTION = """\
Recommendations, similar rows and vectors of a trained model. Rows are named by ID or, for entities with names, by name.

`items` of a result are ranked by the model's score or, for similar rows, by cosine. A customer who is unknown or has no
trained vector gets the most popular items, marked by `is_fallback`. With `on_unknown=error`, a GET for one is answered
by 404, as is a GET for any other row that is unknown; a POST is for a batch, even of one ID: its status is 200, and the
result for an unknown ID has `error` or, with `skip`, is left out.
"""
_DOCUMENTATION = ("/docs", "/openapi.json", "/static-offline-docs/")
_DOCUMENTATION_HEADERS = security_headers(
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The page of /docs has an inline script, but nothing that a client or a model could choose."""
_RETRY_SECONDS = 1
"""Seconds after which a client tries again when too much is waiting."""
MAX_BODY_BYTES = 128 << 10
"""Of a request: reading it takes about 10 ms, for which others wait, since a parser of JSON keeps Python's lock."""
_MAX_PROBLEMS, _MAX_LETTERS = 5, 80


class _ServingAccess(RestrictedAccess):
    """Everybody may read the documentation; pages of other sites may lead there, but send no other request."""

    health = ("/healthz", "/ping")

    def is_open(self, method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and (path == "/" or path.startswith(_DOCUMENTATION))

    def headers_of(self, path: str) -> list[tuple[bytes, bytes]]:
        return _DOCUMENTATION_HEADERS if self.is_open("GET", path) else super().headers_of(path)


def make_app(access: Access, current: CurrentVersion, refresher: Refresher) -> FastAPI:
    """Build the application that answers from ``current``, and follows ``refresher``, for ``access``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        sys.setswitchinterval(_SWITCH_SECONDS)
        # Exclude what lives as long as the process from garbage collections, which would take a tenth of a second each.
        gc.collect()
        gc.freeze()
        following = asyncio.create_task(refresher.follow(current))
        yield Bounds().state()
        refresher.stop()
        following.cancel()
        current.close()

    app = FastAPIOffline(
        title="Crossfade",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        responses=PROBLEMS,
        # Only for the description, where /docs then has a field for the token.
        dependencies=[] if access.token is None else [Security(HTTPBearer(auto_error=False))],
    )
    app.add_middleware(LimitedBodies, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(_ServingAccess, access=access)
    app.add_middleware(RecordedRequests)
    for error, status in (UnknownRowError, 404), (InputError, 400), (OverloadedError, 503):
        app.add_exception_handler(error, _problem(status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(405, _wrong_method(app))
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    _add_rankings(app, current)
    _add_rows(app, current)
    _add_operations(app, current)
    _add_description(app)
    return app


def _problem(status: int) -> Any:
    def respond(_: Request, error: Exception) -> Response:
        headers = {"Retry-After": str(_RETRY_SECONDS)} if status == 503 else None
        return JSONResponse({"detail": str(error)}, status, headers)

    return respond


def _invalid(_: Request, error: Exception) -> Response:
    """Respond with the first fields that are wrong, without their values."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {
            "type": each["type"],
            "loc": [part[:_MAX_LETTERS] if isinstance(part, str) else part for part in each["loc"]],
            "msg": each["msg"].partition(", but found")[0],
        }
        for each in error.errors()[:_MAX_PROBLEMS]
    ]
    return JSONResponse({"detail": problems}, 422)


async def _read_body(request: Request, *kinds: type[BaseModel]) -> Any:
    """Return the request in the body: of the last of ``kinds`` if it has histories, otherwise of the first.

    Raises:
        HTTPException: it is not said to be JSON, as a page of another site cannot say.
        RequestValidationError: it is not valid.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body is of another type; expected the header Content-Type: application/json")
    try:
        value = from_json(await request.body(), allow_inf_nan=False)
        has_histories = isinstance(value, dict) and "histories" in value
        return kinds[-1 if has_histories else 0].model_validate(value, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[:_MAX_PROBLEMS]
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None
    except ValueError as error:
        problem = {"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}"}
        raise RequestValidationError([problem]) from None


def _body_of(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body, which the routes read by themselves, for ``openapi_extra``."""
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _add_description(app: FastAPI) -> None:
    """Add the schemas of bodies, which the routes read by themselves, to the description of ``app``."""
    describe = app.openapi

    @cache
    def with_bodies() -> dict[str, Any]:
        described = describe()
        models = [(model, "validation") for model in (KnownRequest, NewRequest, SimilarRequest)]
        _, found = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        described["components"]["schemas"] |= found["$defs"]
        return described

    app.openapi = with_bodies  # type: ignore[method-assign]


def _wrong_method(app: FastAPI) -> Any:
    """Return a handler that names all methods of a path: by itself, a path with two routes names those of the first."""

    def respond(request: Request, _: Exception) -> Response:
        routes = [route for route in app.routes if isinstance(route, Route) and route.path == request.url.path]
        allowed = sorted({method for route in routes for method in route.methods or ()})
        return JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": ", ".join(allowed)})

    return respond


def _json(body: BaseModel) -> Response:
    """Serialize ``body``, whose values need no validation."""
    return Response(body.__pydantic_serializer__.to_json(body), media_type="application/json")


def _one(results: Results) -> Response:
    """Respond with the only one of ``results``.

    Raises:
        UnknownRowError: it has an error.
    """
    [result] = results.results
    if result.error is not None:
        raise UnknownRowError(result.error)
    return _json(OneResult.model_construct(version=results.version, result=result))


def _add_rankings(app: FastAPI, current: CurrentVersion) -> None:
    async def rank(request: RecommendRequest | Neighbors) -> Results:
        def ask(answers: Answers) -> Results:
            return answers.similar(request) if isinstance(request, Neighbors) else answers.recommend(request)

        return await current.answer(
            ask, lambda answers: answers.is_quick(request), lambda answers: answers.load_filters(request)
        )

    @app.get("/recommend", response_model=OneResult, tags=["rankings"])
    async def recommend_to_one(query: Annotated[RecommendQuery, Query()]) -> Response:
        """Recommend items to one customer, or whatever the query entity is."""
        return _one(await rank(query))

    @app.get("/similar", response_model=OneResult, tags=["rankings"])
    async def similar_to_one(query: Annotated[SimilarQuery, Query()]) -> Response:
        """Find the nearest neighbors of one row."""
        return _one(await rank(query))

    recommend_body, similar_body = _body_of(KnownRequest, NewRequest), _body_of(SimilarRequest)

    @app.post("/invocations", response_model=Results, tags=["SageMaker"], openapi_extra=recommend_body, name="invoke")
    @app.post("/recommend", response_model=Results, tags=["rankings"], openapi_extra=recommend_body)
    async def recommend_to_many(request: Request) -> Response:
        """Recommend items to several customers by ID, or to new ones by their histories."""
        return _json(await rank(await _read_body(request, KnownRequest, NewRequest)))

    @app.post("/similar", response_model=Results, tags=["rankings"], openapi_extra=similar_body)
    async def similar_to_many(request: Request) -> Response:
        """Find the nearest neighbors of several rows."""
        return _json(await rank(await _read_body(request, SimilarRequest)))


def _add_rows(app: FastAPI, current: CurrentVersion) -> None:
    @app.get("/vector", response_model=Vectors, tags=["rows"])
    async def vector(query: Annotated[RowQuery, Query()]) -> Response:
        """Return the vectors of rows."""
        return _json(await current.answer(lambda answers: answers.vectors(query.id, query.entity), lambda _: True))

    @app.get("/model", response_model=ModelDescription, tags=["rows"])
    async def model() -> Response:
        """Describe the model: its entities, its score, and the columns for filters."""
        return _json(current.answers.describe())


def _add_operations(app: FastAPI, current: CurrentVersion) -> None:
    @app.get("/ping", response_model=Health, tags=["SageMaker"], name="ping")
    @app.get("/healthz", response_model=Health, tags=["operations"])
    async def health() -> Response:
        """Return 200 if requests are answered."""
        return _json(Health(version=current.answers.version))

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, tags=["operations"])
    async def metrics() -> Response:
        """Return the metrics of the server, in Prometheus' format."""
        return Response(exposition(), media_type=CONTENT_TYPE_LATEST)
