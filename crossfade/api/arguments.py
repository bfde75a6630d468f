"""Arguments of the Python API: IDs as texts, and the options of a verb as keyword arguments.

    texts = id_texts("queries", ["user_7", 42])                     # ["user_7", "42"]

The options of a verb (``crossfade/base/options.py``) are keyword arguments, which signature and docstring list, so that
``help()`` and notebooks show them:

    @takes(RankingOptions)
    def recommend(self, queries: Ids, **options: Any) -> Frame:
        ranking = RankingOptions.of(**options)
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from crossfade.base.errors import InputError, OptionError
from crossfade.base.options import Options, alternatives, described

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def id_texts(name: str, values: Any) -> list[str]:
    """Return one ID or name, or several, as texts, the form in which they are looked up.

    Whole numbers that pandas has made fractional are written without a fraction.

    Raises:
        InputError: there is none, one is missing, or one is something else.
    """
    if hasattr(values, "to_pylist"):  # of Arrow, whose elements are not Python's
        values = values.to_pylist()
    is_table = isinstance(values, Mapping) or hasattr(values, "columns")
    is_one = isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0
    texts = [_id_text(name, value) for value in ([values] if is_one or is_table else values)]
    if not texts:
        raise InputError(f"{name} is empty; expected an ID or name, or several")
    return texts


def _id_text(name: str, value: Any) -> str:
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    kind = type(value).__name__
    if value is None or kind in {"NAType", "NaTType"} or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{name}: a value is missing; expected an ID or name: leave out missing values")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes) or (isinstance(value, Iterable) and not isinstance(value, str)):
        raise InputError(f"{name}: expected an ID or name, or several, such as a column; found {kind}")
    return str(value)


def _plain(annotation: Any) -> Any:
    """Return a type without the validators of a field, which are not for readers, and unions as ``X | None``."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(parts[0])
    if origin in (Union, UnionType):
        return functools.reduce(operator.or_, map(_plain, parts))
    if origin in (None, Literal):
        return annotation
    return origin[tuple(_plain(part) for part in parts)]


def takes(
    options: type[Options], *, without: Collection[str] = ()
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that replaces ``**options`` by the fields of ``options`` in signature and docstring.

    ``without`` names fields that the function does not take.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {
            name: field
            for name, field in options.model_fields.items()
            if name not in without and name not in signature.parameters
        }
        types = get_type_hints(options, include_extras=True)
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.get_default(),
                annotation=_plain(types[name]),
            )
            for name, field in fields.items()
        ]
        documented = re.sub(r" *\*\*\w+:.*(\n|$)", "", inspect.cleandoc(function.__doc__ or ""))
        lines = "\n".join(f"    {name}: {described(field)}." for name, field in fields.items())
        if "Args:\n" in documented:
            documented = re.sub(r"(Args:\n(?:    .*\n?)*)", lambda match: f"{match[1].rstrip()}\n{lines}\n", documented)
        else:
            head, _, rest = documented.partition("\n\n")
            documented = f"{head}\n\nArgs:\n{lines}" + (f"\n\n{rest}" if rest else "")
        rejected = [name for name in without if name in options.model_fields and name not in signature.parameters]

        @functools.wraps(function)
        def checked(*positional: Parameters.args, **named: Parameters.kwargs) -> Result:
            for name in rejected:
                if name in named:
                    raise OptionError(name, problem="is unknown", expected=("one of ", alternatives(fields)))
            return function(*positional, **named)

        checked.__doc__ = documented
        checked.declared = fields  # type: ignore[attr-defined]
        checked.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        return checked

    return decorate
