"""Describe job files: as a JSON Schema for editors, ``crossfade schema``, and key by key.

    json.dumps(job_schema())
    for key, type_name, default, description in explain_fields():
        print(key, type_name, default, description)

Types, defaults, enumerations, bounds and descriptions are those of the pydantic models. Checks of several keys together
are validators there, which pydantic cannot translate; ``_RULES`` states those that a schema can express.
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


def _has(**values: Any) -> Schema:
    """Match an object that has all of these keys, each with the value or the schema that is given."""
    return {
        "properties": {key: value if isinstance(value, dict) else {"const": value} for key, value in values.items()},
        "required": list(values),
    }


_RULES: tuple[tuple[str, Schema, Schema], ...] = (
    (
        "several workers of cluster.store mxnet need a server",
        _has(cluster=_has(store="mxnet", workers={"minimum": 2})),
        _has(cluster=_has(servers={"minimum": 1})),
    ),
    (
        "cluster.store sharded has no servers: the workers hold the tables",
        _has(cluster=_has(store="sharded")),
        {"properties": {"cluster": {"properties": {"servers": {"const": 0}}}}},
    ),
    (
        "set either cluster.hosts or cluster.one_role_per_host",
        _has(cluster=_has(one_role_per_host=True)),
        {"properties": {"cluster": {"properties": {"hosts": {"const": 1}}}}},
    ),
    (
        "a GPU as train.device needs train.engine torch or mxnet",
        _has(train=_has(device={"type": "string", "pattern": "^gpu"})),
        {"properties": {"train": {"properties": {"engine": {"not": {"const": "cpu"}}}}}},
    ),
    (
        "train.tables device needs train.engine torch, and a run in one process",
        _has(train=_has(tables="device")),
        {
            **_has(train=_has(engine="torch")),
            "not": _has(cluster={"anyOf": [_has(servers={"minimum": 1}), _has(workers={"minimum": 2})]}),
        },
    ),
    (
        "negatives.logq_correction needs loss softmax, and negatives that are sampled",
        _has(negatives=_has(logq_correction=True)),
        {
            "properties": {
                "loss": {"const": "softmax"},
                "negatives": {"properties": {"kind": {"not": {"const": "all"}}}},
            }
        },
    ),
    (
        "top_k needs loss softmax",
        _has(top_k={"type": "integer"}),
        {"properties": {"loss": {"const": "softmax"}}},
    ),
    (
        "top_k needs all items, or negatives of which it is known how often each is drawn",
        {
            **_has(top_k={"type": "integer"}),
            "anyOf": [
                _has(negatives=_has(kind={"enum": ["in_batch", "mixed"]})),
                _has(negatives=_has(kind={"enum": ["shared", "per_example"]}, sampling="popularity")),
            ],
        },
        _has(negatives=_has(logq_correction=True)),
    ),
    (
        "hosts that share no folder need checkpoint.path on S3",
        {
            **_has(cluster=_has(shared_run_dir=False, hosts={"minimum": 2})),
            "anyOf": [_has(cluster=_has(servers={"minimum": 1})), _has(cluster=_has(workers={"minimum": 2}))],
        },
        _has(checkpoint=_has(path={"type": "string", "pattern": "^s3://"})),
    ),
)
"""What must hold where a condition holds: why, the condition, and the consequence."""


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
    rules = [{"$comment": why, "if": condition, "then": consequence} for why, condition, consequence in _RULES]
    described = {"title": "Crossfade job", "description": "A complete job: what 'crossfade train' runs."}
    return {"$schema": _DIALECT, **generated, **described, "allOf": rules}


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
