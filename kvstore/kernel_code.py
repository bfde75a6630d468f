"""Numba's libraries of LLVM code for kernels: inner functions are only linked, and kernels have portable code.

Numba optimizes every function and generates machine code for it before it links it into those that call it. A function
that Python cannot call needs neither: what runs are the copies in its callers, where it is optimized with them. That
saves a tenth of the time to compile.

The code of a kernel, with all that it calls, is *portable* before it is optimized: the same for all processors of an
architecture. To optimize it and to generate machine code takes a fifth of the time to compile from Python.

Both use private parts of one release of numba, which ``tests/kvstore/test_kernel_code.py`` tests. With another release,
numba's own libraries are used, and the first run on a machine takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.targetconfig import ConfigStack

RELEASE = "0.68."
"""What versions of numba begin with whose libraries these are."""
_LINKED, _PORTABLE = "linked", "portable"
_ENVIRONMENT = "_ZN08NumbaEnv"
"""In the names of variables that refer to the constants of a Python function."""


class _LinkedLibrary(JITCodeLibrary):
    """The code of a function that Python cannot call: it is linked into its callers, and optimized there."""

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no machine code."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    def serialize_using_object_code(self) -> tuple[str, str, bytes]:
        """Return what numba's cache keeps."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return self.name, _LINKED, self._get_module_for_linking().as_bitcode()  # type: ignore[no-untyped-call]

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._verify_declare_only_symbols()  # type: ignore[no-untyped-call]
        self._define_environments()
        self._finalized = True

    def _define_environments(self) -> None:
        """Give variables of constants a place in memory, which numba fills and code of all callers shares."""
        engine: Any = self._codegen._engine
        variables = (variable for variable in self._final_module.global_variables if _ENVIRONMENT in variable.name)
        new = [variable for variable in variables if not engine.is_symbol_defined(variable.name)]
        if new:
            self._environments = llvm.parse_assembly("\n".join(map(str, new)))
            engine.add_module(self._environments)
            engine.finalize_object()


class _CallableLibrary(JITCodeLibrary):
    """The code of a kernel that Python can call."""

    portable: bytes | None = None
    """Its code, with the code of all that it calls, before optimization; None if it is from a cache."""

    def _optimize_final_module(self) -> None:
        self.portable = self._final_module.as_bitcode()
        super()._optimize_final_module()  # type: ignore[no-untyped-call]


def _create_library(name: str) -> JITCodeLibrary:
    """Create the library of the function that is being compiled."""
    flags = ConfigStack.top_or_none()  # type: ignore[no-untyped-call]
    kind = _LinkedLibrary if flags is not None and flags.no_cpython_wrapper else _CallableLibrary
    return kind(_codegen(), name)


def _restore_library(serialized: tuple[str, str, Any]) -> JITCodeLibrary:
    """Create a library from what a cache has."""
    name, kind, code = serialized
    library = (_LinkedLibrary if kind == _LINKED else _CallableLibrary)(_codegen(), name)
    library.enable_object_caching()  # type: ignore[no-untyped-call]
    if kind in {_LINKED, _PORTABLE}:
        library._final_module = llvm.parse_bitcode(code)
        library._optimize_final_module()
        library._finalize_final_module()
        return library
    # As numba does, but it would create the library for what is being compiled, perhaps the caller of this function.
    machine_code, shared = code
    library._set_compiled_object(machine_code)  # type: ignore[no-untyped-call]
    library._shared_module = llvm.parse_bitcode(shared)
    library._finalize_final_module()
    _codegen()._engine._load_defined_symbols(library._shared_module)
    return library


def _codegen() -> Any:
    return cpu_target.target_context.codegen()


@contextmanager
def kernel_libraries() -> Iterator[None]:
    """Have numba use these libraries for what it compiles or loads meanwhile, by a thread that has numba's lock."""
    codegen = _codegen()
    if "create_library" in vars(codegen) or not numba.__version__.startswith(RELEASE):  # in use for a calling kernel
        yield
        return
    codegen.create_library, codegen.unserialize_library = _create_library, _restore_library
    try:
        yield
    finally:
        del codegen.create_library, codegen.unserialize_library


def portable_parts(result: Any) -> tuple[Any, ...] | None:
    """Return what ``from_portable`` takes, to be pickled, of a kernel that was compiled; None if there is none."""
    code = getattr(result.library, _PORTABLE, None)
    if code is None or result.library.has_dynamic_globals:
        return None
    (name, _, _), *parts = result._reduce()
    return (name, _PORTABLE, code), *parts


def from_portable(parts: tuple[Any, ...]) -> Any:
    """Compile portable code for this processor, within ``kernel_libraries``; return numba's result of compiling."""
    return CompileResult._rebuild(cpu_target.target_context, *parts)  # type: ignore[no-untyped-call]


def triple() -> str:
    """Return the architecture and system that portable code is for."""
    return str(_codegen().magic_tuple()[0])
