"""deploy/supply-chain.sh: the audit of the lock files for known vulnerabilities, and their CycloneDX files."""

import json
import os
import re
import subprocess

import pytest
from lock_files import LOCKS, ROOT, locked, version

pytestmark = pytest.mark.slow

ACCEPTED = ROOT / "deploy" / "accepted-advisories.txt"
packages = pytest.mark.docker
"""Marks tests that fetch the packages of the tools."""


def supply_chain(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "deploy/supply-chain.sh", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_accepted_advisories_have_an_id_a_locked_package_and_a_reason() -> None:
    names = {requirement.name for lock in LOCKS for requirement, _ in locked(lock)}
    lines = [line for line in ACCEPTED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        advisory, package, reason = line.split(" ", 2)
        assert re.fullmatch(r"(CVE|GHSA|PYSEC)-[A-Za-z0-9-]+", advisory), line
        assert package in names, line
        assert len(reason.split()) > 5, line


@packages
def test_sbom_lists_every_locked_package_with_its_hashes() -> None:
    result = supply_chain("sbom", *(str(lock.relative_to(ROOT)) for lock in LOCKS))
    assert result.returncode == 0, result.stderr
    files = result.stdout.splitlines()
    assert files == [f"build/sbom/{lock.stem}.cdx.json" for lock in LOCKS]
    for lock, file in zip(LOCKS, files, strict=True):
        bom = json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert bom["metadata"]["component"]["name"] == "crossfade"
        pins = {(requirement.name, version(requirement)) for requirement, _ in locked(lock)}
        assert {(component["name"], component["version"]) for component in bom["components"]} == pins
        listed = {
            each["content"]
            for component in bom["components"]
            for reference in component["externalReferences"]
            for each in reference["hashes"]
        }
        assert listed == {each.removeprefix("sha256:") for _, hashes in locked(lock) for each in hashes}
