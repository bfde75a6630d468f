"""Corrupt JSON files with a seeded generator, and judge what a reader does with them.

    failures = fuzz("dataset manifests", cases=300, first=0, case=case)

Mutations follow the structure: types are exchanged, keys removed, doubled or renamed, numbers huge, negative or not
finite, paths lead outside, values are nested deeply; or bytes are changed, cut off or random.
"""

import json
import os
import random
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mutations import any_value, corrupt_text, corrupt_tree

CASE_KILOBYTES = 512 << 10
"""Memory that a case may take beyond the peak of all cases before it."""
HOSTILE = [
    "../outside.parquet",
    "train/../../outside.parquet",
    "/etc/passwd",
    "C:/outside.parquet",
    "train\\..\\x.parquet",
    "train/\x00.parquet",
    "train/\x1b[31m.parquet",
    "x" * 300,
    "/".join(["d"] * 2000),
    "\ud800",
    "",
    ".",
    float("nan"),
    float("-inf"),
    1e300,
    -1,
    0,
    10**18,
    -(10**18),
    2**63,
    10**400,
    True,
    None,
    [],
    {},
]
_NESTED = "a value that is nested deeply"


def corrupt_json(draw: random.Random, content: bytes) -> bytes:
    """Return ``content``, a JSON object, after one to three mutations."""
    kind = draw.randrange(10)
    if kind < 2:
        return corrupt_text(draw, content, b"{}")
    if kind == 2:
        return draw.randbytes(draw.randrange(300))
    tree = json.loads(content)
    if kind < 5:
        tree = corrupt_tree(draw, tree)
    else:
        for _ in range(draw.choice((1, 1, 2, 3))):
            tree = _with_hostile_value(draw, tree)
    depth = draw.choice((20, 150, 900, 100_000))
    text = json.dumps(tree).replace(f'"{_NESTED}"', "[" * depth + "]" * depth)
    if kind == 9 and text.startswith("{"):
        text = _with_doubled_key(draw, text)
    return text.encode("utf-8", "surrogatepass")


def _with_hostile_value(draw: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places:
        return any_value(draw)
    parent, key = draw.choice(places)
    parent[key] = _NESTED if draw.random() < 0.1 else draw.choice(HOSTILE)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree) if isinstance(tree, list) else 0):
        yield tree, key
        yield from _places(tree[key])


def _with_doubled_key(draw: random.Random, text: str) -> str:
    """Give one of the keys again, at first, in the outermost object."""
    key = draw.choice(re.findall(r'"(\w+)": ', text) or ["x"])
    return f"{{{json.dumps(key)}: {json.dumps(any_value(draw))}, {text[1:]}"


_watching: list[tuple[Path, list[str]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # A name without links in a folder that is open, which was seen before.
    is_name = event == "open" and bool(arguments[2] & os.O_NOFOLLOW) and not Path(arguments[0]).is_absolute()
    if event == "open" and _watching and isinstance(arguments[0], str | bytes) and not is_name:
        path = Path(os.path.realpath(os.fsdecode(arguments[0])))
        folder, opened = _watching[-1]
        inside = path.is_relative_to(folder)
        # Modules that are imported late, and the system's own files, are no input.
        if not inside and not str(path).startswith((sys.prefix, sys.base_prefix, *_PROGRAM, "/proc", "/sys", "/usr")):
            opened.append(str(path))


_PROGRAM = tuple(
    str(Path(__file__).resolve().parents[2] / name) for name in ("crossfade", "kvstore", "trainer", "deploy")
)
sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Collect the paths outside of ``folder`` that are opened during the context."""
    _watching.append((folder.resolve(), []))
    try:
        yield _watching[-1][1]
    finally:
        _watching.pop()


def judge(folder: Path, read: Callable[[], object], rejections: tuple[type[Exception], ...]) -> str | None:
    """Call ``read``; return what is wrong: another error than ``rejections``, memory, a file outside; or None."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watched(folder) as opened:
        try:
            read()
        except rejections as error:
            if not str(error).isprintable() or len(str(error)) > 2000:
                return f"not one short line: {str(error)[:3000]!r}"
        except BaseException:
            return traceback.format_exc()
    if opened:
        return f"opened {opened}"
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"took {added:,} KiB of memory more than any case before it" if added > CASE_KILOBYTES else None


def fuzz(cases: int, first: int, case: Callable[[random.Random], str | None]) -> None:
    """Run ``cases`` cases from number ``first`` on; fail with the first that has a problem."""
    for number in range(first, first + cases):
        problem = case(random.Random(f"{case.__name__} {number}"))
        assert problem is None, f"case {number}: {problem}"


def fuzz_range(default: int) -> tuple[int, int]:
    """Return the number of cases and the first, which CROSSFADE_FUZZ_CASES and CROSSFADE_FUZZ_FIRST may set."""
    return int(os.environ.get("CROSSFADE_FUZZ_CASES", default)), int(os.environ.get("CROSSFADE_FUZZ_FIRST", "0"))
