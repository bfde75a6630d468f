"""Options of ``crossfade export``: which vectors to export, in which format, and to where."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import option
from crossfade.trainer.runs.options import Location, ModelSource

FormatName = Literal["parquet", "numpy", "safetensors", "pgvector", "qdrant", "opensearch", "s3-vectors", "mlflow"]
DATABASES: tuple[FormatName, ...] = ("pgvector", "qdrant", "opensearch", "s3-vectors")
"""Formats that are pushed to a server; the others are files, and mlflow is both."""
_PREFIX = re.compile(r"[a-z][a-z0-9_]*")
_output, _server = partial(option, group="output"), partial(option, group="server")


def _prefix(value: Any) -> Any:
    if isinstance(value, str) and not _PREFIX.fullmatch(value):
        raise ValueError("expected a lower-case letter, then letters a-z, digits, and '_'")
    return value


class ExportOptions(ModelSource):
    """Which vectors to export, in which format, and to where."""

    group_notes: ClassVar = {"model": ""}  # the formats differ in what they export

    entity: tuple[str, ...] = option((), "export these tables (default: all)", group="model", value="NAME")
    to: FormatName = _output("parquet", "export in this format, as described below")
    out: Location | None = _output(
        None,
        "write to this folder, which must not exist",
        value="OUT",
    )
    overwrite: bool = _output(False, "replace an export at OUT")
    push: str | None = _server(
        None,
        "replace the vectors there: a URI of pgvector, a URL of qdrant or opensearch, or a bucket of s3-vectors; or "
        "register the model at this tracking URI of mlflow (default: what the environment names)",
        value="PLACE",
        without_value="",
    )
    name: Annotated[str, BeforeValidator(_prefix)] | None = _server(
        None,
        "name tables, collections and indexes NAME_ENTITY, a model of mlflow NAME (default: the job's name)",
        value="NAME",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        to, out = self.to, Option("out")
        is_pushed = to in DATABASES or (to == "mlflow" and self.push is not None)
        fits = Option("to", ", ".join((*DATABASES, "mlflow")))
        if self.name is not None and not is_pushed:
            raise OptionError(
                "name", found=self.name, problem="is for servers", expected=(fits, " with ", Option("push"))
            )
        if to == "mlflow" and self.entity:
            raise OptionError("entity", problem="mlflow needs all tables", fix=("leave out ", Option("entity")))
        if is_pushed:
            if self.push is None:
                raise OptionError("to", found=to, problem="has no files", fix=("name a server with ", Option("push")))
            if self.out is not None or self.overwrite:
                fix = ("leave out ", out, " and ", Option("overwrite"))
                raise OptionError("push", problem="writes no files", fix=fix)
            return self
        if self.push is not None:
            problem = f"writes to a server, but the format is {to}"
            raise OptionError("push", problem=problem, expected=fits)
        if self.out is None:
            if to == type(self).model_fields["to"].default:
                raise OptionError("out", fix="name a new local folder")
            raise OptionError("to", found=to, fix=("name a new local folder with ", out))
        if "://" in self.out:
            raise OptionError("out", found=self.out, expected="a local path")
        return self
