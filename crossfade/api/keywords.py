"""Make keyword arguments from the declaration of a verb (``crossfade/base/options.py``).

    @takes(RankingOptions)
    def recommend(self, queries: Ids, **options: Any) -> Frame:
        ranking = RankingOptions.of(**options)

Signature and docstring list the options, so that ``help()`` and notebooks show them.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from crossfade.base.errors import OptionError
from crossfade.base.options import Options, alternatives, described

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def takes(
    options: type[Options], *, without: Collection[str] = ()
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that replaces ``**options`` by the fields of ``options`` in signature and docstring.

    ``without`` names fields that the function does not take.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {
            name: field
            for name, field in options.model_fields.items()
            if name not in without and name not in signature.parameters
        }
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.get_default(),
                annotation=field.annotation,
            )
            for name, field in fields.items()
        ]
        lines = "\n".join(f"    {name}: {described(field)}." for name, field in fields.items())
        documented = re.sub(r"    \*\*\w+:.*\n", "", inspect.cleandoc(function.__doc__ or ""))
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
                    raise OptionError(name, problem="is unknown", fix=f"expected one of {alternatives(list(fields))}")
            return function(*positional, **named)

        checked.__doc__ = documented
        checked.declared = fields  # type: ignore[attr-defined]
        checked.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        return checked

    return decorate
