"""Write an index of FAISS for each table: those that ``crossfade index`` builds, which its commands search, too.

    FOLDER/ENTITY/index.faiss  rows.parquet  card.json

The vectors are searched by the score of the model. An index comes with the number of lists to scan and a measured
recall; a flat index would only repeat the exact search that the numpy format allows. Unlike the other formats, an index
is built in memory.
"""

from __future__ import annotations

from pathlib import Path

from crossfade.base.errors import command
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.formats.exported_model import ExportedModel
from crossfade.trainer.recommend.faiss_lists import load_faiss
from crossfade.trainer.recommend.index_build import build_index
from crossfade.trainer.recommend.index_folder import INDEX_FILE, ROWS_FILE, read_card
from crossfade.trainer.recommend.options import IndexOptions

_QUERIES: dict[ScoreKind, str] = {
    "cosine": "faiss.normalize_L2(query)",
    "dot": "query[:, {dim}:] = 0  # the column that the index adds for dot products",
    "euclidean": "",
}


def write_faiss(exported: ExportedModel, folder: Path) -> str:
    """Write an index of each table, and return Markdown on how to load them.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the model has no vectors of a table, or none that is trained.
        MissingExtraError: FAISS is not installed.
        OSError: a file cannot be written.
    """
    load_faiss(command("export", to="faiss"))
    for table in exported.tables:
        options = IndexOptions(out=str(folder / table.name), entity=table.name)
        card = build_index(exported.model, options, exported.reporter)
        exported.count(table, table.rows - card.rows)
    return _loading(exported, folder)


def _loading(exported: ExportedModel, folder: Path) -> str:
    table, _ = exported.example_tables()
    card = read_card(folder / table.name)
    label = "name" if exported.model.manifest.entities[table.name].has_names else "id"
    prepare = _QUERIES[card.metric].format(dim=table.dim)
    lines = [
        "import faiss",
        "import numpy as np",
        "import pyarrow.parquet as pq",
        "",
        f'index = faiss.read_index("{table.name}/{INDEX_FILE}")',
        f"faiss.extract_index_ivf(index).nprobe = {card.index.probes}  # lists to scan: card.json",
        f'rows = pq.read_table("{table.name}/{ROWS_FILE}")',
        "",
        "index.set_direct_map_type(faiss.DirectMap.Hashtable)",
        f'query = index.reconstruct(rows["row"][0].as_py())[np.newaxis]  # the first {table.name}',
        *([prepare] if prepare else []),
        "scores, found = index.search(query, 10)",
        f"names = dict(zip(rows['row'].to_pylist(), rows['{label}'].to_pylist()))",
        "for score, row in zip(scores[0], found[0]):",
        '    print(f"{score:.3f} {names.get(int(row))}")',
    ]
    measured = card.measured
    return (
        f"`ENTITY/{INDEX_FILE}` is an inverted file of FAISS, whose IDs are rows of `ENTITY/{ROWS_FILE}`; "
        f"`ENTITY/card.json` has its parameters. For {table.name}, recall@10 is {measured.recall_at_10:.4f} and "
        f"recall@100 {measured.recall_at_100:.4f} with {card.index.probes} of {card.index.lists} lists. "
        f"`crossfade recommend` and `crossfade similar` search such a folder as their index.\n\n"
        + "\n".join(["```python", *lines, "```"])
    )
