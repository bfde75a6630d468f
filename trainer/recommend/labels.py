"""Labels of an entity's rows, such as the genres of artists: from a user's file, or from a feature of the dataset.

    labels = read_labels(folder, manifest, LabelSource("artist", "artist_tags.tsv", "artistID", "top_genre"))
    labels.row_P, labels.label_P                # distinct pairs of a row and one of its labels, sorted
    labels.texts                                # the text of each label

Shapes: P pairs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, Option
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.features import iter_pairs
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.database import execute, working_database
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.input_files import find_files
from crossfade.trainer.prepare.raw_files import open_columns, read_errors
from crossfade.trainer.recommend.options import LabelSource

OPTION = Option("labels")


@dataclass(frozen=True)
class LabelPairs:
    """Distinct pairs of a row and one of its labels: int64, sorted by row, then by label.

    Attributes:
        row_P: the rows.
        label_P: the labels, by number.
        texts: the text of each label, or its name if a feature's values have names; empty if only numbers are known.
    """

    row_P: IntArray
    label_P: IntArray
    texts: pa.StringArray = field(default_factory=lambda: pa.array([], pa.string()))


def read_labels(folder: Folder, manifest: DatasetManifest, source: LabelSource) -> LabelPairs:
    """Read the labels of ``source`` for the rows of the dataset in ``folder``; labels are numbered by their text.

    Raises:
        InputError: there is no such entity, feature, file or column, or no ID has a label.
    """
    sides = (manifest.query, manifest.item)
    if source.entity not in sides:
        raise InputError(OPTION, f" {source.entity}=…: no such entity; expected '{sides[0]}' or '{sides[1]}'")
    if source.id_column is None or source.label_column is None:
        return _from_feature(folder, manifest, source)
    pairs = _from_file(folder, manifest, source, source.id_column, source.label_column)
    if not len(pairs.row_P):
        raise InputError(
            OPTION,
            f" {source.entity}={source.path}: has a label in '{source.label_column}' for none of the ids of "
            f"the data in '{source.id_column}'; expected ids of the same entity: check the columns",
        )
    return pairs


def _from_feature(folder: Folder, manifest: DatasetManifest, source: LabelSource) -> LabelPairs:
    known = manifest.features_of(source.entity)
    if source.path not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(
            OPTION,
            f" {source.entity}={source.path}: {folder.uri} has no such feature of {source.entity}; {has}; "
            "labels in a file are named as FILE:ID_COLUMN:LABEL_COLUMN",
        )
    pieces = [(row_N, value_N) for _, row_N, value_N in iter_pairs(folder, manifest, source.entity, source.path)]
    row_P, label_P = (np.concatenate([np.empty(0, np.int64), *column]) for column in zip(*pieces, strict=True))
    vocabulary = Vocabulary(folder, manifest, source.path)
    values = vocabulary.read(0, vocabulary.rows)
    texts = values.column("id").cast(pa.string())
    if "name" in values.column_names:
        texts = pc.coalesce(values.column("name"), texts)
    return LabelPairs(row_P, label_P, texts.combine_chunks())


def _from_file(
    folder: Folder, manifest: DatasetManifest, source: LabelSource, id_column: str, label_column: str
) -> LabelPairs:
    files = find_files("labels", [source.path], None, source.entity)
    with ExitStack() as opened:
        work = opened.enter_context(temporary_folder("labels"))
        connection = opened.enter_context(working_database(work, None, None))
        # As text, as in features: text files have no types, and an int64 has a single text form.
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
        for piece in Vocabulary(folder, manifest, source.entity).iter_tables(["row", "id"]):
            connection.register("piece", piece)
            execute(connection, "INSERT INTO known SELECT row, CAST(id AS VARCHAR) FROM piece WHERE id IS NOT NULL")
            connection.unregister("piece")
        pairs = connection.sql(
            "SELECT DISTINCT row, dense_rank() OVER (ORDER BY label) - 1 AS label FROM known JOIN given USING (id) "
            "ORDER BY ALL"
        ).to_arrow_table()
        texts = connection.sql("SELECT DISTINCT label FROM known JOIN given USING (id) ORDER BY label").to_arrow_table()
    row_P, label_P = (pairs.column(name).cast(pa.int64()).to_numpy() for name in ("row", "label"))
    return LabelPairs(row_P, label_P, texts.column("label").cast(pa.string()).combine_chunks())
