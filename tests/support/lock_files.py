"""Read the lock files: the requirements of all machines, or the versions that one machine installs."""

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
LOCKS = sorted(path for folder in (".", "docker", "deploy") for path in (ROOT / folder).glob("*.lock"))


def locked(lock: Path) -> list[tuple[Requirement, list[str]]]:
    """Return each requirement with its hashes. A package may have several, whose markers exclude each other."""
    found = []
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            found.append((Requirement(requirement), hashes))
    return found


def version(requirement: Requirement) -> str:
    """Return the only version that a locked requirement allows."""
    [specifier] = requirement.specifier
    return specifier.version


def environment(python: str = "3.11", machine: str = "x86_64", system: str = "linux") -> dict[str, str]:
    """Return what markers are evaluated with for a machine."""
    versions = {"python_version": python, "python_full_version": f"{python}.0"}
    return {"sys_platform": system, "platform_machine": machine, **versions}


def pins(lock: Path, machine: dict[str, str] | None = None) -> dict[str, str]:
    """Return the version of each package that an environment installs, by name."""
    machine = machine or environment()
    return {
        requirement.name: version(requirement)
        for requirement, _ in locked(lock)
        if requirement.marker is None or requirement.marker.evaluate(machine)
    }
