"""The import rules: packages build on each other one way, and MXNet and Horovod stay where they are wrapped."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("kvstore", "trainer", "deploy", "crossfade")  # each may import those before it
WRAPPED = {
    "mxnet": ("kvstore/mxnet/*.py", "trainer/model/engines/mxnet.py"),
    "horovod": ("trainer/model/allreduce.py",),
}
"""The modules that import a package which is wrapped."""
NAMES_THAT_SAY_NOTHING = {"utils.py", "helpers.py", "common.py"}


def imported_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute module name of every import, also those inside functions."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join((*parent, *filter(None, [node.module])))


def violations(root: Path) -> list[str]:
    """Return one line for each import under ``root`` that breaks a rule."""
    found = []
    for layer, package in enumerate(LAYERS):
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            for line, module in imported_modules(path, root):
                top = module.partition(".")[0]
                if top in LAYERS[layer + 1 :]:
                    found.append(f"{relative}:{line}: {package} imports {module}, which builds on it")
                if top in WRAPPED and not any(relative.match(pattern) for pattern in WRAPPED[top]):
                    found.append(f"{relative}:{line}: only {' and '.join(WRAPPED[top])} import {top}")
                if top == "tests":
                    found.append(f"{relative}:{line}: {package} imports {module}")
    return found


def test_imports_run_one_way_and_what_is_wrapped_stays_so() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("kvstore/store.py", "import trainer.training.loop", True),
        ("kvstore/store.py", "def f():\n    from deploy import agent", True),
        ("trainer/model/engines/cpu.py", "from crossfade.main import main", True),
        ("trainer/data/schedule.py", "from ..loop import step", False),
        ("deploy/cluster/agent.py", "import trainer, kvstore", False),
        ("crossfade/main.py", "import deploy.cluster.agent", False),
        ("trainer/training/loop.py", "import mxnet", True),
        ("trainer/mxnet.py", "from mxnet import nd", True),
        ("kvstore/local.py", "def f():\n    import mxnet.kvstore", True),
        ("kvstore/local.py", "from .mxnet import client", False),
        ("kvstore/mxnet/client.py", "import mxnet as mx", False),
        ("trainer/model/engines/mxnet.py", "import mxnet as mx", False),
        ("trainer/model/dense.py", "import horovod.mxnet", True),
        ("trainer/model/allreduce.py", "def f():\n    import horovod.mxnet as horovod", False),
        ("kvstore/layout.py", "from tests import conftest", True),
    ],
)
def test_a_planted_import_is_judged_by_the_rules(tmp_path: Path, path: str, source: str, broken: bool) -> None:
    module = tmp_path / path
    module.parent.mkdir(parents=True)
    module.write_text(source, encoding="utf-8")
    assert bool(violations(tmp_path)) is broken


def test_importing_the_packages_leaves_mxnet_out() -> None:
    code = "import sys, crossfade.main, trainer, kvstore; sys.exit('mxnet' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


def test_docker_holds_no_python() -> None:
    assert list((ROOT / "docker").rglob("*.py")) == []


def test_every_module_has_a_name_that_says_what_is_in_it() -> None:
    folders = [*LAYERS, "tests", "benchmarks"]
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert modules
    assert [str(path) for path in modules if path.name in NAMES_THAT_SAY_NOTHING] == []
