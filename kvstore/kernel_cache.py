"""Where compiled kernels are kept: in one folder of the user, by what they are compiled from.

Numba keeps kernels beside their file, or in a folder named after it, until the file changes. So each checkout, each
environment, and each edit of a comment would compile them again. Here, a module's kernels are kept in a folder whose
name has a hash of the module and of those that it imports kernels from, without comments, docstrings, and line numbers.
Checkouts with the same code share it, and a change that is taken back finds its kernels again.

The folder is ``NUMBA_CACHE_DIR`` or, by default, ``crossfade/kernels`` in ``XDG_CACHE_HOME`` or ``~/.cache``. Numba
loads what it finds there as Python objects, so the default is not used if others could write to it. If neither can be
used, numba's own places are: ``__pycache__`` beside the file, then numba's folder of the user.

The hashes of files are kept there too, in ``sources.json``, until the files change.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import llvmlite  # type: ignore[import-untyped]
import numba
from numba import config
from numba.core import caching

_COMPILER = re.compile(r"^(from|import) (numba|llvmlite|crossfade\.kvstore\.jit)\b", re.MULTILINE)
"""What a file that defines kernels, or parts of them, imports."""
_DECORATORS = re.compile(r"^(from|import) crossfade\.kvstore\.jit\b", re.MULTILINE)
_OF_DECORATORS = "crossfade.kvstore.jit"
_LIBRARIES = Path(__file__).with_name("kernel_code.py")
"""What changes the code of all kernels, and is imported by none."""
_VERSIONS_OF_MODULE = 8
_DAYS = 30
"""A module's folders are deleted if as many others, or as many days, have passed since they were last used."""
_MIN_DAYS = 1
"""A folder that was used within this time is kept in any case: a process may be about to save a kernel in it."""
_SECONDS_PER_DAY = 86_400.0


class KernelCacheLocator(caching._CacheLocator):
    """Locates the kernels of files that import their decorators from ``jit.py``."""

    def __init__(self, function: FunctionType, file: str, folder: Path, key: str) -> None:
        """Keep the kernels of ``function`` in ``folder``, as those of the code ``key``."""
        self._folder, self._key = folder, key
        self._py_file, self._lineno = file, function.__code__.co_firstlineno
        self._number = _number_in_file(Path(file), function)

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> KernelCacheLocator | None:
        """Return the locator of a function; None where it is another's, or no folder can be used."""
        path = Path(py_file)
        if path.suffix != ".py" or not path.exists() or not _DECORATORS.search(path.read_text(encoding="utf-8")):
            return None
        key = _key(path)
        folder = _folder(config.CACHE_DIR, f"{py_func.__module__}-{key[:20]}")  # type: ignore[attr-defined]
        return None if folder is None else cls(py_func, py_file, folder, key)

    def get_cache_path(self) -> str:
        """Return the folder, which is that of all kernels of a file."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """Return what a cached kernel must have been compiled from."""
        return self._key

    def get_disambiguator(self) -> str:
        """Return what distinguishes functions of the same name: unlike numba's, not their lines."""
        return str(self._number)


@cache
def _folder(chosen: str, name: str) -> Path | None:
    """Return the folder ``name``, created, and mark it as used; None if it cannot be written."""
    root = _root(chosen)
    if root is None:
        return None
    folder = root / name
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        os.utime(folder)
    except OSError:
        return None
    if is_new:
        _prune(root, name.rpartition("-")[0])
    return folder


@cache
def _root(chosen: str) -> Path | None:
    return Path(chosen) if chosen else _user_folder()


def _user_folder() -> Path | None:
    """Return the folder for all kernels of the user; None if there is none that nobody else can write to."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "crossfade" / "kernels"
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for path in (folder.parent, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        private = all(_is_private(path) for path in (folder, folder.parent))
    except (OSError, RuntimeError):  # a read-only disk; no home
        return None
    return folder if private else None


def _is_private(folder: Path) -> bool:
    """Return whether a folder is the user's, and no one else can write to it."""
    status = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & others


def _prune(root: Path, module: str) -> None:
    """Delete folders of a module that were not used for long, or that many have followed.

    A process that uses one of them compiles its kernels again.
    """
    used = {}
    for folder in root.glob(f"{module}-*"):
        if folder.name.rpartition("-")[0] == module:
            with suppress(OSError):
                used[folder] = folder.stat().st_mtime
    newest_first = sorted(used, key=lambda folder: -used[folder])
    for number, folder in enumerate(newest_first):
        days = (time.time() - used[folder]) / _SECONDS_PER_DAY
        if days > _DAYS or (number >= _VERSIONS_OF_MODULE and days > _MIN_DAYS):
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _key(file: Path) -> str:
    """Return a hash of what the kernels of a file are compiled from and by."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version_info[:2]}".encode())
    for part in (file, _LIBRARIES, *sorted(_imported_files(file, set()))):
        digest.update(bytes.fromhex(_source(part).content))
    return digest.hexdigest()


class _Source(NamedTuple):
    """What is known of a file. To parse the files of a worker takes a quarter of its start, so the results are kept."""

    stamp: list[Any]
    """Sizes and times of the file and of this one, and by which Python they were parsed."""
    content: str
    """A hash of its code: without comments, docstrings, and the places of statements."""
    imports: list[str]
    """The names of the modules that it imports at its top level, and names that may be modules."""
    lines: dict[str, list[int]]
    """The first lines of the functions of each name, decorators included."""


@cache
def _source(file: Path) -> _Source:
    known, written = _known_sources(), [path.stat() for path in (file, Path(__file__))]
    # The time of a change of the inode differs even if a copy has set that of the contents.
    stamp = [sys.version, *([status.st_mtime_ns, status.st_ctime_ns, status.st_size] for status in written)]
    if str(file) not in known or known[str(file)].stamp != stamp:
        known[str(file)] = _parse(file, stamp)
        _keep(known)
    return known[str(file)]


def _parse(file: Path, stamp: list[Any]) -> _Source:
    tree = ast.parse(file.read_bytes())
    imports = list(_imported_modules(tree))
    lines: dict[str, list[int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines.setdefault(node.name, []).append(first)
        elif isinstance(node, ast.Lambda):
            lines.setdefault("<lambda>", []).append(node.lineno)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    content = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return _Source(stamp, content, imports, {name: sorted(found) for name, found in lines.items()})


@cache
def _known_sources() -> dict[str, _Source]:
    """Return what earlier processes have kept, by the paths of files."""
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # not there, or damaged
        kept = json.loads(_sources_file().read_bytes())
        return {path: _Source(*fields) for path, fields in kept.items() if _is_source(*fields)}
    return {}


def _is_source(stamp: object, content: object, imports: object, lines: object) -> bool:
    """Return whether what was kept of a file can be used: the file may be damaged."""
    return (
        isinstance(stamp, list)
        and isinstance(content, str)
        and re.fullmatch("[0-9a-f]{64}", content) is not None
        and isinstance(imports, list)
        and all(isinstance(name, str) for name in imports)
        and isinstance(lines, dict)
        and all(isinstance(found, list) for found in lines.values())
    )


def _sources_file() -> Path:
    root = _root(config.CACHE_DIR)  # type: ignore[attr-defined]
    if root is None:
        raise FileNotFoundError
    return root / "sources.json"


def _keep(sources: dict[str, _Source]) -> None:
    """Keep ``sources``, without files that are gone. Of processes that do so at once, the last one wins."""
    with suppress(OSError):
        target = _sources_file()
        descriptor, name = tempfile.mkstemp(dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as written:
                json.dump({path: source for path, source in list(sources.items()) if Path(path).exists()}, written)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _number_in_file(file: Path, function: FunctionType) -> int:
    """Return how many functions of the same name precede one; its line if it is not found, as in generated code."""
    line, lines = function.__code__.co_firstlineno, _source(file).lines.get(function.__name__, [])
    return lines.index(line) if line in lines else line


def _imported_files(file: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the files with kernels that a file imports, and those that they import; ``seen`` has known modules."""
    for name in _source(file).imports:
        imported = getattr(sys.modules.get(name), "__file__", None)
        if name in {*seen, __name__} or imported is None or not imported.endswith(".py"):
            continue
        if name.partition(".")[0] in {"numba", "llvmlite"}:
            continue
        seen.add(name)
        if name == _OF_DECORATORS or _has_kernels(Path(imported)):
            yield Path(imported)
            yield from _imported_files(Path(imported), seen)


@cache
def _has_kernels(file: Path) -> bool:
    return _COMPILER.search(file.read_text(encoding="utf-8")) is not None


class _StampOfImports:
    """Adds the content of the files that a kernel's file imports kernels from to its stamp."""

    _key = ""

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Any:
        locator = super().from_function(py_func, py_file)  # type: ignore[misc]
        if locator is not None and Path(py_file).exists():
            locator._key = _key(Path(py_file))
        return locator

    def get_source_stamp(self) -> Any:
        return super().get_source_stamp(), self._key  # type: ignore[misc]


class UserProvidedCacheLocator(_StampOfImports, caching.UserProvidedCacheLocator):
    """Locates other kernels' caches in ``NUMBA_CACHE_DIR``."""


class InTreeCacheLocator(_StampOfImports, caching.InTreeCacheLocator):
    """Locates caches in ``__pycache__`` beside the file."""


class UserWideCacheLocator(_StampOfImports, caching.UserWideCacheLocator):
    """Locates caches in numba's folder of the user."""


def use_kernel_cache() -> None:
    """Make numba keep kernels here, unless ``NUMBA_CACHE_LOCATOR_CLASSES`` has its own."""
    if not config.CACHE_LOCATOR_CLASSES:  # type: ignore[attr-defined]
        locators = KernelCacheLocator, UserProvidedCacheLocator, InTreeCacheLocator, UserWideCacheLocator
        names = [f"{__name__}.{locator.__name__}" for locator in locators]
        config.CACHE_LOCATOR_CLASSES = ",".join([*names, "IPythonCacheLocator", "ZipCacheLocator"])  # type: ignore[attr-defined]
