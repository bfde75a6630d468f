"""Labels of an entity's rows, such as the genres of artists: from a file of a user's, or a feature of the data.

    wanted = LabelSource.parse("artist=artist_tags.tsv:artistID:top_genre")        # or "artist=tag"
    labels = read_labels(folder, manifest, wanted)
    labels.row_P, labels.label_P                # pairs of a row and a label that it has, sorted, each once

Letters of shapes: P pairs.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kvstore.arrays import IntArray
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from trainer.data.features import iter_pairs
from trainer.data.manifest import DatasetManifest
from trainer.data.vocabulary import Vocabulary
from trainer.prepare.database import execute, working_database
from trainer.prepare.fetch import fetch_files
from trainer.prepare.input_files import find_files
from trainer.prepare.raw_files import open_columns, read_errors

OPTION = "--labels"


@dataclass(frozen=True)
class LabelSource:
    """Where labels of ``entity`` are: in a column of the file ``path``, or in the feature ``path`` of the data.

    ``id_column`` and ``label_column`` are None for a feature.
    """

    entity: str
    path: str
    id_column: str | None = None
    label_column: str | None = None

    @staticmethod
    def parse(text: str) -> LabelSource:
        """Read ``ENTITY=FILE:ID_COLUMN:LABEL_COLUMN`` or ``ENTITY=FEATURE``.

        Raises:
            InputError: it is of another form.
        """
        entity, _, rest = text.partition("=")
        parts = rest.rsplit(":", 2)
        if not entity or len(parts) == 2 or not all(parts):
            raise InputError(
                f"{OPTION} {text}: expected ENTITY=FILE:ID_COLUMN:LABEL_COLUMN, as in track=songs.csv:id:genre, or "
                "ENTITY=FEATURE"
            )
        return LabelSource(entity, *parts)


@dataclass(frozen=True)
class LabelPairs:
    """Pairs of a row and a label that it has: int64, sorted by row, then by label, each once."""

    row_P: IntArray
    label_P: IntArray


def read_labels(folder: Folder, manifest: DatasetManifest, wanted: LabelSource) -> LabelPairs:
    """The labels that ``wanted`` names of the data that ``manifest`` describes; labels are numbered by their text.

    Raises:
        InputError: there is no such entity, feature, file or column, or none of the ids has a label.
    """
    sides = (manifest.query, manifest.item)
    if wanted.entity not in sides:
        raise InputError(f"{OPTION} {wanted.entity}=…: no such entity; expected '{sides[0]}' or '{sides[1]}'")
    if wanted.id_column is None or wanted.label_column is None:
        return _of_feature(folder, manifest, wanted)
    pairs = _of_file(folder, manifest, wanted, wanted.id_column, wanted.label_column)
    if not len(pairs.row_P):
        raise InputError(
            f"{OPTION} {wanted.entity}={wanted.path}: has a label in '{wanted.label_column}' for none of the ids of "
            f"the data in '{wanted.id_column}'; expected ids of the same entity: check the columns"
        )
    return pairs


def _of_feature(folder: Folder, manifest: DatasetManifest, wanted: LabelSource) -> LabelPairs:
    known = manifest.features_of(wanted.entity)
    if wanted.path not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(
            f"{OPTION} {wanted.entity}={wanted.path}: {folder.uri} has no such feature of {wanted.entity}; {has}; "
            "labels in a file are named as FILE:ID_COLUMN:LABEL_COLUMN"
        )
    pieces = [(row_N, value_N) for _, row_N, value_N in iter_pairs(folder, manifest, wanted.entity, wanted.path)]
    row_P, label_P = (np.concatenate([np.empty(0, np.int64), *column]) for column in zip(*pieces, strict=True))
    return LabelPairs(row_P, label_P)


def _of_file(
    folder: Folder, manifest: DatasetManifest, wanted: LabelSource, id_column: str, label_column: str
) -> LabelPairs:
    files = find_files(f"{OPTION} {wanted.entity}", [wanted.path], None)
    with ExitStack() as opened:
        work = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="crossfade-labels-")))
        connection = opened.enter_context(working_database(work, None, None))
        # As text, as in features: text files have no types, and an int64 has one way only to be written.
        execute(connection, "CREATE TABLE given (id VARCHAR, label VARCHAR)")
        for file in opened.enter_context(fetch_files(files, work, [id_column, label_column])):
            open_columns(connection, file, {"id": id_column, "label": label_column}, lists=("label",))
            with read_errors(file):
                execute(
                    connection,
                    "INSERT INTO given SELECT CAST(id AS VARCHAR), CAST(label AS VARCHAR) FROM raw "
                    "WHERE id IS NOT NULL AND label IS NOT NULL AND CAST(label AS VARCHAR) <> ''",
                )
        execute(connection, "CREATE TABLE known (row BIGINT, id VARCHAR)")
        for piece in Vocabulary(folder, manifest, wanted.entity).iter_tables(["row", "id"]):
            connection.register("piece", piece)
            execute(connection, "INSERT INTO known SELECT row, CAST(id AS VARCHAR) FROM piece WHERE id IS NOT NULL")
            connection.unregister("piece")
        pairs = connection.sql(
            "SELECT DISTINCT row, dense_rank() OVER (ORDER BY label) - 1 AS label FROM known JOIN given USING (id) "
            "ORDER BY ALL"
        ).to_arrow_table()
    row_P, label_P = (pairs.column(name).cast(pa.int64()).to_numpy() for name in ("row", "label"))
    return LabelPairs(row_P, label_P)
