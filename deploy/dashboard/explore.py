"""The Explore page of the dashboard: search, neighbors, a map, two runs compared, recommendations beside a history.

    app.server.register_blueprint(explore_pages(runs, models, "runs"))

The page is ``assets/explore.html``. Its script reads the state from the address of the page and asks the routes below
``/explore/api/``. They answer an object with the result, with ``error``, or with ``preparing`` while the model of the
run is not open yet. The status is always 200: an unknown ID is an answer, and browsers log other statuses as failures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request

from crossfade.base.errors import CrossfadeError
from crossfade.deploy.dashboard import explore_answers as answers
from crossfade.deploy.dashboard.explored_models import ExploredModels, Preparing
from crossfade.deploy.dashboard.layout import EXPLORE_PATH
from crossfade.deploy.dashboard.map_points import read_points
from crossfade.deploy.dashboard.runs import Runs
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.runs.folder import EMBEDDINGS_FOLDER

_PAGE = Path(__file__).parent / "assets" / "explore.html"


def explore_pages(runs: Runs, models: ExploredModels, source: str) -> Blueprint:
    """Build the page and its routes for ``runs``; ``source`` names their folders in the header."""
    pages = Blueprint("explore", __name__, url_prefix=EXPLORE_PATH)

    def ask_model(question: Callable[[Model], answers.Answer]) -> Response:
        return _answer_about(runs, lambda path: models.ask(path, question))

    @pages.get("", strict_slashes=False)
    def page() -> Response:
        return Response(_PAGE.read_bytes(), mimetype="text/html")

    @pages.get("/api/runs")
    def list_runs() -> Response:
        found = sorted(runs.readers(), key=lambda reader: -_written_at(reader.path))
        return jsonify(source=source, runs=[reader.name for reader in found])

    @pages.get("/api/model")
    def model() -> Response:
        return ask_model(answers.describe)

    @pages.get("/api/search")
    def search() -> Response:
        text = request.args.get("text", "")
        return ask_model(lambda model: answers.search(model, text))

    @pages.get("/api/neighbors")
    def neighbors() -> Response:
        item = request.args.get("item", "")
        return ask_model(lambda model: answers.find_neighbors(model, item))

    @pages.get("/api/recommendations")
    def recommendations() -> Response:
        customer = request.args.get("customer", "")
        return ask_model(lambda model: answers.recommend(model, customer))

    @pages.get("/api/map")
    def points() -> Response:
        return _answer_about(runs, lambda path: {"points": read_points(path), "command": f"crossfade map {path}"})

    return pages


def _answer_about(runs: Runs, answer: Callable[[Path], dict[str, Any] | Preparing]) -> Response:
    """Return what ``answer`` returns about the folder of the request's run, or its error."""
    name = request.args.get("run", "")
    # Only folders that were found are read, whatever the name is.
    path = next((reader.path for reader in runs.readers() if reader.name == name), None)
    if path is None:
        return jsonify(error=f"there is no run '{name}'")
    try:
        found = answer(path)
    except CrossfadeError as error:
        return jsonify(error=str(error))
    if isinstance(found, Preparing):
        return jsonify(preparing={"phase": found.phase, "share": found.share})
    return jsonify(found)


def _written_at(run: Path) -> float:
    """Return when the embeddings of ``run`` were written; 0 if it has none."""
    try:
        return (run / EMBEDDINGS_FOLDER).stat().st_mtime
    except OSError:
        return 0.0
