"""The Explore page of the dashboard: search, neighbors, and recommendations beside a history.

    app.server.register_blueprint(explore_pages(runs, models, "runs"))

The page is ``assets/explore.html``. Its script reads the state from the address of the page and asks the routes below
``/explore/api/``. They answer an object with the result, with ``error``, or with ``preparing`` while the model of the
run is not open yet. The status is always 200: an unknown ID is an answer, and browsers log other statuses as failures.

Shapes: Q queries, one here; K ranks; N items of a history.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flask import Blueprint, Response, jsonify, request

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CrossfadeError
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.page import EXPLORE_PATH
from crossfade.deploy.dashboard.run_reader import Runs
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.runs.run_folder import EMBEDDINGS_FOLDER
from crossfade.trainer.serving.version import Version

K = 10
"""Rows of a list."""
_MAX_SUGGESTIONS = 12
Answer = dict[str, Any]
_PAGE = Path(__file__).parent / "assets" / "explore.html"


def describe(version: Version, _: str = "") -> Answer:
    """Describe the model: its entities, with the first row of each as an example, and its score."""
    model = version.model
    examples = {entity: model.labels(entity, [0]).get(0) for entity in (model.query, model.item)}
    return {
        "item": model.item,
        "query": model.query,
        "score": model.score,
        "examples": {entity: _row(label) for entity, label in examples.items() if label is not None},
    }


def search(version: Version, text: str) -> Answer:
    """Find items by the first letters of words of their names, or by ID."""
    names = version.names[version.model.item]
    rows = names.search(text, _MAX_SUGGESTIONS)
    labels = names.labels(rows)
    return {"rows": [_row(labels[row]) for row in rows]}


def find_neighbors(version: Version, item: str) -> Answer:
    """Rank the items by their cosine with ``item``, an ID or name.

    Raises:
        InputError: there is no such item, or its vector is not trained.
    """
    model = version.model
    row, label = _find(model, model.item, item)
    rows_QK, scores_QK = model.similar(np.array([row]), SimilarOptions(k=K))
    return {"item": _row(label), "rows": _ranked(model, rows_QK[0], scores_QK[0])}


def recommend(version: Version, query: str) -> Answer:
    """Recommend items to ``query``, an ID or name, and list the items of its history that have the largest weights.

    Raises:
        InputError: there is no such query, or its vector is not trained.
    """
    model = version.model
    row, label = _find(model, model.query, query)
    rows_QK, scores_QK = model.recommend(np.array([row]), RecommendOptions(k=K))
    histories = model.histories(np.array([row]))
    items_N, weights_N = histories.lists.values_N, histories.weight_N
    favorites_N = histories.favorites(0, K)
    weights = weights_N[np.searchsorted(items_N, favorites_N)].tolist()
    labels = model.labels(model.item, favorites_N.tolist())
    return {
        "query": _row(label),
        "rows": _ranked(model, rows_QK[0], scores_QK[0]),
        "history": [
            {**_row(labels[item]), "weight": weight}
            for item, weight in zip(favorites_N.tolist(), weights, strict=True)
            if item in labels
        ],
        "history_items": len(items_N),
    }


def _find(model: Model, entity: str, text: str) -> tuple[int, RowLabel]:
    [row] = model.find(entity, [text]).tolist()
    return row, model.labels(entity, [row])[row]


def _ranked(model: Model, rows_K: IntArray, scores_K: FloatArray) -> list[Answer]:
    found = [(row, score) for row, score in zip(rows_K.tolist(), scores_K.tolist(), strict=True) if row >= 0]
    labels = model.labels(model.item, [row for row, _ in found])
    return [{**_row(labels[row]), "score": score} for row, score in found]


def _row(label: RowLabel) -> Answer:
    # IDs as text, since JavaScript rounds numbers above 2**53.
    return {"id": str(label.id), "name": label.name}


_QUESTIONS: dict[str, tuple[Callable[[Version, str], Answer], str]] = {
    "model": (describe, ""),
    "search": (search, "text"),
    "neighbors": (find_neighbors, "item"),
    "recommendations": (recommend, "customer"),
}
"""What the routes answer about a model, and the parameter with the text that they get."""


def explore_pages(runs: Runs, models: ExploredModels, source: str) -> Blueprint:
    """Build the page and its routes for ``runs``; ``source`` names their folders in the header."""
    pages = Blueprint("explore", __name__, url_prefix=EXPLORE_PATH)

    @pages.get("", strict_slashes=False)
    def page() -> Response:
        return Response(_PAGE.read_bytes(), mimetype="text/html")

    @pages.get("/api/runs")
    def list_runs() -> Response:
        paths = runs.paths()
        return jsonify(source=source, runs=sorted(paths, key=lambda name: -_written_at(paths[name])))

    @pages.get("/api/<any(model, search, neighbors, recommendations):question>")
    def ask(question: str) -> Response:
        answer, parameter = _QUESTIONS[question]
        name, text = request.args.get("run", ""), request.args.get(parameter, "")
        try:
            # Only folders that were found are read, whatever the name is.
            path = runs.paths().get(name)
            if path is None:
                return jsonify(error=f"there is no run '{name}'")
            found = models.ask(path, lambda version: answer(version, text))
        except CrossfadeError as error:
            return jsonify(error=str(error))
        return jsonify(preparing=True) if found is None else jsonify(found)

    return pages


def _written_at(run: Path) -> float:
    """Return when the embeddings of ``run`` were written; 0 if it has none."""
    try:
        return (run / EMBEDDINGS_FOLDER).stat().st_mtime
    except OSError:
        return 0.0
