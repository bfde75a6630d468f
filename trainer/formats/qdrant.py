"""Write the points of a Qdrant collection for each table, as bodies of requests to its REST API.

    FOLDER/load.sh                        loads everything with curl
    FOLDER/ENTITY/collection.json         PUT /collections/NAME: size and distance
    FOLDER/ENTITY/points-000000.json      PUT /collections/NAME/points: IDs, vectors, and the payload id and name
    FOLDER/ENTITY/alias.json              POST /collections/aliases: switches the alias to this export

A point's ID must be an unsigned integer or a UUID. It is the ID of the row or, if that is no such integer, a UUID of
version 5 of its text, so that points of different exports agree.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.sections import ScoreKind
from crossfade.trainer.formats.batch_files import BatchFiles
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.formats.scripts import export_suffix, write_script

MAX_COLUMNS = 65_535
_MAX_BYTES = 16 << 20
"""Half of what a request may have by default (service.max_request_size_mb: 32)."""
_DISTANCES: dict[ScoreKind, str] = {"cosine": "Cosine", "dot": "Dot", "euclidean": "Euclid"}
_SCRIPT = """\
#!/bin/sh
# Load these points into Qdrant: sh load.sh
# QDRANT_URL is the server (default: http://localhost:6333), and QDRANT_API_KEY its API key, if it requires one.
# Points go to a collection with the date of the export in its name; then an alias is switched to it.
set -eu
cd "$(dirname "$0")"
url=${QDRANT_URL:-http://localhost:6333}

# Pass the key on standard input, since other users can list the arguments of a process.
credentials() {
    if [ -n "${QDRANT_API_KEY:-}" ]; then
        printf '%s' "$QDRANT_API_KEY" | sed 's/[\\\\"]/\\\\&/g; s/^/header = "api-key: /; s/$/"/'
    fi
}

request() {
    credentials |
        curl --config - --silent --show-error --fail-with-body --header 'Content-Type: application/json' "$@"
    echo
}

load() {
    if ! request "$url/collections/$2/exists" | grep -q '"exists":true'; then
        request --request PUT --data-binary "@$1/collection.json" "$url/collections/$2"
    fi
    for file in "$1"/points-*.json; do
        echo "$file"
        request --request PUT --data-binary "@$file" "$url/collections/$2/points?wait=true"
    done
    request --request POST --data-binary "@$1/alias.json" "$url/collections/aliases"
}

"""


def write_qdrant(exported: ExportedModel, folder: Path) -> None:
    """Write the files.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """
    calls = []
    for table in exported.tables:
        name = exported.names[table.name]
        collection = f"{name}_{export_suffix(exported.date)}"
        _write_points(exported, table, folder / table.name)
        distance = _DISTANCES[exported.model.job.model.score]
        _write_json(folder / table.name / "collection.json", {"vectors": {"size": table.dim, "distance": distance}})
        actions = [
            {"delete_alias": {"alias_name": name}},
            {"create_alias": {"collection_name": collection, "alias_name": name}},
        ]
        _write_json(folder / table.name / "alias.json", {"actions": actions})
        calls.append(f"load {table.name} {collection}\n")
    write_script(folder / "load.sh", _SCRIPT + "".join(calls))


def qdrant_loading(exported: ExportedModel) -> str:
    """Return Markdown on how to load the files."""
    table = exported.example_table()
    example = exported.example_ids[table.name]
    point = json.dumps(point_id(example))
    return (
        "`load.sh` creates a collection for each entity, loads its points, and switches an alias to it in one step, so "
        "that searches never find a part of an export. Collections of earlier exports can then be deleted.\n\n"
        "```\nQDRANT_URL=http://localhost:6333 sh load.sh\n```\n\n"
        "A point's ID is the ID of the row, if that is an integer of at least 0; otherwise it is "
        "`uuid.uuid5(uuid.NAMESPACE_OID, id)`. The payload has `id` and `name`. The ten nearest of the first "
        f"{table.name}:\n\n"
        f"```\ncurl http://localhost:6333/collections/{exported.names[table.name]}/points/query \\\n"
        f"     --header 'Content-Type: application/json' \\\n"
        f'     --data \'{{"query": {point}, "limit": 10, "with_payload": true}}\'\n```'
    )


def point_id(row_id: int | str) -> int | str:
    """Return the ID of the point of the row with ``row_id``."""
    if isinstance(row_id, int) and row_id >= 0:
        return row_id
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(row_id)))


def _write_points(exported: ExportedModel, table: TableSpec, folder: Path) -> None:
    with BatchFiles(folder, "points-{:06d}.json", _MAX_BYTES, b'{"points":[', b",\n", b"]}\n") as files:
        for block in exported.trained_blocks(table):
            for piece in block.pieces():
                for row_id, name, vector in piece.records():
                    payload = {"id": row_id} | ({} if name is None else {"name": name})
                    point = json.dumps(point_id(row_id))
                    text = json.dumps(payload, ensure_ascii=False)
                    files.add(f'{{"id":{point},"payload":{text},"vector":{vector}}}'.encode())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
