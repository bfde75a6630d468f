"""TODO-DOC split from trainer/config/schema.py."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kvstore.errors import InputError
from trainer.config.schema import JobConfig


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the second would silently win."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark)
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _scalar(tag: str, what: str) -> None:
    """Have a value that YAML takes for ``what``, but that is none, such as the date 2024-02-31, be an error."""
    construct = yaml.SafeLoader.yaml_constructors[tag]

    def constructed(loader: _UniqueKeyLoader, node: yaml.ScalarNode) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, KeyError, AttributeError, IndexError) as error:
            problem = f"'{node.value[:40]}' is no {what}; put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    _UniqueKeyLoader.add_constructor(tag, constructed)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


for _name, _what in (("int", "whole number"), ("float", "number"), ("bool", "true or false"), ("timestamp", "date")):
    _scalar(f"tag:yaml.org,2002:{_name}", _what)


_SHORT = reprlib.Repr()
"""What shows a value, however large it is, and also if it holds itself: YAML can say so."""


_SHORT.maxstring = _SHORT.maxother = 100


_SHORT.maxlevel = 2


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Read and check the job file at ``path``, with ``overrides`` such as ``train.epochs=5`` put over it.

    Raises:
        InputError: the file is missing, is not YAML, or holds an unknown key or a value that does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such job file; see jobs/ for some to start from") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8; expected a YAML file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return make_job(text, str(path), overrides)


def make_job(text: str, source: str, overrides: Sequence[str] = ()) -> JobConfig:
    """The job that ``text``, a job file that came from ``source``, describes, with ``overrides`` put over it.

    Raises:
        InputError: as ``load_job``.
    """
    values = _parse_yaml(text, source)
    if not isinstance(values, dict):
        raise InputError(f"{source}: not a job file: expected keys such as 'name:' and 'data:' at the top")
    for override in overrides:
        _apply_override(values, override)
    return check_job(values, source)


def check_job(values: dict[str, Any], source: str) -> JobConfig:
    """Check ``values``, which came from ``source``.

    Raises:
        InputError: with the first thing that is wrong, in one line.
    """
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_format_error(error)}") from error


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise InputError(f"{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: it is nested too deeply") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override}: expected KEY=VALUE, for example --set train.epochs=5")
    *sections, last = path.split(".")
    target = values
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise InputError(f"--set {override}: '{section}' is a value, not a section")
    target[last] = _parse_yaml(text, f"--set {override}")


def _format_error(error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    where = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = list(_section_at(location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
        return f"unknown key '{where}'; {hint}{more}"
    if first["type"] == "missing":
        return f"the key '{where}' is missing{more}"
    if first["type"] == "value_error":
        section = f"{where}: " if where else ""
        return f"{section}{first['msg'].removeprefix('Value error, ')}{more}"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, but found {_SHORT.repr(first['input'])}{more}"


def _section_at(location: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = JobConfig
    for part in location:
        field = section.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        section = field.annotation
    return section
