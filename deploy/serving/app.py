"""The application: its routes, their documentation, and what surrounds every request.

    Config(partial(make_app, Access()), factory=True, http=…)         # with VERSIONS_VARIABLE set, for uvicorn

``/docs`` shows the routes with examples, ``/openapi.json`` describes them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.routing import Route

from crossfade.deploy.access import Access
from crossfade.deploy.cluster.role_variables import die_with_agent
from crossfade.deploy.serving.answers import UnknownRowError
from crossfade.deploy.serving.current import CurrentVersion, OverloadedError
from crossfade.deploy.serving.metrics import exposition
from crossfade.deploy.serving.middleware import LimitedBodies, RecordedRequests, RestrictedAccess
from crossfade.deploy.serving.protocol import Bounds
from crossfade.deploy.serving.schemas import (
    PROBLEMS,
    FoundRows,
    Health,
    KnownRequest,
    ModelDescription,
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
from crossfade.kvstore import __version__
from crossfade.kvstore.errors import InputError

VERSIONS_VARIABLE = "CROSSFADE_SERVE_VERSIONS"
"""The folder of the versions."""
_DESCRIPTION = """\
Recommendations, similar rows and vectors of a trained model. Rows are named by ID or, for entities with names, by name.

`items` of a result are ranked by the model's score or, for similar rows, by cosine. A result for an ID that is unknown
has `error` instead; where a request is for one ID only, the status is 404.
"""


def make_app(access: Access) -> FastAPI:
    """Build the application of the versions in the folder that ``VERSIONS_VARIABLE`` names, for ``access``."""
    logging.basicConfig(format="crossfade: %(message)s", level=logging.WARNING)
    # Invalid requests, which uvicorn logs as warnings, would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    die_with_agent()
    current = CurrentVersion(Versions(Path(os.environ[VERSIONS_VARIABLE])))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await current.load()
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
    app.add_middleware(RestrictedAccess, access=access)
    app.add_middleware(RecordedRequests)
    for error, status in ((UnknownRowError, 404), (InputError, 400), (OverloadedError, 503)):
        app.add_exception_handler(error, _problem(status))
    app.add_exception_handler(405, _wrong_method(app))
    _add_rankings(app, current)
    _add_rows(app, current)
    _add_operations(app, current)
    return app


def _problem(status: int) -> Any:
    def respond(_: Request, error: Exception) -> Response:
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"detail": str(error)}, status, headers)

    return respond


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
    async def recommend(request: RecommendRequest) -> Results:
        return await current.answer(
            lambda answers: answers.recommend(request), lambda answers: answers.is_quick(request)
        )

    async def similar(request: SimilarRequest) -> Results:
        return await current.answer(lambda answers: answers.similar(request), lambda answers: answers.is_quick(request))

    @app.get("/recommend", response_model=OneResult, responses=PROBLEMS, tags=["rankings"])
    async def recommend_to_one(query: Annotated[RecommendQuery, Query()]) -> Response:
        """Recommend items to one customer, or whatever the query entity is."""
        values = query.model_dump(exclude={"id"})
        return _one(await recommend(KnownRequest.model_construct(ids=[query.id], **_NO_LISTS, **values)))

    @app.post("/recommend", response_model=Results, responses=PROBLEMS, tags=["rankings"])
    async def recommend_to_many(request: RecommendRequest) -> Response:
        """Recommend items to several customers by ID, or to new ones by their histories."""
        return _json(await recommend(request))

    @app.get("/similar", response_model=OneResult, responses=PROBLEMS, tags=["rankings"])
    async def similar_to_one(query: Annotated[SimilarQuery, Query()]) -> Response:
        """Find the nearest neighbors of one row."""
        values = query.model_dump(exclude={"id"})
        return _one(await similar(SimilarRequest.model_construct(ids=[query.id], **_NO_LISTS, **values)))

    @app.post("/similar", response_model=Results, responses=PROBLEMS, tags=["rankings"])
    async def similar_to_many(request: SimilarRequest) -> Response:
        """Find the nearest neighbors of several rows."""
        return _json(await similar(request))

    @app.post("/invocations", response_model=Results, responses=PROBLEMS, tags=["SageMaker"])
    async def invoke(request: RecommendRequest) -> Response:
        """Recommend items, as POST /recommend does: the route that SageMaker endpoints call."""
        return _json(await recommend(request))


_NO_LISTS: dict[str, Any] = {"allow": [], "deny": [], "max_per": None}


def _add_rows(app: FastAPI, current: CurrentVersion) -> None:
    @app.get("/vector", response_model=Vectors, responses=PROBLEMS, tags=["rows"])
    async def vector(query: Annotated[RowQuery, Query()]) -> Response:
        """Return the vectors of rows."""
        return _json(await current.answer(lambda answers: answers.vectors(query.id, query.entity), lambda _: True))

    @app.get("/search", response_model=FoundRows, responses=PROBLEMS, tags=["rows"])
    async def search(query: Annotated[SearchQuery, Query()]) -> Response:
        """Find rows by the first letters of words of their names, in any order; the most frequent rows come first."""
        return _json(await current.answer(lambda answers: answers.search(query.text, query.count, query.entity)))

    @app.get("/model", response_model=ModelDescription, responses={503: PROBLEMS[503]}, tags=["rows"])
    async def model() -> Response:
        """Describe the model: its entities, its score, and the columns for conditions."""
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
