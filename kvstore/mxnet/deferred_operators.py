"""Defer the generation of MXNet's operator functions to their first call, which cuts the time of its import to a third.

    with deferred_operators():
        import mxnet

While it is imported, MXNet 1.x writes and compiles the Python source of some 4,000 operator functions, four times over
(NDArray, symbol and their numpy forms), of which a role of a job calls a dozen. A restarted job waits for that in each
of its processes. Here each function is a stub that generates the real one when it is first called. A release whose
registration code differs is imported unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

_MAKERS = {
    "mxnet.ndarray.register": "_make_ndarray_function",
    "mxnet.symbol.register": "_make_symbol_function",
}
"""The modules that register operators, and what makes the function of one: maker(handle, name, func_name)."""

_DEFER = "__crossfade_defer__"


@contextmanager
def deferred_operators() -> Iterator[None]:
    """Import MXNet inside the block with operator functions that are generated at their first call."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _defer(maker: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    def make_stub(handle: object, name: str, func_name: str) -> Callable[..., Any]:
        generated: list[Callable[..., Any]] = []

        def operator(*arguments: Any, **keywords: Any) -> Any:
            if not generated:
                generated.append(maker(handle, name, func_name))
            return generated[0](*arguments, **keywords)

        operator.__name__ = func_name
        operator.__doc__ = ""  # MXNet edits the text of some
        return operator

    return make_stub


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MAKERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[_DEFER] = _defer
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType | None:
        maker = _MAKERS[fullname]
        source = self.get_data(self.path).decode("utf-8")
        registration = "\n_init_op_module("
        if source.count(registration) != 1 or f"\ndef {maker}(" not in source:
            return super().get_code(fullname)
        # The numpy forms import the maker from here, so that theirs are stubs too.
        source = source.replace(registration, f"\n{maker} = {_DEFER}({maker}){registration}")
        code: CodeType = compile(source, self.path, "exec")
        return code
