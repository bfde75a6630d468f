"""The layout: files and functions have a bounded size, and tests mirror modules. `make lint` checks the imports."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kvstore", "trainer", "deploy", "crossfade")
"""The folders with the product. crossfade/ has the faces and, beneath the others, crossfade/base."""
VAGUE_NAMES = {"utils.py", "helpers.py", "common.py"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 600, 50, 8
MANY_PARAMETERS = {
    "crossfade/api/estimator.py: __init__": "scikit-learn reads hyperparameters from the signature",
    "crossfade/api/fit.py: fit": "editors show the arguments of a signature",
    "crossfade/base/options.py: option": "keywords of a declaration",
    "deploy/cluster/agent.py: __init__": "what a host's agent is made of",
    "deploy/cluster/supervision.py: run_job": "what a job is made of",
}
"""Functions with more parameters than ``MAX_PARAMETERS``, without self. In other kernels, NamedTuples hold several."""
SMALL_FILE_LINES = 100
SMALL_FILES = {
    "trainer/config/lr_schedule.py": "is looked for by its name",
    "crossfade/base/blas_kernels.py": "runs before anything else is imported",
    "crossfade/cli/sagemaker_entry.py": "the entry of a process",
    "crossfade/cli/train.py": "a command, which main imports by its name",
    "deploy/dashboard/server.py": "loads Dash and uvicorn, which may be missing",
    "deploy/refresh/forget.py": "changes versions of a service",
    "deploy/refresh/metrics.py": "loads the client of Prometheus",
    "deploy/serving/server.py": "loads FastAPI and uvicorn, which may be missing",
    "kvstore/kernel_cache.py": "extends a class of numba",
    "trainer/formats/mlflow_model.py": "loads MLflow, which may be missing, and is what its models name",
    "trainer/prepare/lake_tables.py": "loads clients of Delta and Iceberg, which may be missing",
    "trainer/training/prefetcher.py": "is looked for by its name",
    "trainer/training/periodic.py": "one concept, with a clock that tests set",
}
"""Files of fewer lines than ``SMALL_FILE_LINES`` that stay apart from their only importer, and why."""
PAGE = re.compile(r"docs/[\w-]+\.md")
FLAG = re.compile(r"(?<![-\w])--[a-z][a-z-]+")
FILES_WITH_FLAGS = {
    "deploy/aws/ec2/run_host.py": "starts commands of crossfade",
    "deploy/schedulers/scheduler_files.py": "writes files with commands of crossfade",
}
"""Files below the faces whose strings are words of command lines. All others name options by marks."""


@cache
def nodes(path: Path) -> tuple[str, list[ast.AST]]:
    """Return the text of a module, and all nodes of its syntax tree."""
    text = path.read_text(encoding="utf-8")
    return text, list(ast.walk(ast.parse(text, str(path))))


def product_files(root: Path) -> Iterator[Path]:
    """Yield the modules of all packages under ``root``."""
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def small_files_of_one_importer() -> list[str]:
    """Return the modules of fewer than ``SMALL_FILE_LINES`` lines that exactly one other imports."""
    graph = grimp.build_graph("crossfade", cache_dir=None)
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in product_files(ROOT)}
    return sorted(
        path.relative_to(ROOT).as_posix()
        for name, path in paths.items()
        if path.name != "__init__.py"
        and path.read_text(encoding="utf-8").count("\n") < SMALL_FILE_LINES
        and len(graph.find_modules_that_directly_import(f"crossfade.{name.removeprefix('crossfade.')}")) == 1
    )


def oversized(root: Path) -> list[str]:
    """Return a line for each module or function under ``root`` that is too long, or has too many parameters."""
    problems = []
    for path in product_files(root):
        relative = path.relative_to(root)
        text, found = nodes(path)
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            problems.append(f"{relative}: {lines} lines, of {MAX_FILE_LINES} at most")
        for node in found:
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
        if path.relative_to(root).parts[0] != "crossfade"
        for node in nodes(path)[1]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value)
    ]


def test_files_and_functions_have_a_bounded_size() -> None:
    assert oversized(ROOT) == []


def test_few_small_files_have_a_single_importer() -> None:
    assert set(small_files_of_one_importer()) == SMALL_FILES.keys()


def test_tests_mirror_the_layout() -> None:
    assert misplaced_tests(ROOT) == []


def named_pages(root: Path) -> list[str]:
    """Return the places of strings under ``root`` that name a page of docs/, which an installed package lacks."""
    return [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in product_files(root)
        for statement in nodes(path)[1]
        if isinstance(statement, ast.stmt) and not isinstance(getattr(statement, "value", None), ast.Constant)
        for node in ast.iter_child_nodes(statement)
        if not isinstance(node, ast.stmt)
        for node in ast.walk(node)
        if isinstance(node, ast.Constant) and PAGE.search(str(node.value))
    ]


def test_no_message_names_a_page_of_the_documentation() -> None:
    assert named_pages(ROOT) == []


def test_no_string_below_the_faces_names_a_flag() -> None:
    files = {place.partition(":")[0] for place in strings_with_flags(ROOT)}
    assert files == FILES_WITH_FLAGS.keys()


def test_imported_packages_do_not_import_mxnet() -> None:
    code = "import sys, crossfade.cli.main, trainer, kvstore; sys.exit('mxnet' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


def test_no_module_has_a_vague_name() -> None:
    folders = [*PACKAGES, "tests", "benchmarks"]
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert modules
    assert [str(path) for path in modules if path.name in VAGUE_NAMES] == []
