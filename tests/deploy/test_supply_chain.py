"""deploy/supply-chain.sh: the audit of the lock files for known vulnerabilities, and their CycloneDX files."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED = ROOT / "deploy" / "accepted-advisories.txt"
packages = pytest.mark.docker
"""Marks tests that fetch the packages of the tools."""


def locked(path: Path) -> dict[str, str]:
    """Return the version of each package of a lock file."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))


LOCKS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.lock", "docker/*.lock", "deploy/*.lock")
    for path in ROOT.glob(pattern)
)


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
    names = {name for lock in LOCKS for name in locked(ROOT / lock)}
    lines = [line for line in ACCEPTED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        advisory, package, reason = line.split(" ", 2)
        assert re.fullmatch(r"(CVE|GHSA|PYSEC)-[A-Za-z0-9-]+", advisory), line
        assert package in names, line
        assert len(reason.split()) > 5, line


@packages
def test_sbom_lists_every_locked_package_with_its_hashes() -> None:
    result = supply_chain("sbom", *LOCKS)
    assert result.returncode == 0, result.stderr
    files = result.stdout.splitlines()
    assert files == [f"build/sbom/{Path(lock).stem}.cdx.json" for lock in LOCKS]
    for lock, file in zip(LOCKS, files, strict=True):
        bom = json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert bom["metadata"]["component"]["name"] == "crossfade"
        text = (ROOT / lock).read_text(encoding="utf-8")
        pins = set(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))
        assert {(component["name"], component["version"]) for component in bom["components"]} == pins
        hashes = {
            each["content"]
            for component in bom["components"]
            for reference in component["externalReferences"]
            for each in reference["hashes"]
        }
        assert hashes == set(re.findall(r"sha256:([0-9a-f]{64})", text))
