"""Load and check job files: YAML, with overrides.

    job = load_job(Path("jobs/lastfm.yaml"), ["train.epochs=5", "cluster.workers=2"])

Unknown keys, duplicate keys and values of the wrong type are rejected in one line that names the key, what was found
and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from crossfade.base.errors import InputError, Option, OptionError, Text
from crossfade.base.io.regular_files import read_regular
from crossfade.base.text import similar_name, similar_path
from crossfade.base.validation import count_problems, first_problem, format_validation_error
from crossfade.trainer.config.schema import JobConfig

NO_OPTIONS: Mapping[str, Text] = {}
_JOBS = Path("jobs")
_SCALARS = {"int": "integer", "float": "number", "bool": "boolean", "timestamp": "date"}
"""YAML's tags of plain values, and the words for them."""
_MAX_BYTES, _MAX_SCALAR_LETTERS = 1 << 16, 100
"""Limits of a job file: a job has about a hundred values in 4 kB."""


class _JobLoader(yaml.SafeLoader):
    """Safe YAML that rejects aliases, malformed plain values, and duplicate keys, of which the last would win."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node, but reject an alias: aliases of aliases would multiply without bound."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias, which a job cannot have; repeat the value", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _construct_mapping(loader: _JobLoader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.MarkedYAMLError(problem="expected a mapping", problem_mark=node.start_mark)
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark)
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
    return loader.construct_mapping(node, deep=True)


def _reject_malformed(tag: str, kind: str) -> None:
    """Report a value that YAML takes for a ``kind`` but cannot construct, such as the date 2024-02-31, by its line."""
    construct = yaml.SafeLoader.yaml_constructors[tag]

    def construct_checked(loader: _JobLoader, node: yaml.ScalarNode) -> Any:
        try:
            value = construct(loader, node) if len(node.value) <= _MAX_SCALAR_LETTERS else None
            if value is None or (isinstance(value, int) and not -(2**63) <= value < 2**63):
                raise ValueError("not a number of 64 bits")
            return value
        except (ValueError, KeyError, AttributeError, IndexError) as error:
            problem = f"'{node.value[:40]}' is not a valid {kind}; put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    _JobLoader.add_constructor(tag, construct_checked)


_JobLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
for _name, _kind in _SCALARS.items():
    _reject_malformed(f"tag:yaml.org,2002:{_name}", _kind)


def load_job(path: Path, overrides: Sequence[str] = (), typed: Mapping[str, Text] = NO_OPTIONS) -> JobConfig:
    """Read and check the job file at ``path``; ``overrides`` such as ``train.epochs=5`` replace values of the file.

    Messages about an override name the option ``set`` or, if it is in ``typed``, the words there.

    Raises:
        InputError: the file is missing or not YAML, or has an unknown key or an invalid value.
    """
    try:
        data = read_regular(path, _MAX_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: no such job file; {_suggest_file(path)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return make_job(data, str(path), overrides, typed)


def _suggest_file(path: Path) -> str:
    """Describe where the job file that ``path`` was meant to name may be."""
    near = similar_path(path.stem, [file for folder in (path.parent, Path(), _JOBS) for file in folder.glob("*.y*ml")])
    if near is not None:
        return f"did you mean '{near}'?"
    return (
        f"see {_JOBS}/ for examples" if _JOBS.is_dir() else "expected a YAML file with keys such as 'name:' and 'data:'"
    )


def make_job(
    text: str | bytes, source: str, overrides: Sequence[str] = (), typed: Mapping[str, Text] = NO_OPTIONS
) -> JobConfig:
    """Parse and check the job file ``text`` with ``overrides``, see ``load_job``; messages name it as ``source``.

    Raises:
        InputError: as ``load_job``.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise InputError(source, ": is not UTF-8 text; expected a YAML file") from error
    values = parse_job_text(text, source)
    if not isinstance(values, dict):
        raise InputError(source, ": not a job file: expected keys such as 'name:' and 'data:' at the top level")
    for override in overrides:
        _apply_override(values, override)
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        wrong = _override_of(error, overrides)
        where: Text = source if wrong is None else typed.get(wrong, Option("set", wrong))
        raise InputError(where, f": {_format_error(error)}") from error


def check_job(values: dict[str, Any], source: str) -> JobConfig:
    """Validate ``values``, nested as in a job file; messages name them as ``source``.

    Raises:
        InputError: naming the first problem, in one line.
    """
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(source, f": {_format_error(error)}") from error


def change_job(job: JobConfig, changes: Mapping[str, Any], source: str) -> JobConfig:
    """Return ``job`` with the values of ``changes`` by key, such as ``train.epochs``; messages name it as ``source``.

    Raises:
        InputError: as ``check_job``.
    """
    values = job.model_dump(mode="json")
    for key, value in changes.items():
        try:
            _set_key(values, key, value)
        except ValueError as error:
            raise InputError(source, f": {error}") from None
    return check_job(values, source)


def _set_key(values: dict[str, Any], key: str, value: object) -> None:
    """Set ``key``, such as ``train.epochs``, in ``values``, to which missing sections are added.

    Raises:
        ValueError: the key is below a value.
    """
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ValueError(f"'{section}' is a value, not a section")
    values[last] = value


def parse_job_text(text: str, source: Text) -> Any:
    """Parse ``text``, YAML of bounded size, without checking its keys; messages name it as ``source``.

    Raises:
        InputError: it is not such YAML.
    """
    if len(text) > _MAX_BYTES:
        raise InputError(source, f": has {len(text):,} letters; expected a job of at most {_MAX_BYTES:,}")
    try:
        return yaml.load(text, Loader=_JobLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(source, f"{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(source, f": not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise InputError(source, ": not valid YAML: nested too deeply") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        example = Option("set", "train.epochs=5")
        raise OptionError("set", found=override, expected=("KEY=VALUE, for example ", example))
    value = parse_job_text(text, Option("set", override))
    try:
        _set_key(values, path, value)
    except ValueError as error:
        raise OptionError("set", found=override, problem=str(error)) from None


def _override_of(error: ValidationError, overrides: Sequence[str]) -> str | None:
    """Return the last of ``overrides`` that sets the first value that ``error`` names; None if none does."""
    first = first_problem(error)
    where = ".".join(map(str, first["loc"]))
    for override in reversed(overrides):
        key = override.partition("=")[0]
        # Of an unknown key, the error names the part up to the unknown word.
        is_unknown = first["type"] == "extra_forbidden" and f"{key}.".startswith(f"{where}.")
        if is_unknown or f"{where}.".startswith(f"{key}."):
            return override
    return None


def _format_error(error: ValidationError) -> str:
    first = first_problem(error)
    location = [str(part) for part in first["loc"]]
    where = ".".join(location)
    count = count_problems(error)
    more = f" (and {count - 1} more)" if count > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'; {_suggest_key(location)}{more}"
    if first["type"] == "missing":
        return f"the key '{where}' is missing{more}"
    if first["type"] in ("model_type", "model_attributes_type") and where:
        example = next(iter(_section_at(location).model_fields))
        found = f"{first['input']!r:.100}"
        value = found.strip("'") if isinstance(first["input"], str) else "…"
        return f"{where}: expected keys, as in '{location[-1]}: {{{example}: {value}}}', but found {found}{more}"
    if not where:
        # A check across sections: its message names the keys itself.
        return f"{first['msg'].removeprefix('Value error, ')}{more}"
    return f"{format_validation_error(error, show_input=True)}{more}"


def _suggest_key(location: Sequence[str]) -> str:
    """Suggest the key of another section with the same name, a similar one of the same section, or all of these."""
    from crossfade.trainer.config.json_schema import explain_fields

    known = list(_section_at(location[:-1]).model_fields)
    elsewhere = [key for key, *_ in explain_fields() if key.endswith(f".{location[-1]}")]
    near = elsewhere or [key for key in [similar_name(location[-1], known)] if key is not None]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known keys here: {', '.join(known)}"


def _section_at(location: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = JobConfig
    for part in location:
        field = section.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        section = field.annotation
    return section
