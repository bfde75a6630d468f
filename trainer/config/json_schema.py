"""Describe job files: as a JSON Schema for editors, ``crossfade schema``, and key by key.

    json.dumps(job_schema())
    for key, type_name, default, description in explain_fields():
        print(key, type_name, default, description)

Types, defaults, enumerations, bounds and descriptions are those of the pydantic models. Checks of several keys together
are validators there, which a schema does not have: ``crossfade train`` reports them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from crossfade.trainer.config.schema import JobConfig

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Leaves out titles that only repeat the names of keys and classes."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return whether to derive a title from the name of a key: never."""
        return False


def job_schema() -> Schema:
    """Return the JSON Schema of job files, of the dialect 2020-12."""
    generated = JobConfig.model_json_schema(schema_generator=_Generator)
    for section in generated["$defs"].values():
        section.pop("title")
    for section in (generated, *generated["$defs"].values()):
        for key in section["properties"].values():
            if "$ref" in key:
                key.pop("default", None)  # the keys of the section have their own
    described = {"title": "Crossfade job", "description": "A complete job: what 'crossfade train' runs."}
    return {"$schema": _DIALECT, **generated, **described}


_TYPE_NAMES = {"str": "text", "int": "integer", "float": "number"}


def explain_fields(section: type[BaseModel] = JobConfig, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield the dotted key, type, default (as YAML, or ``required``) and description of each field of ``section``."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from explain_fields(annotation, f"{prefix}{name}.")
        else:
            default = (
                "required"
                if field.is_required()
                else yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
            )
            yield f"{prefix}{name}", _type_name(annotation), default, field.description or ""


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return _TYPE_NAMES.get(annotation.__name__, annotation.__name__)
    arguments = get_args(annotation)
    if all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    origin = getattr(annotation, "__origin__", None)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[1])} by name"
    if hasattr(annotation, "__metadata__"):
        return _type_name(arguments[0])
    return " or ".join("null" if argument is type(None) else _type_name(argument) for argument in arguments)
