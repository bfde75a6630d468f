"""Compare Python and the installed packages with what the metadata of the installed distribution requires."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from crossfade.base.packages import pandas_conflict
from crossfade.deploy.doctor.findings import Finding

_NAME = "crossfade"


def check_versions() -> Iterator[Finding]:
    """Compare the versions; packages of an extra count if all of them are installed."""
    if conflict := pandas_conflict():
        yield Finding("pandas", "warning", conflict)
    try:
        installed = metadata.distribution(_NAME)
    except metadata.PackageNotFoundError:
        yield Finding("packages", "warning", f"not compared: {_NAME} is not installed; pip install it")
        return
    version, expected = platform.python_version(), installed.metadata["Requires-Python"]
    fits = SpecifierSet(expected or "").contains(version, prereleases=True)
    advice = "" if fits else f"; expected {expected}: install {_NAME} for such a Python"
    yield Finding("python", "ok" if fits else "fix", f"{version}, {_NAME} {installed.version}{advice}")
    requirements = [Requirement(text) for text in installed.requires or ()]
    yield _compare([each for each in requirements if each.name != _NAME], installed.metadata.get_all("Provides-Extra"))


def _compare(requirements: Sequence[Requirement], extras: Sequence[str] | None) -> Finding:
    """Compare the packages without an extra, and those of ``extras`` that are installed completely."""
    required = [each for each in requirements if _applies(each, "")]
    in_use = 0
    for extra in extras or ():
        added = [each for each in requirements if _applies(each, extra) and not _applies(each, "")]
        if added and all(_version(each) for each in added):
            required += added
            in_use += 1
    wrong = [each for each in required if not _fits(each)]
    if wrong:
        found = ", ".join(dict.fromkeys(f"{each.name} is {_version(each) or 'missing'}" for each in wrong))
        fix = " ".join(dict.fromkeys(f"'{each.name}{each.specifier}'" for each in wrong))
        return Finding("packages", "fix", f"{found}; pip install {fix}")
    names = {each.name for each in required}
    return Finding("packages", "ok", f"{len(names)}, those of {in_use} extras included, are of the required versions")


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _fits(requirement: Requirement) -> bool:
    version = _version(requirement)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None
