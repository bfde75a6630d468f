"""Write an index of OpenSearch for each table: its mapping, and the documents as bodies of requests to its bulk API.

    FOLDER/load.sh                        loads everything with curl
    FOLDER/ENTITY/index.json              PUT /INDEX: the mapping
    FOLDER/ENTITY/bulk-000000.ndjson      POST /INDEX/_bulk: documents with id, name, and vector
    FOLDER/ENTITY/alias.json              POST /_aliases: switches the alias to this export

The engine is Lucene, which has all three spaces from OpenSearch 2.13 on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from crossfade.base.errors import InputError
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.sections import ScoreKind
from crossfade.trainer.formats.batch_files import BatchFiles
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.formats.scripts import export_suffix, write_script

MAX_COLUMNS = 16_000
_MAX_BYTES = 8 << 20
"""Below the 10 MiB that a request may have on the smaller instances of Amazon OpenSearch Service."""
_MAX_ID_BYTES = 512
_SPACES: dict[ScoreKind, str] = {"cosine": "cosinesimil", "dot": "innerproduct", "euclidean": "l2"}
_SCRIPT = """\
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


def write_opensearch(exported: ExportedModel, folder: Path) -> None:
    """Write the files.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, the dataset is corrupt, or an ID is too long.
        OSError: a file cannot be written.
    """
    calls = []
    for table in exported.tables:
        name = exported.names[table.name]
        index = f"{name}_{export_suffix(exported.date)}"
        _write_documents(exported, table, folder / table.name)
        _write_json(folder / table.name / "index.json", _mapping(exported, table))
        actions = [
            {"remove": {"index": f"{name}_*", "alias": name, "must_exist": False}},
            {"add": {"index": index, "alias": name}},
        ]
        _write_json(folder / table.name / "alias.json", {"actions": actions})
        calls.append(f"load {table.name} {index}\n")
    write_script(folder / "load.sh", _SCRIPT + "".join(calls))


def opensearch_loading(exported: ExportedModel) -> str:
    """Return Markdown on how to load the files."""
    table = exported.example_table()
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


def _write_documents(exported: ExportedModel, table: TableSpec, folder: Path) -> None:
    with BatchFiles(folder, "bulk-{:06d}.ndjson", _MAX_BYTES) as files:
        for block in exported.trained_blocks(table):
            for piece in block.pieces():
                for row_id, name, vector in piece.records():
                    text = str(row_id)
                    if len(text.encode()) > _MAX_ID_BYTES:
                        raise InputError(
                            f"{exported.model.data.uri}: the ID '{text[:40]}…' of '{table.name}' has "
                            f"{len(text.encode()):,} bytes, of {_MAX_ID_BYTES} at most in OpenSearch; export to "
                            "another format, or prepare the data with shorter IDs"
                        )
                    action = json.dumps({"index": {"_id": text}}, ensure_ascii=False)
                    values = {"id": row_id} | ({} if name is None else {"name": name})
                    fields = json.dumps(values, ensure_ascii=False)
                    files.add(f'{action}\n{fields[:-1]}, "vector": {vector}}}\n'.encode())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
