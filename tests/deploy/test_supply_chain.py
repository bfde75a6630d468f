"""deploy/supply-chain.sh: the audit of the lock files for known vulnerabilities, and their CycloneDX files."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from object_store import free_ports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LOCK = "deploy/requirements-horovod.lock"
ACCEPTED = ROOT / "deploy" / "accepted-advisories.txt"
VULNERABLE = "psutil"
ADVISORY = {
    "id": "GHSA-test-test-test",
    "aliases": ["CVE-2000-0001"],
    "summary": "an advisory of this test",
    "details": "",
    "published": "2000-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": VULNERABLE, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}],
        }
    ],
}
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


class Advisories(ThreadingHTTPServer):
    """A service that answers as OSV does: one package has a vulnerability."""

    queries: dict[str, str]


class _Handler(BaseHTTPRequestHandler):
    server: Advisories

    def do_POST(self) -> None:
        query: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        self.server.queries[name] = query["version"]
        body = json.dumps({"vulns": [ADVISORY]} if name == VULNERABLE else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    with Advisories(("127.0.0.1", 0), _Handler) as server:
        server.queries = {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_audit_without_advisory_service_says_so_and_fails_nothing() -> None:
    service = f"http://127.0.0.1:{free_ports(1)[0]}/v1/query"
    result = supply_chain("audit", OSV_URL=service)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"supply-chain: not audited: {service} does not answer (ConnectionError)\n"


def test_unknown_action_is_rejected() -> None:
    result = supply_chain("adit")
    assert result.returncode == 2
    assert result.stderr == "supply-chain: expected audit or sbom, but found 'adit'\n"


def test_accepted_advisories_have_an_id_a_locked_package_and_a_reason() -> None:
    names = {name for lock in LOCKS for name in locked(ROOT / lock)}
    lines = [line for line in ACCEPTED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        advisory, package, reason = line.split(" ", 2)
        assert re.fullmatch(r"(CVE|GHSA|PYSEC)-[A-Za-z0-9-]+", advisory), line
        assert package in names, line
        assert len(reason.split()) > 5, line


@packages
def test_audit_fails_for_a_vulnerability_until_it_is_accepted(advisories: Advisories, tmp_path: Path) -> None:
    service = f"http://127.0.0.1:{advisories.server_port}/v1/query"
    found = supply_chain("audit", LOCK, OSV_URL=service)
    assert found.returncode == 1, found.stderr
    [row] = [line for line in found.stdout.splitlines() if line.startswith(VULNERABLE)]
    assert row.split() == [VULNERABLE, locked(ROOT / LOCK)[VULNERABLE], "CVE-2000-0001", "999", "GHSA-test-test-test"]
    assert {name: advisories.queries[name] for name in locked(ROOT / LOCK)} == locked(ROOT / LOCK)
    for name in ("GHSA-test-test-test", "CVE-2000-0001"):
        (tmp_path / "accepted").write_text(f"# ID, package, reason\n{name} {VULNERABLE} it is a test\n")
        accepted = supply_chain("audit", LOCK, OSV_URL=service, ACCEPTED=str(tmp_path / "accepted"))
        assert accepted.returncode == 0, accepted.stdout + accepted.stderr


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
