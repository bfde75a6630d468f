"""The layout: imports run one way and in no circle, files and functions have a bounded size, tests mirror modules."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("base", "kvstore", "trainer", "deploy", "crossfade")
"""The packages; each may import those before it. ``base`` is a folder of ``crossfade``, the others are at the top."""
BASE = "crossfade/base"
ROOMS = ("data", "config", "model", "runs", "embeddings", "evaluation", "training")
"""Packages in ``trainer``; each may import those before it."""
SIDE_ROOMS = {
    "prepare": {"data"},
    "monitoring": {"config", "runs"},
    "tracking": {"config", "runs"},
    "recommend": {"data", "config", "model", "runs", "embeddings", "evaluation", "prepare"},
    "maps": {"data", "config", "model", "runs", "embeddings", "evaluation", "prepare", "recommend"},
    "serving": {"data", "config", "model", "runs", "embeddings", "evaluation", "prepare", "recommend"},
    "formats": {"data", "config", "model", "runs", "embeddings", "recommend"},
}
"""Packages in ``trainer`` outside the order, with what they may import of it."""
EXTRA_IMPORTS = {("evaluation", "prepare"), ("training", "monitoring")}
"""Imports from the order into the packages outside it."""
WRAPPED = {
    "mxnet": ("kvstore/mxnet/*.py", "trainer/model/engines/mxnet.py"),
    "torch": (
        "kvstore/torch/*.py",
        *(f"trainer/model/engines/{name}.py" for name in ("torch", "gpu_code")),
    ),
    "horovod": ("trainer/model/allreduce.py",),
    "faiss": ("trainer/recommend/faiss_lists.py",),
    "psycopg": ("trainer/formats/pgvector.py",),
    "mlflow": ("trainer/tracking/mlflow_run.py",),
    "triton": ("kvstore/torch/triton_kernels.py",),
    "tensorboard": ("trainer/tracking/tensorboard_file.py",),
}
"""The only modules that may import an optional package."""
VAGUE_NAMES = {"utils.py", "helpers.py", "common.py"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 600, 50, 8
MANY_PARAMETERS = {
    "crossfade/api/estimator.py: __init__": "scikit-learn requires a keyword for each setting",
    "crossfade/api/fit.py: fit": "users set each by its keyword",
    "crossfade/base/options.py: option": "keywords of a declaration",
    "deploy/cluster/agent.py: __init__": "what a host's agent is made of",
    "deploy/cluster/supervision.py: run_job": "what a job is made of",
    "deploy/dashboard/charts.py: _line": "coordinates and texts of a chart",
    "kvstore/torch/triton_kernels.py: _adam": "Triton passes pointers and scalars one by one",
    "kvstore/torch/triton_kernels.py: _update_kernel": "the same",
}
"""Functions with more parameters than ``MAX_PARAMETERS``, without self. In other kernels, NamedTuples hold several."""
SMALL_FILE_LINES = 100
SMALL_FILES = {
    "crossfade/sagemaker_entry.py": "the entry of a process",
}
"""Small files that stay apart from their only importer, since they isolate an optional package or a process's entry."""
FLAG = re.compile(r"(?<![-\w])--[a-z][a-z-]+")
FILES_WITH_FLAGS = {
    "deploy/aws/ec2/run_host.py": "starts commands of crossfade",
    "deploy/aws/ec2/user_data.py": "writes a script that calls curl and docker",
    "deploy/cluster/role_process.py": "starts commands of crossfade",
    "deploy/dashboard/server.py": "starts commands of crossfade",
    "deploy/schedulers/kubernetes.py": "writes manifests with commands of crossfade",
    "deploy/schedulers/scheduler_files.py": "prints a command of kubectl",
    "deploy/schedulers/slurm.py": "writes a script that calls srun and crossfade",
    "deploy/tuning/trial_run.py": "starts commands of crossfade",
    "trainer/formats/pgvector.py": "writes a script that calls psql",
    "trainer/formats/search_engines.py": "writes scripts that call curl",
}
"""Files below the faces whose strings are words of command lines. All others name options by marks."""
MAX_SMALL_FILES = 13
"""Other small files with one importer. Lower it when some are merged into their importer."""


def imported_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of every import: of modules, and of names that may be modules.

    Imports in functions and under TYPE_CHECKING count as well. ``crossfade.kvstore.store``, the import name, yields
    ``kvstore.store``, as the file is called.
    """
    package = path.relative_to(root).parent.parts
    for line, name in _imports(path, package):
        inner = name.removeprefix("crossfade.")
        yield line, inner if inner.partition(".")[0] in LAYERS else name


def _imports(path: Path, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parent, *filter(None, [node.module])))
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def product_files(root: Path) -> Iterator[Path]:
    """Yield the modules of all packages under ``root``."""
    for package in LAYERS[1:]:
        yield from sorted((root / package).rglob("*.py"))


def layer(relative: Path) -> str:
    """Return the package of a module."""
    return "base" if relative.as_posix().startswith(f"{BASE}/") else relative.parts[0]


def layer_violations(root: Path) -> list[str]:
    """Return a line for each import under ``root`` that runs against the order of packages, or past a wrapper."""
    violations = []
    for path in product_files(root):
        relative = path.relative_to(root)
        package = layer(relative)
        for line, module in imported_modules(path, root):
            top = module.partition(".")[0]
            if top in LAYERS[LAYERS.index(package) + 1 :]:
                violations.append(f"{relative}:{line}: {package} imports {module}, which builds on it")
            if top in WRAPPED and not any(relative.match(pattern) for pattern in WRAPPED[top]):
                violations.append(f"{relative}:{line}: only {' and '.join(WRAPPED[top])} import {top}")
            if top == "tests":
                violations.append(f"{relative}:{line}: {package} imports {module}")
    return violations


def may_import(room: str, other: str) -> bool:
    """Return whether the package ``room`` of ``trainer`` may import the package ``other``."""
    if room == other or (room, other) in EXTRA_IMPORTS:
        return True
    if room in SIDE_ROOMS:
        return other in SIDE_ROOMS[room]
    return other in ROOMS[: ROOMS.index(room)]


def room_violations(root: Path) -> list[str]:
    """Return a line for each import inside ``trainer`` that runs against the order of its packages."""
    violations = []
    for path in sorted((root / "trainer").rglob("*.py")):
        relative = path.relative_to(root)
        if len(relative.parts) < 3:
            continue
        room = relative.parts[1]
        for line, module in imported_modules(path, root):
            parts = module.split(".")
            if parts[0] == "trainer" and len(parts) > 2 and not may_import(room, parts[1]):
                violations.append(f"{relative}:{line}: {room} imports {module}")
    return sorted(set(violations))


def modules_by_name(root: Path) -> dict[str, Path]:
    """Return the modules under ``root`` by name, as ``imported_modules`` yields it."""
    named = {}
    for path in product_files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        named[name.removeprefix("crossfade.") if name.startswith("crossfade.base") else name] = path
    return named


def small_files_of_one_importer(root: Path) -> list[str]:
    """Return the modules under ``root`` of fewer than ``SMALL_FILE_LINES`` lines that exactly one other imports."""
    modules = modules_by_name(root)
    importers: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        for _, imported in imported_modules(path, root):
            if imported in modules and imported != name:
                importers[imported].add(name)
    return sorted(
        str(path.relative_to(root))
        for name, path in modules.items()
        if len(importers[name]) == 1
        and path.name != "__init__.py"
        and path.read_text(encoding="utf-8").count("\n") < SMALL_FILE_LINES
    )


def circle(root: Path) -> list[str]:
    """Return modules under ``root`` that import each other in a circle, the first one again at the end; or none."""
    modules = modules_by_name(root)
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        graph[name] = {
            module for _, module in imported_modules(path, root) if module in modules and path != modules[module]
        }
        if path.name != "__init__.py":
            # 'from package import module' needs the package's own file, which is empty, only as a container.
            graph[name] -= {module for module in graph[name] if modules[module].name == "__init__.py"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def oversized(root: Path) -> list[str]:
    """Return a line for each module or function under ``root`` that is too long, or has too many parameters."""
    problems = []
    for path in product_files(root):
        relative = path.relative_to(root)
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            problems.append(f"{relative}: {lines} lines, of {MAX_FILE_LINES} at most")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(
                        f"{relative}:{node.lineno}: {node.name} has {length} lines, of {MAX_FUNCTION_LINES} at most"
                    )
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > MAX_PARAMETERS and f"{relative}: {node.name}" not in MANY_PARAMETERS:
                    problems.append(
                        f"{relative}:{node.lineno}: {node.name} has {count} parameters, of {MAX_PARAMETERS} at most"
                    )
    return problems


def misplaced_tests(root: Path) -> list[str]:
    """Return the test files under ``root`` that are in no folder of the layout."""
    folders = {path.relative_to(root).parent for path in product_files(root)} | {Path("docker"), Path("docs")}
    return [
        str(path.relative_to(root))
        for path in sorted((root / "tests").rglob("test_*.py"))
        if path.relative_to(root / "tests").parent not in folders
    ]


def strings_with_flags(root: Path) -> list[str]:
    """Return the places of strings under ``root``, below the faces, that name an option as it is typed."""
    return [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in product_files(root)
        if layer(path.relative_to(root)) in LAYERS[1:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value)
    ]


def write(root: Path, **sources: str) -> None:
    """Write modules under ``root``; in a name, ``__`` stands for a slash."""
    for name, source in sources.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def test_packages_import_one_way() -> None:
    assert layer_violations(ROOT) == []


def test_rooms_of_trainer_import_one_way() -> None:
    assert room_violations(ROOT) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(ROOT) == []


def test_files_and_functions_have_a_bounded_size() -> None:
    assert oversized(ROOT) == []


def test_few_small_files_have_a_single_importer() -> None:
    assert len(set(small_files_of_one_importer(ROOT)) - SMALL_FILES.keys()) <= MAX_SMALL_FILES


def test_tests_mirror_the_layout() -> None:
    assert misplaced_tests(ROOT) == []


def test_no_string_below_the_faces_names_a_flag() -> None:
    files = {place.partition(":")[0] for place in strings_with_flags(ROOT)}
    assert files == FILES_WITH_FLAGS.keys()


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("kvstore/store.py", "import crossfade.trainer.training.loop", True),
        ("kvstore/store.py", "def f():\n    from crossfade.deploy import agent", True),
        ("trainer/model/engines/cpu.py", "from crossfade.cli.main import main", True),
        ("trainer/data/schedule.py", "from ..loop import step", False),
        ("deploy/cluster/agent.py", "import crossfade.trainer, crossfade.kvstore", False),
        ("crossfade/cli/main.py", "import crossfade.deploy.cluster.agent", False),
        ("trainer/training/loop.py", "import mxnet", True),
        ("trainer/mxnet.py", "from mxnet import nd", True),
        ("kvstore/local.py", "def f():\n    import mxnet.kvstore", True),
        ("kvstore/local.py", "from .mxnet import client", False),
        ("kvstore/mxnet/client.py", "import mxnet as mx", False),
        ("trainer/model/engines/mxnet.py", "import mxnet as mx", False),
        ("kvstore/local.py", "def f():\n    import torch", True),
        ("kvstore/torch/table.py", "from torch import Tensor", False),
        ("kvstore/torch/optimizers.py", "def f():\n    import triton.language", True),
        ("kvstore/torch/triton_kernels.py", "import triton", False),
        ("trainer/model/dense.py", "import horovod.mxnet", True),
        ("trainer/model/allreduce.py", "def f():\n    import horovod.mxnet as horovod", False),
        ("kvstore/layout.py", "from tests import conftest", True),
        ("kvstore/layout.py", "from crossfade.base.errors import InputError", False),
        ("crossfade/base/text.py", "import crossfade.kvstore.store", True),
        ("crossfade/base/text.py", "from crossfade.base.errors import InputError", False),
    ],
)
def test_layer_rule_judges_planted_import(tmp_path: Path, path: str, source: str, broken: bool) -> None:
    write(tmp_path, **{path.removesuffix(".py").replace("/", "__"): source})
    assert bool(layer_violations(tmp_path)) is broken


@pytest.mark.parametrize(
    ("room", "other", "broken"),
    [
        ("model", "data", False),
        ("data", "model", True),
        ("prepare", "data", False),
        ("prepare", "runs", True),
        ("data", "prepare", True),
        ("evaluation", "prepare", False),
        ("training", "prepare", True),
        ("monitoring", "runs", False),
        ("runs", "monitoring", True),
        ("training", "monitoring", False),
    ],
)
def test_room_rule_judges_planted_import(tmp_path: Path, room: str, other: str, broken: bool) -> None:
    source = f"if TYPE_CHECKING:\n    from crossfade.trainer.{other}.x import Name"
    write(tmp_path, **{f"trainer__{room}__y": source})
    assert bool(room_violations(tmp_path)) is broken


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("import crossfade.kvstore.b", "import crossfade.kvstore.a", True),
        ("from crossfade.kvstore import b", "def f():\n    from crossfade.kvstore.a import x", True),
        ("from crossfade.kvstore.b import x", "if TYPE_CHECKING:\n    from crossfade.kvstore import a", True),
        ("from crossfade.kvstore.b import x", "import crossfade.kvstore.c", False),
    ],
)
def test_circle_is_found_in_planted_imports(tmp_path: Path, first: str, second: str, expected: bool) -> None:
    write(tmp_path, kvstore____init__="", kvstore__a=first, kvstore__b=second, kvstore__c="")
    assert bool(circle(tmp_path)) is expected


def test_oversized_function_and_file_are_found(tmp_path: Path) -> None:
    body = "    pass\n"
    write(tmp_path, kvstore__a="def f():\n" + body * MAX_FUNCTION_LINES, kvstore__b="x = 1\n" * (MAX_FILE_LINES + 1))
    write(tmp_path, kvstore__c="def f():\n" + body * (MAX_FUNCTION_LINES - 1), kvstore__d="x = 1\n" * MAX_FILE_LINES)
    names = ", ".join(f"x{number}" for number in range(MAX_PARAMETERS))
    write(tmp_path, kvstore__e=f"def f({names}, *, y): pass\n", kvstore__f=f"def f(self, {names}): pass\n")
    assert [line.partition(":")[0] for line in oversized(tmp_path)] == ["kvstore/a.py", "kvstore/b.py", "kvstore/e.py"]


def test_small_file_of_one_importer_is_found(tmp_path: Path) -> None:
    write(tmp_path, kvstore__a="x = 1\n", kvstore__b="x = 1\n", kvstore__c="x = 1\n" * SMALL_FILE_LINES)
    write(tmp_path, trainer__d="from crossfade.kvstore.a import x\nfrom crossfade.kvstore.b import x\n")
    write(tmp_path, trainer__e="import crossfade.kvstore.b\nimport crossfade.kvstore.c\n")
    assert small_files_of_one_importer(tmp_path) == ["kvstore/a.py"]


def test_string_with_a_flag_is_found(tmp_path: Path) -> None:
    write(tmp_path, kvstore__a='x = f"{y}: lower it, and --resume"\n', trainer__b='"""Do what ``--set`` does."""\n')
    write(tmp_path, deploy__c="x = 'a--b'  # --resume\n", crossfade__cli__d='x = "--resume"\n')
    assert strings_with_flags(tmp_path) == ["kvstore/a.py:1", "trainer/b.py:1"]


def test_misplaced_test_is_found(tmp_path: Path) -> None:
    write(tmp_path, kvstore__a="", tests__kvstore__test_a="", tests__other__test_b="", tests__test_c="")
    assert misplaced_tests(tmp_path) == ["tests/other/test_b.py", "tests/test_c.py"]


def test_imported_packages_do_not_import_mxnet() -> None:
    code = "import sys, crossfade.cli.main, trainer, kvstore; sys.exit('mxnet' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


def test_docker_folder_has_no_python_modules() -> None:
    assert list((ROOT / "docker").rglob("*.py")) == []


def test_no_module_has_a_vague_name() -> None:
    folders = [*LAYERS, "tests", "benchmarks"]
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert modules
    assert [str(path) for path in modules if path.name in VAGUE_NAMES] == []
