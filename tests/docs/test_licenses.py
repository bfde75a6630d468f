"""docs/supply-chain.md lists the license of every locked package, as the metadata of the installed ones states it.

``PYTHONPATH=tests/support python tests/docs/test_licenses.py --write`` writes the table again.
"""

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from needs import LINUX

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "supply-chain.md"
MARK = "| license | packages in the images | only in extras, tests, and tools |\n"
NAMES = {
    "Apache": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "GNU General Public License (GPL)": "GPL",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Public Domain": "public domain",
    "Python Software Foundation License": "PSF",
}
"""The names of licenses in older metadata, as SPDX identifiers where they are unambiguous."""
BY_HAND = {
    "axe-playwright-python": "MIT",
    "huey": "MIT",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "skops": "MIT",
}
"""Packages whose metadata have no license, or two without saying how they combine: read in the text of the license."""
WITH_PYTORCH = {
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "filelock": "MIT",
    "fsspec": "BSD-3-Clause",
    "mpmath": "BSD",
    "networkx": "BSD-3-Clause",
    "sympy": "BSD",
    "torch": "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT",
    "triton": "MIT",
}
"""Packages of the variant torch that the setup does not install: read in the metadata of their wheels."""
PERMISSIVE = {
    *("Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0"),
    *("BSL-1.0", "CNRI-Python", "public domain", "PSF", "Apache-2.0 WITH LLVM-exception"),
}
COPYLEFT = {"GPL", "LGPL-3.0-only", "MPL-2.0"}
NOT_INSTALLED = re.compile(r"nvidia-|cuda-toolkit$|mxnet-cu|appnope$|pywin32|tzdata$|waitress$")
"""Packages for GPUs or other systems."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(*names: str) -> set[str]:
    """Return the packages of lock files, without those that are for Windows alone."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    lines = re.findall(r"^([A-Za-z0-9._-]+)==(.*)", text, re.MULTILINE)
    return {canonical(name) for name, rest in lines if not rest.endswith("; sys_platform == 'win32' \\")}


def license_of(package: str) -> str:
    """Return the license that the metadata of a package states."""
    if by_hand := (BY_HAND | WITH_PYTORCH).get(package):
        return by_hand
    found = metadata.metadata(package)
    if expression := found.get("License-Expression"):
        return expression
    stated = (found.get("License") or "").splitlines()[:1]
    stated = [name for name in stated if NAMES.get(name, name) in PERMISSIVE | COPYLEFT or " AND " in name]
    classifiers = [each.rpartition(" :: ")[2] for each in found.get_all("Classifier") or [] if "License ::" in each]
    return ", ".join(NAMES.get(name, name) for name in stated or classifiers)


def parts(license_name: str) -> set[str]:
    return set(re.split(r" AND | OR |, ", license_name))


def licenses() -> dict[str, set[str]]:
    """Return the packages of each license."""
    found: dict[str, set[str]] = {}
    for package in sorted(locked("requirements.lock") | images()):
        if not NOT_INSTALLED.match(package):
            found.setdefault(license_of(package), set()).add(package)
    return found


def images() -> set[str]:
    return locked(*(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docker/*.lock")))


def table() -> str:
    in_images = images()
    rows = [MARK, "|---|---|---|\n"]
    for name, packages in sorted(licenses().items(), key=lambda item: item[0].lower()):
        cells = (", ".join(sorted(packages & in_images)), ", ".join(sorted(packages - in_images)))
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |\n")
    return "".join(rows)


pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason=LINUX), pytest.mark.slow]


def test_page_lists_the_license_of_every_package() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert MARK + page.partition(MARK)[2] == table(), (
        "run: PYTHONPATH=tests/support python tests/docs/test_licenses.py --write"
    )


def test_every_license_is_known_and_copyleft_is_explained() -> None:
    found = licenses()
    assert {part for name in found for part in parts(name)} <= PERMISSIVE | COPYLEFT
    copyleft = {package for name, packages in found.items() if parts(name) & COPYLEFT for package in packages}
    section = PAGE.read_text(encoding="utf-8").partition("### Copyleft\n")[2].partition("\n### ")[0]
    explained = {name for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE) for name in row.split(", ")}
    assert copyleft <= explained


def test_packages_of_the_images_have_a_license() -> None:
    listed = {package for packages in licenses().values() for package in packages}
    assert {name for name in images() - listed if not NOT_INSTALLED.match(name)} == set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="write the table of the page")
    parser.parse_args()
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + table(), encoding="utf-8")
