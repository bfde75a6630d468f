"""Options of ``crossfade export``: which vectors to export, in which format, and to where."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import option
from crossfade.trainer.runs.options import Location, ModelSource, ShardOptions

FormatName = Literal[
    "parquet", "numpy", "safetensors", "faiss", "qdrant", "pgvector", "opensearch", "s3-vectors", "mlflow"
]
DATABASES: tuple[FormatName, ...] = ("qdrant", "pgvector", "opensearch", "s3-vectors")
CHANGES: tuple[FormatName, ...] = ("parquet", "pgvector", "s3-vectors")
"""The formats that can have what has changed only."""
PUSHES: tuple[FormatName, ...] = ("pgvector", "s3-vectors", "mlflow")
"""The formats that can be sent to a server."""
_PREFIX = re.compile(r"[a-z][a-z0-9_]*")
_output, _database = partial(option, group="output"), partial(option, group="database")


def _prefix(value: Any) -> Any:
    if isinstance(value, str) and not _PREFIX.fullmatch(value):
        raise ValueError("expected a lower-case letter, then letters a-z, digits, and '_'")
    return value


class ExportOptions(ShardOptions, ModelSource):
    """Which vectors to export, in which format, and to where."""

    group_notes: ClassVar = {"model": ""}  # the formats differ in what they export

    since: str | None = option(
        None,
        "export only what has changed since this version of a service, run, or checkpoint (parquet, pgvector, "
        "s3-vectors)",
        group="model",
        value="VERSION",
    )
    entity: tuple[str, ...] = option((), "export these tables (default: all)", group="model", value="NAME")
    to: FormatName = _output("parquet", "write this format, as described below")
    out: Location | None = _output(
        None,
        "write to this folder, which must not exist and is local unless there are shards (default: RUN/embeddings if "
        "train.save_embeddings is none and the format is parquet)",
        value="OUT",
    )
    overwrite: bool = _output(False, "replace an export at OUT")
    name: Annotated[str, BeforeValidator(_prefix)] | None = _database(
        None, "name tables, collections and indexes NAME_ENTITY (default: the job's name)", value="NAME"
    )
    push: str | None = _database(
        None,
        "replace the vectors there instead of writing files: in PostgreSQL by URI, if the format is pgvector (default: "
        "that of PGHOST and so on), or in a vector bucket by name, if it is s3-vectors; if it is mlflow, register the "
        "model as models:/NAME",
        value="PLACE",
        without_value="",
    )

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        if not self.is_divided:
            if self.out is not None and "://" in self.out:
                raise OptionError("out", found=self.out, expected=("a local path, or ", Option("shard")))
            return self
        name = "shard" if self.shard is not None else "merge"
        if self.out is None:
            fix = ("name it with ", Option("out", "OUT"))
            raise OptionError(name, problem="needs the folder of all shards", fix=fix)
        if self.to != "parquet" or self.since is not None:
            raise OptionError(name, problem="divides the Parquet files of all rows", expected=Option("to", "parquet"))
        if self.overwrite:
            raise OptionError("overwrite", problem="replaces a whole export", fix="for shards, choose another folder")
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        to, out, overwriting = self.to, Option("out"), Option("overwrite")
        if self.name is not None and to not in DATABASES:
            fits = Option("to", ", ".join(DATABASES))
            raise OptionError("name", found=self.name, problem="is for databases", expected=fits)
        if self.push is not None and to not in PUSHES:
            problem = ("writes to a server, but the format is ", to)
            raise OptionError("push", problem=problem, expected=Option("to", ", ".join(PUSHES)))
        if self.push is None and to == "s3-vectors":
            raise OptionError("to", found=to, problem="has no files", fix=("name a bucket with ", Option("push")))
        if self.push is not None and (self.out is not None or self.overwrite):
            raise OptionError("push", problem="writes no files", fix=("leave out ", out, " and ", overwriting))
        if self.since is not None and to not in CHANGES:
            raise OptionError("since", problem=("writes changes, but the format is ", to), expected=", ".join(CHANGES))
        if self.push is None and self.out is None and (to != "parquet" or self.since is not None):
            raise OptionError("to", found=to, fix=("name a new local folder with ", out))
        return self
