"""The Explore page of the dashboard: search, neighbors, a map, two runs compared, recommendations beside a history.

    app.server.register_blueprint(explore_pages(runs, models, "runs"))

The page is ``assets/explore.html``. Its script reads the state from the address of the page and asks the routes below
``/explore/api/``. They answer an object with the result, with ``error``, or with ``preparing`` while the model of the
run is not open yet. The status is always 200: an unknown ID is an answer, and browsers log other statuses as failures.

Shapes: Q queries, one here; K ranks; N items of a history, or points of a map.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flask import Blueprint, Response, jsonify, request

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CrossfadeError, InputError, command, reason_of
from crossfade.base.io.regular_files import open_below
from crossfade.deploy.dashboard.explored_models import ExploredModels, Preparing
from crossfade.deploy.dashboard.page import EXPLORE_PATH
from crossfade.deploy.dashboard.run_reader import Runs
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.row_names import RowLabel
from crossfade.trainer.runs.run_folder import EMBEDDINGS_FOLDER

K = 10
"""Rows of a list."""
_MAX_SUGGESTIONS = 12
Answer = dict[str, Any]
MAX_POINTS = 50_000
FULL_SCALE = 10_000
"""The larger side of the map, in the units of the places."""
_MAP = "map/map.parquet"
_COLUMNS = {name: pa.string() for name in ("id", "name", "label", "color")} | {
    axis: pa.float64() for axis in ("x", "y")
}
_PAGE = Path(__file__).parent / "assets" / "explore.html"


def describe(model: Model, _: str = "") -> Answer:
    """Describe the model: its entities, with the first row of each as an example, and its score."""
    examples = {entity: model.labels(entity, [0]).get(0) for entity in (model.query, model.item)}
    return {
        "item": model.item,
        "query": model.query,
        "score": model.score,
        "examples": {entity: _row(label) for entity, label in examples.items() if label is not None},
    }


def search(model: Model, text: str) -> Answer:
    """Find items by the first letters of words of their names, or by ID."""
    rows = model.search(model.item, text, _MAX_SUGGESTIONS)
    labels = model.labels(model.item, rows)
    return {"rows": [_row(labels[row]) for row in rows]}


def find_neighbors(model: Model, item: str) -> Answer:
    """Rank the items by their cosine with ``item``, an ID or name.

    Raises:
        InputError: there is no such item, or its vector is not trained.
    """
    row, label = _find(model, model.item, item)
    rows_QK, scores_QK = model.similar(np.array([row]), SimilarOptions(k=K))
    return {"item": _row(label), "rows": _ranked(model, rows_QK[0], scores_QK[0])}


def recommend(model: Model, query: str) -> Answer:
    """Recommend items to ``query``, an ID or name, and list the items of its history that have the largest weights.

    Raises:
        InputError: there is no such query, or its vector is not trained.
    """
    row, label = _find(model, model.query, query)
    rows_QK, scores_QK = model.recommend(np.array([row]), RecommendOptions(k=K))
    histories = model.histories(np.array([row]))
    items_N, weights_N = histories.lists.items_N, histories.weight_N
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
    # IDs as text, so that those of two runs compare, and those above 2**53 stay exact in JavaScript.
    return {"id": str(label.id), "name": label.name}


def read_points(run: Path) -> dict[str, Any] | None:
    """Return the most frequent items of the map of ``run``, with places and labels; None if it has no map.

    Raises:
        InputError: the map cannot be read.
    """
    try:
        with os.fdopen(open_below(run, _MAP), "rb") as file:
            table = _read_table(file)
        place_N2 = np.stack([table.column(axis).to_numpy() for axis in ("x", "y")], axis=1)
        if not np.isfinite(place_N2).all():
            raise InputError("has a place that is not finite")
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, InputError) as error:
        fix = f"draw it again with {command('map', str(run), overwrite=True)}"
        raise InputError(f"{run / _MAP}: cannot be read: {reason_of(error)}; {fix}") from error
    place_N2 -= place_N2.min(axis=0, initial=0.0 if not len(place_N2) else np.inf)
    place_N2 *= FULL_SCALE / max(float(place_N2.max(initial=0.0)), 1e-9)
    x_N, y_N = np.round(place_N2).astype(np.int64).T
    return {
        "ids": table.column("id").to_pylist(),
        "names": table.column("name").to_pylist(),
        "x": x_N.tolist(),
        "y": y_N.tolist(),
        **_labels(table),
    }


def _read_table(file: BinaryIO) -> pa.Table:
    """Read the first points of a map, with the types that pages need.

    Raises:
        InputError: a column is missing.
        ArrowException: it is not Parquet, or a column has another type.
    """
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        found = set(parquet.schema_arrow.names)
        types = _COLUMNS if "label" in found else {name: _COLUMNS[name] for name in ("id", "name", "x", "y")}
        if missing := types.keys() - found:
            raise InputError(f"has no column '{min(missing)}'")
        batch = next(parquet.iter_batches(MAX_POINTS, columns=list(types)), None)
        table = parquet.schema_arrow.empty_table() if batch is None else pa.Table.from_batches([batch])
    return table.select(list(types)).cast(pa.schema(list(types.items())))


def _labels(table: pa.Table) -> dict[str, Any]:
    """Return the labels with their colors, the most frequent first, and the number of each point's label or -1."""
    if "label" not in table.column_names:
        return {"labels": [], "label": [-1] * table.num_rows}
    labels = table.column("label").to_pylist()
    colors = dict(zip(labels, table.column("color").to_pylist(), strict=True))
    names = [name for name, _ in Counter(name for name in labels if name is not None).most_common()]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "labels": [{"name": name, "color": colors[name]} for name in names],
        "label": [numbers.get(name, -1) for name in labels],
    }


_QUESTIONS: dict[str, tuple[Callable[[Model, str], Answer], str]] = {
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
        found = sorted(runs.readers(), key=lambda reader: -_written_at(reader.path))
        return jsonify(source=source, runs=[reader.name for reader in found])

    @pages.get("/api/map")
    def points() -> Response:
        return _answer_about(runs, lambda path: {"points": read_points(path), "command": f"crossfade map {path}"})

    @pages.get("/api/<any(model, search, neighbors, recommendations):question>")
    def ask(question: str) -> Response:
        answer, parameter = _QUESTIONS[question]
        text = request.args.get(parameter, "")
        return _answer_about(runs, lambda path: models.ask(path, lambda model: answer(model, text)))

    return pages


def _answer_about(runs: Runs, answer: Callable[[Path], dict[str, Any] | Preparing]) -> Response:
    """Return what ``answer`` returns about the folder of the request's run, or its error."""
    name = request.args.get("run", "")
    try:
        # Only folders that were found are read, whatever the name is.
        path = next((reader.path for reader in runs.readers() if reader.name == name), None)
        if path is None:
            return jsonify(error=f"there is no run '{name}'")
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
