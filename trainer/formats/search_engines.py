"""Write a collection of Qdrant or an index of OpenSearch for each table, as bodies of requests to their REST APIs.

    FOLDER/load.sh                        loads everything with curl
    FOLDER/ENTITY/collection.json         Qdrant: PUT /collections/NAME: size and distance
    FOLDER/ENTITY/points-000000.json      PUT /collections/NAME/points: IDs, vectors, and the payload id and name
    FOLDER/ENTITY/index.json              OpenSearch: PUT /INDEX: the mapping
    FOLDER/ENTITY/bulk-000000.ndjson      POST /INDEX/_bulk: documents with id, name, and vector
    FOLDER/ENTITY/alias.json              POST /collections/aliases or /_aliases: switches the alias to this export

A point's ID must be an unsigned integer or a UUID. It is the ID of the row or, if that is no such integer, a UUID of
version 5 of its text, so that points of different exports agree. The engine of OpenSearch is Lucene, which has all
three spaces from OpenSearch 2.13 on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import quote

from crossfade.base.errors import InputError
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.formats.exported_model import ExportedModel, write_script

QDRANT_MAX_COLUMNS, OPENSEARCH_MAX_COLUMNS = 65_535, 16_000
_POINTS_BYTES = 16 << 20
"""Half of what a request to Qdrant may have by default (service.max_request_size_mb: 32)."""
_BULK_BYTES = 8 << 20
"""Below the 10 MiB that a request may have on the smaller instances of Amazon OpenSearch Service."""
_MAX_ID_BYTES = 512
_DISTANCES: dict[ScoreKind, str] = {"cosine": "Cosine", "dot": "Dot", "euclidean": "Euclid"}
_SPACES: dict[ScoreKind, str] = {"cosine": "cosinesimil", "dot": "innerproduct", "euclidean": "l2"}
_QDRANT_SCRIPT = """\
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
_OPENSEARCH_SCRIPT = """\
#!/bin/sh
# Load these documents into OpenSearch: sh load.sh
# OPENSEARCH_URL is the server (default: http://localhost:9200); OPENSEARCH_USER and OPENSEARCH_PASSWORD, if required.
# Documents go to an index with the date of the export in its name; then an alias is switched to it.
set -eu
cd "$(dirname "$0")"
url=${OPENSEARCH_URL:-http://localhost:9200}

# Pass the password on standard input, since other users can list the arguments of a process.
credentials() {
    if [ -n "${OPENSEARCH_USER:-}" ]; then
        printf '%s:%s' "$OPENSEARCH_USER" "${OPENSEARCH_PASSWORD:-}" | sed 's/[\\\\"]/\\\\&/g; s/^/user = "/; s/$/"/'
    fi
}

request() {
    type=$1
    shift
    credentials |
        curl --config - --silent --show-error --fail-with-body --header "Content-Type: application/$type" "$@"
}

load() {
    if ! request json --head "$url/$2" > /dev/null 2>&1; then
        request json --request PUT --data-binary "@$1/index.json" "$url/$2"
        echo
    fi
    for file in "$1"/bulk-*.ndjson; do
        answer=$(request x-ndjson --data-binary "@$file" "$url/$2/_bulk?filter_path=errors,items.*.error")
        echo "$file $answer"
        case $answer in
            *'"errors":false'*) ;;
            *) exit 1 ;;
        esac
    done
    request json --request POST "$url/$2/_refresh"
    echo
    request json --data-binary "@$1/alias.json" "$url/_aliases"
    echo
}

"""


def write_qdrant(exported: ExportedModel, folder: Path) -> str:
    """Write the files for Qdrant, and return Markdown on how to load them.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or the dataset is corrupt.
        OSError: a file cannot be written.
    """

    def collection(table: TableSpec) -> dict[str, Any]:
        return {"vectors": {"size": table.dim, "distance": _DISTANCES[exported.model.job.model.score]}}

    def point(_: TableSpec, row_id: int | str, fields: str, vector: str) -> str:
        return f'{{"id":{json.dumps(point_id(row_id))},"payload":{fields},"vector":{vector}}}'

    def alias(name: str, target: str) -> list[dict[str, Any]]:
        return [
            {"delete_alias": {"alias_name": name}},
            {"create_alias": {"collection_name": target, "alias_name": name}},
        ]

    for table in exported.tables:
        path = folder / table.name
        with _BatchFiles(path, "points-{:06d}.json", _POINTS_BYTES, b'{"points":[', b",\n", b"]}\n") as files:
            _write_records(exported, table, files, point)
        _write_json(path / "collection.json", collection(table))
    _write_aliases(exported, folder, _QDRANT_SCRIPT, alias)
    return _qdrant_loading(exported)


def write_opensearch(exported: ExportedModel, folder: Path) -> str:
    """Write the files for OpenSearch; raises as ``write_qdrant``, and InputError if an ID is too long."""

    def document(table: TableSpec, row_id: int | str, fields: str, vector: str) -> str:
        text = str(row_id)
        if (size := len(text.encode())) > _MAX_ID_BYTES:
            raise InputError(
                f"{exported.model.data.uri}: the ID '{text[:40]}…' of '{table.name}' has {size:,} bytes, of "
                f"{_MAX_ID_BYTES} at most in OpenSearch; export to another format, or prepare the data with shorter IDs"
            )
        action = json.dumps({"index": {"_id": text}}, ensure_ascii=False)
        return f'{action}\n{fields[:-1]}, "vector": {vector}}}\n'

    def alias(name: str, target: str) -> list[dict[str, Any]]:
        return [
            {"remove": {"index": f"{name}_*", "alias": name, "must_exist": False}},
            {"add": {"index": target, "alias": name}},
        ]

    for table in exported.tables:
        with _BatchFiles(folder / table.name, "bulk-{:06d}.ndjson", _BULK_BYTES) as files:
            _write_records(exported, table, files, document)
        _write_json(folder / table.name / "index.json", _mapping(exported, table))
    _write_aliases(exported, folder, _OPENSEARCH_SCRIPT, alias)
    return _opensearch_loading(exported)


def point_id(row_id: int | str) -> int | str:
    """Return the ID of the point of the row with ``row_id``."""
    if isinstance(row_id, int) and row_id >= 0:
        return row_id
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(row_id)))


def _mapping(exported: ExportedModel, table: TableSpec) -> dict[str, Any]:
    model = exported.model
    method = {"name": "hnsw", "engine": "lucene", "space_type": _SPACES[model.job.model.score]}
    is_text = model.manifest.entities[table.name].id_type == "string"
    properties = {
        "id": {"type": "keyword" if is_text else "long"},
        "name": {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}},
        "vector": {"type": "knn_vector", "dimension": table.dim, "method": method},
    }
    return {"settings": {"index": {"knn": True}}, "mappings": {"properties": properties}}


def _write_records(
    exported: ExportedModel,
    table: TableSpec,
    files: _BatchFiles,
    record: Callable[[TableSpec, int | str, str, str], str],
) -> None:
    """Write the ``record`` of each row: of its ID, the JSON of its ID and name, and its vector."""
    for block in exported.trained_blocks(table):
        for piece in block.pieces():
            for row_id, name, vector in piece.records():
                fields = json.dumps({"id": row_id} | ({} if name is None else {"name": name}), ensure_ascii=False)
                files.add(record(table, row_id, fields, vector).encode())


def _write_aliases(
    exported: ExportedModel, folder: Path, script: str, alias: Callable[[str, str], list[dict[str, Any]]]
) -> None:
    """Write how the ``alias`` of each table is switched, and the script, to names that differ between exports."""
    suffix = exported.date.astimezone(UTC).strftime("%Y%m%dt%H%M%S")
    for table in exported.tables:
        name = exported.names[table.name]
        _write_json(folder / table.name / "alias.json", {"actions": alias(name, f"{name}_{suffix}")})
        script += f"load {table.name} {name}_{suffix}\n"
    write_script(folder / "load.sh", script)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


@dataclass
class _BatchFiles:
    """Numbered files of a limited size, each of which is the body of one request.

    ``name`` is the format of a file's name, with the number of the file.
    """

    folder: Path
    name: str
    max_bytes: int
    opening: bytes = b""
    separator: bytes = b""
    closing: bytes = b""
    _file: BinaryIO | None = None
    _number: int = 0
    _bytes: int = 0

    def __enter__(self) -> _BatchFiles:
        """Create the folder, and return self."""
        self.folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Complete the last file."""
        if self._file is not None:
            self._close(self._file)

    def add(self, record: bytes) -> None:
        """Append ``record``, to a new file if the current one would exceed the limit."""
        added = len(self.separator) + len(record) + len(self.closing)
        if self._file is not None and self._bytes + added > self.max_bytes:
            self._close(self._file)
        if self._file is None:
            self._file = (self.folder / self.name.format(self._number)).open("wb")
            self._file.write(self.opening + record)
            self._bytes = len(self.opening) + len(record)
        else:
            self._file.write(self.separator + record)
            self._bytes += len(self.separator) + len(record)

    def _close(self, file: BinaryIO) -> None:
        file.write(self.closing)
        file.close()
        self._file = None
        self._number += 1


def _qdrant_loading(exported: ExportedModel) -> str:
    table, _ = exported.example_tables()
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


def _opensearch_loading(exported: ExportedModel) -> str:
    table, _ = exported.example_tables()
    alias, example = exported.names[table.name], quote(str(exported.example_ids[table.name]), safe="")
    return (
        "`load.sh` creates an index for each entity, loads its documents, and switches an alias to it in one step, so "
        "that searches never find a part of an export. Indexes of earlier exports can then be deleted. OpenSearch 2.13 "
        "or later is required.\n\n"
        "```\nOPENSEARCH_URL=http://localhost:9200 sh load.sh\n```\n\n"
        "A document's `_id` is the ID of the row; it has `id`, `name`, and `vector`. The ten nearest of the first "
        f"{table.name}:\n\n"
        f"```\nvector=$(curl --silent http://localhost:9200/{alias}/_doc/{example} | jq --compact-output "
        "._source.vector)\n"
        f"curl http://localhost:9200/{alias}/_search --header 'Content-Type: application/json' \\\n"
        '     --data "{\\"size\\": 10, \\"_source\\": [\\"id\\", \\"name\\"],\n'
        '              \\"query\\": {\\"knn\\": {\\"vector\\": {\\"vector\\": $vector, \\"k\\": 10}}}}"\n```'
    )
