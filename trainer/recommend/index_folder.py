"""The folder of an index: its files, the card that describes them, and the check that they belong to a model.

    card = read_card(Path("indexes/lastfm"))
    check_index(card, Path("indexes/lastfm"), model, "artist", "cosine")

    FOLDER/card.json        IndexCard
    FOLDER/index.faiss      the vectors, in the format of FAISS, each with its row

Shapes: N rows, D columns.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError, Option, command
from crossfade.base.io.checksums import FileChecksum, verify_files
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.replacing import check_replaceable
from crossfade.base.json_text import validate_json
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.manifest import Count, data_fingerprint
from crossfade.trainer.recommend.trained_model import TrainedModel

CARD_FILE, INDEX_FILE = "card.json", "index.faiss"
_CHECKED_ROWS = 1024
"""Rows whose vectors identify a model. Rows are in order of frequency, so training changes these in every epoch."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IndexedModel(_Section):
    """The model whose vectors an index holds; ``crc32`` is of the vectors of its first rows."""

    uri: str
    data_fingerprint: Count
    crc32: Count


class IndexMeasurements(_Section):
    """Approximate search compared with exact search, for ``queries`` vectors of the entity ``query_entity``."""

    query_entity: str
    queries: Count
    recall_at_100: float


class IndexCard(_Section):
    """What an index holds, how many of its lists a search scans, and how well it searches."""

    format: Literal["crossfade-index"] = "crossfade-index"
    version: Literal[4] = 4
    model: IndexedModel
    entity: str
    metric: ScoreKind
    rows: Count
    dim: Annotated[int, Field(ge=1, lt=2**31)]
    lists: Count
    probes: Count
    measured: IndexMeasurements
    files: dict[Annotated[str, Field(pattern=r"^index\.faiss$")], FileChecksum] = Field(min_length=1)


def read_card(folder: Path) -> IndexCard:
    """Read the card of the index in ``folder``.

    Raises:
        InputError: there is none, or its format is another one.
    """
    path = folder / CARD_FILE
    try:
        return validate_json(IndexCard, read_below(folder, CARD_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: has no {CARD_FILE}; expected a folder that {command('index')} wrote") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(
            f"{path}: is not the card of an index: {error}; build it again with {command('index')}"
        ) from error


def check_index(card: IndexCard, folder: Path, model: TrainedModel, entity: str, metric: ScoreKind) -> BoolArray:
    """Check that the index in ``folder`` has the vectors of ``entity`` in ``model``, and searches by ``metric``.

    Vectors are compared, so that a run may be moved, and its checkpoint used instead of its embeddings.

    Returns:
        Which rows it has, bool (R,).

    Raises:
        InputError: it has not, or a file of it is damaged.
    """
    named = Option("index", folder)
    again = f"build one with {command('index', model.uri.removesuffix('/embeddings'), entity=entity, metric=metric)}"
    if card.entity != entity:
        raise InputError(named, f": has the vectors of '{card.entity}', not of '{entity}'; {again}")
    if card.metric != metric:
        raise InputError(named, f": searches by {card.metric}, but the ranking is by {metric}; {again}")
    if card.model.data_fingerprint != data_fingerprint(model.data):
        raise InputError(named, f": was built with another dataset than {model.data.uri}; {again}")
    indexed_R = model.trained_rows(entity)
    rows_N = np.flatnonzero(indexed_R)
    if len(rows_N) != card.rows or vectors_crc32(model, entity, rows_N) != card.model.crc32:
        raise InputError(named, f": was built from other vectors ({card.model.uri}) than {model.uri} has now; {again}")
    verify_files(folder, card.files, CARD_FILE, "copy the folder again, or build the index again")
    return indexed_R


def vectors_crc32(model: TrainedModel, entity: str, rows_N: IntArray) -> int:
    """Return the CRC-32 by which the vectors of the indexed ``rows_N``, int64 and sorted, are recognized."""
    return zlib.crc32(np.ascontiguousarray(model.vectors.vectors(entity, rows_N[:_CHECKED_ROWS])).tobytes())


def check_free(out: Path, overwrite: bool) -> None:
    """Reject an existing ``out``, unless ``overwrite`` is given and it holds nothing but an index.

    Raises:
        InputError: it may not be replaced.
    """

    def find_foreign() -> str | None:
        names = {path.name for path in out.iterdir()}
        return min(names - {CARD_FILE, INDEX_FILE} if CARD_FILE in names else names, default=None)

    check_replaceable(out, overwrite, "an index", find_foreign)
