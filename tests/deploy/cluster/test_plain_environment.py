"""A distributed run in an environment as ``python -m venv`` makes it, with the setuptools that Python brings along.

Which setuptools is installed shifts when Python deletes objects at its end, on which the end of a role must not depend.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from fault_runs import ON_ONE_SERVER
from running_command import Mark, messages

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def plain_python(tmp_path: Path) -> Path:
    """Return Python of a new environment, where the packages of this one follow its own setuptools and pip."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "packages.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    python = environment / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import setuptools; print(setuptools.__file__)"], check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).is_relative_to(packages)
    return python


def test_distributed_run_in_a_plain_environment_and_a_folder_with_another_crossfade_ends_without_a_failure(
    plain_python: Path, tmp_path: Path
) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))
    (tmp_path / "crossfade").mkdir()
    (tmp_path / "crossfade" / "__init__.py").write_text("raise SystemExit('this is not the installed package')")
    mark, limits = Mark(), ("--set", "cluster.max_restarts=0", "--set", "train.max_steps=3")
    options = [*ON_ONE_SERVER, "--run-dir", "run", "--set", "cluster.host=localhost", *limits]
    result = subprocess.run(
        # With -P, this process imports nothing from the current folder, but those that it starts might.
        [plain_python, "-P", "-m", "crossfade", "train", "job.yaml", *map(str, options)],
        cwd=tmp_path,
        env=mark.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert mark.processes() == []
    assert (result.returncode, messages(result.stderr)) == (0, []), result.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "processes.jsonl").read_text().splitlines()]
    assert [event for event in events if event["event"] in {"failure", "restart"}] == []
