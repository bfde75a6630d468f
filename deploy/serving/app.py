"""The application: its routes, their documentation, and what surrounds every request.

    Config(partial(make_app, Access()), factory=True, http=…)         # with VERSIONS_VARIABLE set, for uvicorn

``/docs`` shows the routes with examples, ``/openapi.json`` describes them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from html import escape
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json
from starlette.routing import Route

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.deploy.access import Access
from crossfade.deploy.cluster.role_variables import die_with_agent
from crossfade.deploy.serving.answers import Answers
from crossfade.deploy.serving.current import CurrentVersion, OverloadedError
from crossfade.deploy.serving.metrics import RecordedRequests, exposition
from crossfade.deploy.serving.schemas import (
    BODY_PROBLEMS,
    PROBLEMS,
    FoundRows,
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
    SearchQuery,
    SimilarQuery,
    SimilarRequest,
    Vectors,
)
from crossfade.deploy.serving.versions import Versions
from crossfade.deploy.web.middleware import LimitedBodies, RestrictedAccess, security_headers
from crossfade.deploy.web.protocol import Bounds
from crossfade.kvstore import __version__
from crossfade.trainer.recommend.row_names import UnknownRowError

VERSIONS_VARIABLE = "CROSSFADE_SERVE_VERSIONS"
"""The folder of the versions."""
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
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Crossfade</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}</style>
</head>
<body>
<h1>Crossfade</h1>
<p>{served}</p>
<p><a href="/docs">/docs</a> shows the routes with examples and sends requests;
<a href="/openapi.json">/openapi.json</a> describes them for programs.</p>
</body>
</html>
"""
_DOCUMENTATION = ("/docs", "/openapi.json", "/static-offline-docs/")
_DOCUMENTATION_HEADERS = security_headers(
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The page of /docs has an inline script, but nothing that a client or a model could choose."""
_LINES = "application/jsonlines"
_RETRY_SECONDS = 1
"""Seconds after which a client, or a line of a body, tries again when too much is waiting."""
MAX_JSON_BYTES = 128 << 10
"""Of a request: reading it takes about 10 ms, for which others wait, since a parser of JSON keeps Python's lock."""
_MAX_PROBLEMS, _MAX_LETTERS = 5, 80
Problem = dict[str, Any]


class _ServingAccess(RestrictedAccess):
    """Everybody may read the documentation; pages of other sites may lead there, but send no other request."""

    health = ("/healthz", "/ping")

    def is_open(self, method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and (path == "/" or path.startswith(_DOCUMENTATION))

    def headers_of(self, path: str) -> list[tuple[bytes, bytes]]:
        return _DOCUMENTATION_HEADERS if self.is_open("GET", path) else super().headers_of(path)


def make_app(access: Access) -> FastAPI:
    """Build the application of the versions in the folder that ``VERSIONS_VARIABLE`` names, for ``access``."""
    _prepare_process()
    current = CurrentVersion(Versions(Path(os.environ[VERSIONS_VARIABLE])))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await current.load()
        # Exclude what lives as long as the process from garbage collections, which would take a tenth of a second each.
        gc.collect()
        gc.freeze()
        following = asyncio.create_task(current.follow())
        yield Bounds().state()
        following.cancel()
        current.close()

    app = FastAPIOffline(
        title="Crossfade",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        # Only for the description, where /docs then has a field for the token.
        dependencies=[] if access.token is None else [Security(HTTPBearer(auto_error=False))],
    )
    app.add_middleware(LimitedBodies)
    app.add_middleware(_ServingAccess, access=access)
    app.add_middleware(RecordedRequests)
    for error, status in (
        (UnknownRowError, 404),
        (InputError, 400),
        (OverloadedError, 503),
        (ForeignRequestError, 403),
        (BodyTypeError, 415),
    ):
        app.add_exception_handler(error, _problem(status))
    app.add_exception_handler(InvalidRequestError, _invalid)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(405, _wrong_method(app))
    _add_front_page(app, current, access)
    _add_rankings(app, current, has_token=access.token is not None)
    _add_rows(app, current)
    _add_operations(app, current)
    _add_description(app)
    return app


def _prepare_process() -> None:
    logging.basicConfig(format="crossfade: %(message)s", level=logging.WARNING)
    # Invalid requests, which uvicorn logs as warnings, would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    die_with_agent()
    sys.setswitchinterval(_SWITCH_SECONDS)


def _problem(status: int) -> Any:
    def respond(_: Request, error: Exception) -> Response:
        headers = {"Retry-After": str(_RETRY_SECONDS)} if status == 503 else None
        return JSONResponse({"detail": str(error)}, status, headers)

    return respond


def _invalid(_: Request, error: Exception) -> Response:
    """Respond with the first fields that are wrong, without their values."""
    if isinstance(error, RequestValidationError):
        problems = _describe_problems(error.errors())
    else:
        assert isinstance(error, InvalidRequestError)
        problems = error.problems
    return JSONResponse({"detail": problems}, 422)


class ForeignRequestError(CrossfadeError):
    """A page of another site may have sent a request that costs more than a look-up."""


_COSTLY = ("popularity_damping", "diversity", "exploration")
"""Parameters that cost more than a look-up, unless they are 0."""


class BodyTypeError(CrossfadeError):
    """A body is not of the type application/json, which a page of another site cannot send."""


def _check_sender(request: Request, query: RecommendQuery, has_token: bool) -> None:
    """Check that a costly GET is not from a page of another site, where browsers do not say whose page it is.

    Raises:
        ForeignRequestError: it may be.
    """
    costs = [name for name in _COSTLY if getattr(query, name)]
    says_whose = any(name in request.headers for name in ("sec-fetch-site", "x-requested-with"))
    if costs and not has_token and not says_whose:
        raise ForeignRequestError(
            f"a GET with '{costs[0]}' needs the header X-Requested-With, with any value, which pages of other sites "
            "cannot send; add it, or send a POST"
        )


class InvalidRequestError(Exception):
    """A request has fields that are missing, unknown, or of other values; ``problems`` are the first of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def _read_request(kind: str, body: bytes) -> Any:
    """Return the request of ``kind``, "recommend" or "similar", in ``body``.

    Raises:
        InvalidRequestError: it is no such request.
    """
    if len(body) > MAX_JSON_BYTES:
        message = f"A request should have at most {MAX_JSON_BYTES:,} bytes; send several"
        raise InvalidRequestError([{"type": "too_long", "loc": ["body"], "msg": message}])
    try:
        value = from_json(body, allow_inf_nan=False)
        return _model(kind, value).model_validate(value, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidRequestError(_describe_problems(found, "body")) from None
    except ValueError as error:
        problem = {"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}"}
        raise InvalidRequestError([problem]) from None


def _describe_problems(errors: Iterable[Mapping[str, Any]], *where: str) -> list[Problem]:
    """Return the first of pydantic's ``errors``, which are at ``where``, without the values that caused them."""
    return [
        {
            "type": error["type"],
            "loc": [part[:_MAX_LETTERS] if isinstance(part, str) else part for part in (*where, *error["loc"])],
            "msg": error["msg"].partition(", but found")[0],
        }
        for _, error in zip(range(_MAX_PROBLEMS), errors, strict=False)
    ]


def _model(kind: str, value: object) -> type[BaseModel]:
    if kind == "similar":
        return SimilarRequest
    return NewRequest if isinstance(value, dict) and "histories" in value else KnownRequest


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _answer_lines(body: bytes, rank: Callable[[Any], Awaitable[Results]]) -> Response:
    """Respond with a line for each of ``body``: the results of its request, or what is wrong with it.

    Raises:
        OverloadedError: too much is waiting already. Later, when the status is sent, lines wait instead.
    """
    lines = BytesIO(body)  # a body may have millions of lines, of which a list would take long

    async def answer(line: bytes) -> bytes:
        try:
            found = _json(await rank(_read_request("recommend", line.removesuffix(b"\n"))))
        except InvalidRequestError as error:
            found = JSONResponse({"detail": error.problems})
        except InputError as error:
            found = JSONResponse({"detail": str(error)})
        return bytes(found.body) + b"\n"

    async def answers(first: list[bytes]) -> AsyncIterator[bytes]:
        for each in first:
            yield each
        for line in lines:
            await asyncio.sleep(0)  # other requests are answered between two lines
            answered = None
            while answered is None:
                try:
                    answered = await answer(line)
                except OverloadedError:
                    await asyncio.sleep(_RETRY_SECONDS)
            yield answered

    return StreamingResponse(answers([await answer(line) for line in islice(lines, 1)]), media_type=_LINES)


async def _read_body(request: Request, kind: str) -> Any:
    """Return the request in the body.

    Raises:
        BodyTypeError: it is not said to be JSON.
        InvalidRequestError: it is not valid.
    """
    if _media_type(request) != "application/json":
        raise BodyTypeError("the body is of another type; expected the header Content-Type: application/json")
    return _read_request(kind, await request.body())


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


def _front_page(model: ModelDescription | None) -> str:
    """Return the page about ``model``; None: requests need a token, and the page has nothing of the model."""
    if model is None:
        served = "This server answers requests for recommendations. They need a token."
    else:
        rows = ", ".join(f"{entity.rows:,} of {escape(name)}" for name, entity in model.entities.items())
        served = (
            f"This server recommends {escape(model.item)} to {escape(model.query)}, and finds similar rows, by the "
            f"model <b>{escape(model.job)}</b> of {escape(model.date)}, version {model.version}. It has the "
            f"vectors of {rows}."
        )
    return _PAGE.format(served=served)


def _add_front_page(app: FastAPI, current: CurrentVersion, access: Access) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def front() -> Response:
        return HTMLResponse(_front_page(current.answers.describe() if access.token is None else None))


def _add_rankings(app: FastAPI, current: CurrentVersion, *, has_token: bool) -> None:
    async def rank(request: RecommendRequest | Neighbors) -> Results:
        def ask(answers: Answers) -> Results:
            return answers.similar(request) if isinstance(request, Neighbors) else answers.recommend(request)

        return await current.answer(
            ask, lambda answers: answers.is_quick(request), lambda answers: answers.load_filters(request)
        )

    @app.get("/recommend", response_model=OneResult, responses=PROBLEMS, tags=["rankings"])
    async def recommend_to_one(request: Request, query: Annotated[RecommendQuery, Query()]) -> Response:
        """Recommend items to one customer, or whatever the query entity is."""
        _check_sender(request, query, has_token)
        return _one(await rank(query))

    @app.get("/similar", response_model=OneResult, responses=PROBLEMS, tags=["rankings"])
    async def similar_to_one(query: Annotated[SimilarQuery, Query()]) -> Response:
        """Find the nearest neighbors of one row."""
        return _one(await rank(query))

    recommend_body, similar_body = _body_of(KnownRequest, NewRequest), _body_of(SimilarRequest)
    many: dict[str, Any] = {"response_model": Results, "responses": BODY_PROBLEMS}

    as_recommend = (
        "Recommend items, as POST /recommend does: the route that SageMaker calls. Both also take many requests, one "
        f"in each line of a body of the type {_LINES}, and answer each in a line."
    )

    @app.post(
        "/invocations",
        **many,
        tags=["SageMaker"],
        openapi_extra=recommend_body,
        description=as_recommend,
        name="invoke",
    )
    @app.post("/recommend", **many, tags=["rankings"], openapi_extra=recommend_body)
    async def recommend_to_many(request: Request) -> Response:
        """Recommend items to several customers by ID, or to new ones by their histories."""
        if _media_type(request) == _LINES:
            return await _answer_lines(await request.body(), rank)
        return _json(await rank(await _read_body(request, "recommend")))

    @app.post("/similar", **many, tags=["rankings"], openapi_extra=similar_body)
    async def similar_to_many(request: Request) -> Response:
        """Find the nearest neighbors of several rows."""
        return _json(await rank(await _read_body(request, "similar")))


def _add_rows(app: FastAPI, current: CurrentVersion) -> None:
    @app.get("/vector", response_model=Vectors, responses=PROBLEMS, tags=["rows"])
    async def vector(query: Annotated[RowQuery, Query()]) -> Response:
        """Return the vectors of rows."""
        return _json(await current.answer(lambda answers: answers.vectors(query.id, query.entity), lambda _: True))

    @app.get("/search", response_model=FoundRows, responses=PROBLEMS, tags=["rows"])
    async def search(query: Annotated[SearchQuery, Query()]) -> Response:
        """Find rows by the first letters of words of their names or IDs, in any order; the most frequent come first."""
        return _json(await current.answer(lambda answers: answers.search(query.text, query.k, query.entity)))

    @app.get("/model", response_model=ModelDescription, responses={503: PROBLEMS[503]}, tags=["rows"])
    async def model() -> Response:
        """Describe the model: its entities, its score, and the columns for filters."""
        return _json(current.answers.describe())


def _add_operations(app: FastAPI, current: CurrentVersion) -> None:
    async def health() -> Response:
        return _json(Health(version=current.answers.version))

    for path, tag, description in (
        ("/healthz", "operations", "Return 200 if requests are answered."),
        ("/ping", "SageMaker", "Return 200 if requests are answered: the health check of SageMaker endpoints."),
    ):
        app.add_api_route(
            path,
            health,
            response_model=Health,
            responses={503: PROBLEMS[503]},
            tags=[tag],
            description=description,
            operation_id=path[1:],
        )

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, tags=["operations"])
    async def metrics() -> Response:
        """Return the metrics of all processes of the server, in Prometheus' format."""
        return Response(exposition(), media_type=CONTENT_TYPE_LATEST)
