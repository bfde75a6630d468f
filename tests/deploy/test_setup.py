"""The setup script on a fresh machine: its steps, its one-line errors, and the guarantees of requirements.lock."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from lock_files import LOCK, LOCKS, ROOT, environment, locked, pins
from needs import LINUX
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

POSIX_TOOLS = ("cat", "cksum", "cut", "date", "df", "dirname", "du", "find", "grep", "rm", "sed", "sh", "sleep", "tail")

# A build backend in the checkout itself, so that an editable install needs nothing from outside.
BACKEND = """
import zipfile


def get_requires_for_build_editable(config_settings=None):
    return []


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "crossfade-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        info = "crossfade-0.1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: crossfade\\nVersion: 0.1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


class Checkout:
    """A small checkout with the real setup script, on a PATH without any Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my checkout"  # with a space, as people have them
        self.tools = folder / "tools"
        self.stubs = folder / "stubs"
        for path in (self.root / "deploy", self.tools, self.stubs):
            path.mkdir(parents=True)
        shutil.copy(ROOT / "deploy" / "setup.sh", self.root / "deploy")
        (self.root / "backend.py").write_text(BACKEND)
        (self.root / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\ndependencies = ["First>=1"]\noptional-dependencies = {map = [], dev = ["second"]}\n'
        )
        for tool in POSIX_TOOLS:
            (self.tools / tool).symlink_to(str(shutil.which(tool)))
        self.add_locked_wheel("first")

    @property
    def site_packages(self) -> Path:
        return self.root / ".venv/lib/python3.11/site-packages"

    def add_locked_wheel(self, name: str, via: str = "crossfade (pyproject.toml)") -> None:
        wheel = self.root / f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}.py", "")
            archive.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
            archive.writestr(f"{name}-1.dist-info/RECORD", "")
        with (self.root / "requirements.lock").open("a") as lock:
            lock.write(f"{name}==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n    # via {via}\n")

    def stub(self, tool: str, script: str) -> Path:
        """Replace a tool by a shell script."""
        path = self.tools / tool
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def stub_module(self, name: str, source: str) -> None:
        """Replace a module of the standard library."""
        (self.stubs / f"{name}.py").write_text(source)

    def provide_libraries(self, *names: str) -> None:
        """Simulate Linux on x86-64 with exactly these shared libraries."""
        self.stub_module("platform", "def machine(): return 'x86_64'")
        self.stub_module("ctypes", f"def CDLL(name):\n    if name not in {names}: raise OSError(name)")

    def set_up(self, *part: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "deploy/setup.sh", *part],
            cwd=self.root,
            env={
                "PATH": str(self.tools),
                "PYTHONPATH": str(self.stubs),
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_CACHE_DIR": "1",
                "HOME": str(self.root),
                **environment,
            },
            capture_output=True,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def rejection(self, **environment: str) -> str:
        """Run a setup that must stop with exit code 2 and one line; return the line."""
        result = self.set_up(**environment)
        assert result.returncode == 2, result
        assert result.stderr.startswith("setup: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_named_python_of_another_version_is_rejected_with_its_version(checkout: Checkout) -> None:
    other = checkout.stub("other-python", "echo 3.12")
    assert f"PYTHON={other} is Python 3.12, not Python 3.11" in checkout.rejection(PYTHON=str(other))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason=LINUX)
@pytest.mark.parametrize(
    ("present", "names", "packages"),
    [
        (["libquadmath.so.0"], "libgomp.so.1", "libgomp1"),
        (["libgomp.so.1"], "libquadmath.so.0", "libquadmath0"),
        ([], "libgomp.so.1, libquadmath.so.0", "libgomp1 libquadmath0"),
    ],
)
def test_libraries_missing_for_mxnet_are_named_before_installing(
    checkout: Checkout, present: list[str], names: str, packages: str
) -> None:
    checkout.provide_libraries(*present)
    line = checkout.rejection(PYTHON=sys.executable)
    assert line == f"setup: missing: {names} (on Debian and Ubuntu: apt-get install {packages})\n"
    assert not (checkout.root / ".venv").exists()


@pytest.mark.slow
def test_set_up_installs_once_reinstalls_after_changes_and_resumes(checkout: Checkout) -> None:
    checkout.provide_libraries("libgomp.so.1", "libquadmath.so.0")
    (checkout.tools / "python3.11").symlink_to(sys.executable)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "."}

    unreachable = checkout.set_up(PIP_INDEX_URL="http://127.0.0.1:1/", PIP_RETRIES="0")
    assert unreachable.returncode == 2
    assert "pip could not reach its package index" in unreachable.stderr.splitlines()[-1]

    first = checkout.set_up(**offline)
    assert first.returncode == 0, first.stderr
    assert "done in" in first.stdout
    assert (checkout.site_packages / "first.py").exists()
    assert (checkout.site_packages / "crossfade-0.1.0.dist-info").exists()

    second = checkout.set_up()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")

    checkout.add_locked_wheel("second")
    assert checkout.set_up(**offline).returncode == 0
    assert (checkout.site_packages / "second.py").exists()

    (checkout.root / ".venv/setup-done").unlink()
    (checkout.site_packages / "second-1.dist-info/INSTALLER").unlink()
    (checkout.site_packages / "second.py").unlink()
    resumed = checkout.set_up(**offline)
    assert resumed.returncode == 0
    assert "creating .venv" not in resumed.stdout
    assert (checkout.site_packages / "second.py").exists()

    with zipfile.ZipFile(checkout.root / "first-1-py3-none-any.whl", "a") as tampered:
        tampered.writestr("extra.py", "")
    (checkout.site_packages / "first-1.dist-info/INSTALLER").unlink()
    (checkout.root / ".venv/setup-done").unlink()
    rejected = checkout.set_up(**offline)
    assert rejected.returncode == 2
    assert "is not the one that requirements.lock names" in rejected.stderr.splitlines()[-1]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_locked_requirement_has_one_version_and_hashes(lock: Path) -> None:
    assert locked(lock)
    for requirement, hashes in locked(lock):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


HOROVOD_LOCK = ROOT / "deploy/requirements-horovod.lock"
LOCKS_OF_EXTRAS = (HOROVOD_LOCK, ROOT / "deploy/requirements-spark.lock", ROOT / "docker/requirements-torch.lock")


@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_lock_satisfies_pyproject(system: str, machine: str) -> None:
    here = environment(machine=machine, system=system)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"]
    lines = [
        *pyproject["project"]["dependencies"],
        *pyproject["build-system"]["requires"],
        *(line for extra in extras.values() for line in extra),
    ]
    found = {name: version for lock in (*LOCKS_OF_EXTRAS, LOCK) for name, version in pins(lock, here).items()}
    for required in map(Requirement, lines):
        if required.name == "crossfade":  # the extra all names others
            continue
        if required.marker is None or required.marker.evaluate(here):
            name = canonicalize_name(required.name)
            assert name in found, f"{required} on {system} {machine}: run `make lock`"
            assert found[name] in required.specifier, f"{required} against {found[name]}: run `make lock`"


@pytest.mark.slow
def test_horovod_is_locked_with_the_versions_of_the_set_up() -> None:
    installed = pins(LOCK)
    assert "horovod" not in installed
    for name, version in pins(HOROVOD_LOCK).items():
        assert installed.get(name, version) == version, f"{name}: run `make lock`"


def test_make_help_has_a_line_for_each_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    listed = re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(listed)
