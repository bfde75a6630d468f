"""Describe every key of a job file, for ``crossfade train --explain``.

for key, type_name, default, description in explain_fields():
    print(key, type_name, default, description)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from crossfade.trainer.config.schema import JobConfig

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
